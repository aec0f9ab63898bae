"""What is no head CT is refused; what looks odd gets a mask and a warning."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import COARSE, ROOT, SHARED
from typer.testing import CliRunner

import hemseg
from hemseg.checks import check_scan
from hemseg.cli import app
from hemseg.preprocessing import Settings, skull_hull
from hemseg.scan import read
from hemseg.volume import Volume
from training.data.anatomy import Options
from training.data.phantom import Grid, Phantom, make_phantom, write_image

Made = Callable[[Volume], Volume]


def with_hu(change: Callable[[np.ndarray], np.ndarray]) -> Made:
    return lambda v: replace(v, hu=change(v.hu.copy()).astype(np.float32))


def eight_bit(hu: np.ndarray) -> np.ndarray:
    return np.round(np.clip(hu, 0, 80) * 255 / 80)


def like_mr(hu: np.ndarray) -> np.ndarray:
    """Bone and air dark, tissue bright and CSF brighter."""
    return np.where(hu < -200, 0, np.where(hu > 90, 40, 700 - 6 * hu))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (with_hu(lambda hu: np.full_like(hu, -1000)), "every voxel is -1000"),
        (with_hu(lambda hu: np.clip(hu + 1024, 0, None)), "intercept is missing"),
        (with_hu(eight_bit), "not in HU"),
        (with_hu(like_mr), "not in HU"),
        (with_hu(lambda hu: np.where(np.abs(hu) < 100, hu + 60, hu)), "not in HU"),
        (with_hu(lambda hu: np.clip(hu, 0, None) * 100), "not in HU"),
        (lambda v: replace(v, direction=(1, 0.3, 0, 0, 1, 0, 0, 0, 1)), "right angles"),
        (lambda v: replace(v, direction=(1, 0, 0, 1, 0, 0, 0, 0, 1)), "right angles"),
    ],
)
def test_what_is_no_ct_is_refused(bleed: Phantom, made: Made, said: str) -> None:
    with pytest.raises(hemseg.HemsegError, match=said):
        check_scan(made(bleed.volume), Settings())


def contrast(hu: np.ndarray) -> np.ndarray:
    for dy in (0, 1, 2):
        for dx in (0, 1, 2):
            hu[7:12, 30 + dy : 66 : 6, 36 + dx : 60 : 6] = 250  # vessels
    return hu


def blank(hu: np.ndarray) -> np.ndarray:
    hu[[0, 1, 9]] = -1000
    return hu


def defaced(hu: np.ndarray) -> np.ndarray:
    return np.where(skull_hull(hu > 200), hu, -1000)


def cut(part: tuple[slice, ...]) -> Made:
    return lambda v: replace(v, hu=np.ascontiguousarray(v.hu[part]))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (cut(np.s_[8:11]), "has only 3 slices"),
        (cut(np.s_[8:9]), "has only 1 slice."),
        (cut(np.s_[:10]), "cut off at the top"),
        (cut(np.s_[8:]), "does not reach down to the base"),
        (cut(np.s_[:, :, 30:]), "cut off at the edge"),
        (cut(np.s_[6:12, 10:60, 10:60]), "mL inside the skull"),
        (lambda v: replace(v, spacing=(0.12, 0.12, 9.0)), "voxels of 0.12 x 0.12 x 9 mm"),
        (lambda v: replace(v, spacing=(0.6, 0.6, 9.0)), "58 x 58 mm in plane"),
        (lambda v: replace(v, direction=(1, 0, 0, 0, -1, 0, 0, 0, -1)), "upside down"),
        (with_hu(lambda hu: np.clip(hu, -20, 100)), "window of -20..100 HU"),
        (with_hu(lambda hu: np.clip(hu, 0, 80)), "window of 0..80 HU"),
        (with_hu(blank), "has 3 blank slices"),
        (with_hu(contrast), "contrast agent"),
        (with_hu(defaced), "hardly any scalp"),
        (with_hu(lambda hu: np.where(hu > 90, 30, hu)), "hardly any bone"),
        (with_hu(lambda hu: hu + 20), "brain of 5"),
        (with_hu(lambda hu: hu / 2), "brain of 1"),
        (with_hu(lambda hu: np.where(np.abs(hu) < 100, hu - 25, hu)), "median of"),
    ],
)
def test_what_looks_odd_gets_a_warning(bleed: Phantom, made: Made, said: str) -> None:
    volume, _ = check_scan(made(bleed.volume), Settings())
    assert said in " ".join(volume.warnings)
    with pytest.raises(hemseg.HemsegError, match="looks odd"):
        check_scan(made(bleed.volume), Settings(), strict=True)


def test_two_heads_are_told() -> None:
    grid = Grid((9, 60, 110), (4.0, 4.0, 16.0), left_mm=90)
    one, two = (make_phantom(2, (), grid, options=Options(second_head=s)).volume for s in (False, True))
    assert "two heads" not in " ".join(check_scan(one, Settings())[0].warnings)
    assert "two heads" in " ".join(check_scan(two, Settings())[0].warnings)


def test_a_table_is_no_head(bleed: Phantom) -> None:
    """A wide picture with a table as bright as bone: the scalp is there all the same."""
    hu = np.pad(bleed.volume.hu, ((0, 0), (10, 40), (30, 30)), constant_values=-1000)
    hu[:, -28:-26] = 150
    hu[:, -26:-18] = -850
    hu[:, -18:-16] = 180
    for window in ((-1024, 3071), (-20, 100)):
        scan = replace(bleed.volume, hu=np.clip(hu, *window).astype(np.float32))
        assert "scalp" not in " ".join(check_scan(scan, Settings())[0].warnings)


def test_thick_slices_show_their_scalp() -> None:
    """In the vault a slice of 10 mm shows the leaning skull where the scalp is."""
    volume = make_phantom(4, (), Grid((14, 200, 200), (1.0, 1.0, 10.0))).volume
    assert "scalp" not in " ".join(check_scan(volume, Settings())[0].warnings)


@pytest.mark.parametrize("seed", [3, 8, 12])
def test_a_plain_head_looks_plain(seed: int) -> None:
    kinds = ("subdural", "intraparenchymal") if seed == 8 else ()
    volume, _ = check_scan(make_phantom(seed, kinds, COARSE).volume, Settings(), strict=True)
    assert not volume.warnings


def test_samples_look_plain() -> None:
    for path in (ROOT / "test" / "cases").iterdir():
        assert not check_scan(read(path), Settings())[0].warnings


def test_warnings_are_told_and_strict_refuses(bleed: Phantom, light: Path, tmp_path: Path) -> None:
    write_image(np.clip(bleed.volume.hu, -20, 100), bleed.volume, tmp_path / "in" / "windowed.nii.gz")
    write_image(bleed.volume.hu, bleed.volume, tmp_path / "in" / "plain.nii.gz")
    arguments = ["segment", str(tmp_path / "in"), str(tmp_path / "out"), "--report", "--weights", str(light)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "out" / "summary.csv").open())}
    assert "window" in rows["windowed.nii.gz"]["warnings"]
    assert not rows["plain.nii.gz"]["warnings"]
    assert "window" in (tmp_path / "out" / "summary.html").read_text()
    report = json.loads((tmp_path / "out" / "windowed" / "report.json").read_text())
    assert any("window" in text for text in report["warnings"])
    strict = CliRunner().invoke(app, [*arguments, "--strict"])
    assert strict.exit_code == 1
    assert "windowed.nii.gz" in strict.output
    rows = {row["case"]: row for row in csv.DictReader((tmp_path / "out" / "summary.csv").open())}
    assert rows["windowed.nii.gz"]["status"] == "failed"
    assert rows["plain.nii.gz"]["status"] == "done"


def test_python_knows_too(bleed: Phantom) -> None:
    result = hemseg.segment(np.clip(bleed.volume.hu, -20, 100), bleed.volume.spacing, device="cpu")
    assert any("window" in text for text in result.volume.warnings)
    with pytest.raises(hemseg.HemsegError, match="looks odd"):
        hemseg.segment(np.clip(bleed.volume.hu, -20, 100), bleed.volume.spacing, device="cpu", strict=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")
def test_real_scans_are_taken_and_said_to_be_windowed() -> None:
    for source in ("phe-sich", "ct-ich"):
        for path in sorted((SHARED / source / "images").glob("*.nii.gz"))[:3]:
            warnings = check_scan(read(path), Settings())[0].warnings
            assert [text for text in warnings if "window of" in text]
            assert not [text for text in warnings if "upside" in text or "cut off" in text or "median" in text]
    vault, _ = check_scan(read(SHARED / "cranium" / "cranium.nii.gz"), Settings())
    assert not [text for text in vault.warnings if "blank" not in text and "scalp" not in text]
