"""The pictures of README.md and docs/usage.md: phantoms, by the present weights, as users see them.

    python -m training pictures

The pages are photographed by Chromium, without a window.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from hemseg.compare.comparison import compare, prepare_scan
from hemseg.compare.page import page as compare_page
from hemseg.compare.tables import comparison_report
from hemseg.errors import HemsegError
from hemseg.io.writers import to_itk
from hemseg.model import Model, load
from hemseg.report.findings import findings, write_overlay
from hemseg.report.viewer import page
from hemseg.scan import read
from hemseg.volume import Volume

from ..data.phantom import make_phantom
from .robustness import check_and_segment
from .samples import GRID

SHOWN = "phantom-intraventricular.mha"
GROWN_SEED, GROWN_MM, TURNED_DEGREES = 16, 4.0, 6.0  # of the follow-up in compare.png
WINDOW = "1300,900"


def write_pictures(out: Path, scans: Path, weights: Path | None = None) -> None:
    """Write result.png, report.png and compare.png.

    Args:
        out: where to.
        scans: ``test/cases``.
        weights: folder with a manifest, or None for those that came with hemseg.

    Raises:
        HemsegError: Chromium is not installed, or a picture cannot be written.
    """
    chromium = shutil.which("chromium")
    if not chromium:
        raise HemsegError("pictures: chromium is not installed; it photographs the pages.")
    if not (scans / SHOWN).is_file():
        raise HemsegError(f"{scans / SHOWN}: there is no such scan; `python -m training samples` makes it.")
    model = load(weights, "cpu")
    result = check_and_segment(read(scans / SHOWN), model)
    write_overlay(result, out / "result.png", SHOWN)
    _photograph(page(result, findings(result, model, SHOWN)), out / "report.png", chromium)
    _photograph(_comparison(model), out / "compare.png", chromium)


def _comparison(model: Model) -> str:
    """The page of a phantom and of the same head later, turned, with a larger bleed."""
    phantom = make_phantom(GROWN_SEED, ("intraparenchymal",), GRID)
    grown = replace(phantom.volume, hu=_larger_bleed(phantom.volume, phantom.mask > 0))
    comparison = compare(prepare_scan(phantom.volume, model), prepare_scan(_turned(grown), model), model)
    return compare_page(comparison, comparison_report(comparison, model, "baseline-follow-up"))


def _larger_bleed(volume: Volume, bleed: np.ndarray) -> np.ndarray:
    """HU (z, y, x) with blood as far as `GROWN_MM` around a bleed, bool (z, y, x)."""
    distance = ndimage.distance_transform_edt(~bleed, sampling=volume.spacing[::-1])
    rim = (distance > 0) & (distance <= GROWN_MM) & (volume.hu > 0) & (volume.hu < 80)
    rng = np.random.default_rng(0)
    blood = rng.normal(np.median(volume.hu[bleed]), 4.0, volume.hu.shape)
    return np.where(rim, blood, volume.hu).astype(volume.hu.dtype)


def _turned(volume: Volume) -> Volume:
    """A head turned in plane about the middle of its picture."""
    image = to_itk(volume.hu.astype(np.float32), volume)
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    turn = sitk.Euler3DTransform(middle, 0.0, 0.0, float(np.radians(TURNED_DEGREES)))
    hu = sitk.GetArrayFromImage(sitk.Resample(image, image, turn, sitk.sitkLinear, -1000.0))
    return replace(volume, hu=hu)


def _photograph(text: str, path: Path, chromium: str) -> None:
    with TemporaryDirectory() as folder:
        source, shot = Path(folder) / "page.html", Path(folder) / "page.png"
        source.write_text(text)
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={WINDOW}", "--virtual-time-budget=5000", f"--screenshot={shot}", source.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        if done.returncode or not shot.is_file():
            raise HemsegError(f"{path}: chromium took no picture of the page.")
        shutil.copyfile(shot, path)
