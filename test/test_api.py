from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, same_geometry

import hemseg

SCAN = ROOT / "test" / "cases" / "phantom-lobar.mha"


def test_paths_images_arrays_and_volumes_give_the_same(tmp_path: Path, light: Path) -> None:
    image = sitk.ReadImage(str(SCAN))
    array = sitk.GetArrayFromImage(image)
    result = hemseg.segment(SCAN)
    assert result.mask.shape == result.probability.shape == array.shape
    assert result.mask.dtype == np.uint8
    assert 0 <= result.probability.min() <= result.probability.max() <= 1
    assert result.volume_ml == pytest.approx(result.mask.sum() * np.prod(image.GetSpacing()) / 1000)
    assert isinstance(result.lesions[0], hemseg.Lesion)
    assert np.mean((result.probability >= 0.5) != result.mask) < 0.001  # but for dropped specks
    first = hemseg.segment(SCAN, weights=light)
    assert first.mask.any()
    for other in (str(SCAN), image, hemseg.read(SCAN)):
        assert np.array_equal(hemseg.segment(other, weights=light).mask, first.mask)
    bare = hemseg.segment(array, spacing=image.GetSpacing(), weights=light)
    assert np.array_equal(bare.mask, first.mask)
    assert same_geometry(SCAN, result.save(tmp_path / "mask.mha"))
    assert bare.save(tmp_path / "array.nii.gz").is_file()


@pytest.mark.parametrize(
    ("scan", "options", "said"),
    [
        (np.zeros((3, 4, 5)), {}, "give spacing"),
        (np.zeros((4, 5)), {"spacing": (1, 1, 1)}, "no volume"),
        (np.zeros((3, 4, 5)), {"spacing": (1, 0, 1)}, "positive"),
        (np.full((3, 4, 5), np.nan), {"spacing": (1, 1, 1)}, "NaN"),
        (np.array([[["a"]]]), {"spacing": (1, 1, 1)}, "no volume"),
        (SCAN, {"spacing": (1, 1, 1)}, "has its own"),
        ("missing.nii.gz", {}, "no such file"),
        (sitk.Image(4, 4, sitk.sitkInt16), {}, "3D"),
        (SCAN, {"weights": "missing"}, "missing"),
        (SCAN, {"device": "tpu"}, "tpu"),
    ],
)
def test_mistakes_are_hemseg_errors(scan: object, options: dict, said: str) -> None:
    with pytest.raises(hemseg.HemsegError, match=said):
        hemseg.segment(scan, **options)  # type: ignore[arg-type]


def test_importing_costs_nothing() -> None:
    code = "import sys, hemseg; assert 'numpy' not in sys.modules and 'SimpleITK' not in sys.modules; hemseg.segment"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="nonsense"):
        hemseg.nonsense  # type: ignore[attr-defined]  # noqa: B018
