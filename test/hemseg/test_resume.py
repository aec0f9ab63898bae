"""What counts as done: the same scan by content, the same weights, options and mask, and a line that nobody changed."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import hemseg_here
from helpers.series import write_series
from test_folders import rows

import hemseg
from hemseg.errors import HemsegError
from hemseg.folder.journal import Journal
from hemseg.folder.plan import OutputOptions, plan_jobs
from hemseg.folder.rows import settings_key_of_weights
from hemseg.io import fingerprint
from hemseg.io.fingerprint import Fingerprint, is_same, unchanged
from hemseg.manifest import Manifest, default_weights
from training.data.phantom import Phantom


@pytest.fixture
def done(scan: Path, tmp_path: Path, light: Path) -> tuple[Path, Path]:
    """A folder of two scans that is done, and its output."""
    shutil.copy(scan, scan.with_name("other.nii.gz"))
    hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light)
    return scan.parent, tmp_path / "out"


def left(source: Path, target: Path, weights: Path, options: OutputOptions = OutputOptions()) -> list[str]:  # noqa: B008
    """The cases that the same command would do."""
    journal, key = Journal(target), settings_key_of_weights(weights, options)
    return [str(job.case) for job in plan_jobs(source, target, options) if not journal.is_done(job, key)]


def test_another_operating_point_does_all_again_and_finds_more(
    done: tuple[Path, Path], tmp_path: Path, light: Path
) -> None:
    source, target = done
    weights = Path(shutil.copytree(light, tmp_path / "weights"))
    manifest = json.loads((weights / "manifest.json").read_text())
    few, many = manifest | {"min_lesion_ml": 1000.0}, {"sensitive": {"min_lesion_ml": 0.0}}
    (weights / "manifest.json").write_text(json.dumps(few | {"operating_points": many}))
    assert len(left(source, target, weights, OutputOptions(operating_point="sensitive"))) == 2
    options = (source, tmp_path / "again", "--weights", weights, "--report")
    hemseg_here("segment", *options)
    assert all(float(row["volume_ml"]) == 0 for row in rows(tmp_path / "again").values())
    hemseg_here("segment", *options, "--operating-point", "sensitive")
    assert all(float(row["volume_ml"]) > 0 for row in rows(tmp_path / "again").values())
    report = next((tmp_path / "again").glob("*/report.json"))
    assert json.loads(report.read_text())["operating_point"] == "sensitive"
    said = hemseg_here("segment", *options, "--operating-point", "wild", check=1).stderr
    assert "give balanced, sensitive" in said
    assert hemseg.segment(source / "other.nii.gz", weights=weights).volume_ml == 0
    assert hemseg.segment(source / "other.nii.gz", weights=weights, operating_point="sensitive").volume_ml > 0


def swap(a: Path, b: Path) -> None:
    """The contents of two files of one size, and nothing else that `ls -l` would show."""
    first, second = a.read_bytes(), b.read_bytes()
    for path, content in ((a, second), (b, first)):
        state = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("settled", [True, False])
def test_swapped_files_of_equal_size_and_time(
    scan: Path, tmp_path: Path, light: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    if settled:  # as if the scans had been there for long when they were read
        monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", -3600)
    a, b = tmp_path / "two" / "a.mha", tmp_path / "two" / "b.mha"
    a.parent.mkdir()
    for number, path in enumerate((a, b)):
        sitk.WriteImage(sitk.ReadImage(str(scan)) + number, str(path), False)
    shutil.copystat(a, b)
    assert a.stat().st_size == b.stat().st_size
    hemseg_here("segment", a.parent, tmp_path / "out", "--weights", light)
    assert left(a.parent, tmp_path / "out", light) == []
    time.sleep(0.02)  # the kernel's clock of files ticks every few milliseconds
    swap(a, b)
    assert left(a.parent, tmp_path / "out", light) == ["a.mha", "b.mha"]


def test_files_of_another_time_or_place_are_the_same(done: tuple[Path, Path], light: Path) -> None:
    source, out = done
    for path in source.iterdir():
        copy = shutil.copy(path, path.with_suffix(".copy"))
        os.replace(copy, path)
        os.utime(path, (1, 1))
    assert left(source, out, light) == []


@pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nrrd"])
def test_voxels_beside_their_header_count(scan: Path, tmp_path: Path, light: Path, suffix: str) -> None:
    folder = tmp_path / "detached"
    folder.mkdir()
    image = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(scan))).astype(np.int16))
    raw = folder / "x.raw"
    raw.write_bytes(sitk.GetArrayFromImage(image).tobytes())
    x, y, z = image.GetSize()
    meta = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = {x} {y} {z}\nElementSpacing = 2.4 2.4 9\n"
    meta += "ElementType = MET_SHORT\nElementDataFile = x.raw\n"
    nrrd = f"NRRD0004\ntype: int16\ndimension: 3\nsizes: {x} {y} {z}\nspacings: 2.4 2.4 9\nendian: little\n"
    nrrd += "encoding: raw\ndata file: x.raw\n\n"
    (folder / f"x{suffix}").write_text(nrrd if suffix == ".nrrd" else meta)
    hemseg_here("segment", folder, tmp_path / "out", "--weights", light)
    assert left(folder, tmp_path / "out", light) == []
    state = raw.stat()
    raw.write_bytes(np.roll(sitk.GetArrayFromImage(image), 1).tobytes())
    os.utime(raw, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert left(folder, tmp_path / "out", light) == [f"x{suffix}"]


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.6},
        {"min_lesion_ml": 0.2},
        {"version": "another"},
        {"preprocessing": {"bilateral_sigma_hu": 16.0}},
        {"preprocessing": {"slice_mm": 8.0}},
        {"preprocessing": {"channels": ["equalized", "hu"]}},
    ],
)
def test_the_whole_manifest_counts(
    done: tuple[Path, Path], tmp_path: Path, light: Path, change: dict[str, Any]
) -> None:
    other = Path(shutil.copytree(light, tmp_path / "weights"))
    assert left(*done, other) == []  # the same weights in another place
    values = json.loads((other / "manifest.json").read_text())
    inner = values["preprocessing"] | change.get("preprocessing", {})
    (other / "manifest.json").write_text(json.dumps(values | change | {"preprocessing": inner}))
    assert len(left(*done, other)) == 2


@pytest.mark.parametrize(
    "options", [OutputOptions(strict=True), OutputOptions(series="3"), OutputOptions(format="nii.gz")]
)
def test_options_that_change_the_mask_count(done: tuple[Path, Path], light: Path, options: OutputOptions) -> None:
    assert len(left(*done, light, options)) == 2


def test_another_series_of_the_study_is_another_mask(bleed: Phantom, tmp_path: Path, light: Path) -> None:
    for number in (2, 3):
        write_series(tmp_path / "in" / "s" / str(number), bleed.volume, study="1.2.3", SeriesNumber=number)
    hemseg_here("segment", tmp_path / "in", tmp_path / "out", "--series", "2", "--weights", light)
    first = rows(tmp_path / "out")
    hemseg_here("segment", tmp_path / "in", tmp_path / "out", "--series", "3", "--weights", light)
    second = rows(tmp_path / "out")
    assert list(first) == list(second)
    assert [row["series"] for row in first.values()] != [row["series"] for row in second.values()]


def test_a_scan_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    path.write_text("one")
    with pytest.raises(HemsegError, match="was changed while it was being read"), unchanged([path], path):
        path.write_text("two!")
    with pytest.raises(HemsegError, match="was changed"), unchanged([path], path):
        path.unlink()
    with unchanged([path], path) as nothing:
        assert nothing is None


def test_fingerprints_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "scan"
    path.write_text("one")
    os.utime(path, (1, 1))
    with unchanged([path], path) as found:
        assert found
    for known in (found, Fingerprint(found.content, "0123456789abcdef"), Fingerprint(found.content)):
        assert Fingerprint.parse(str(known)) == known
        assert is_same([path], known)
    for text in ("", "sha256:12 state:", "7 bytes, 12345", f"sha256:{found.content}", f"x{found}"):
        assert Fingerprint.parse(text) is None


def edited(row: list[str], column: str, value: str) -> list[str]:
    names = ["case", "status", "volume_ml", "lesions", "largest_ml", "seconds", "warnings"]
    return [value if i == names.index(column) else cell for i, cell in enumerate(row)]


@pytest.mark.parametrize(
    ("column", "value"),
    [("volume_ml", "999.0"), ("volume_ml", "much"), ("volume_ml", "nan"), ("status", "failed"), ("status", "ok"),
     ("lesions", ""), ("warnings", "checked by me"), ("case", "other.nii.gz"), ("volume_ml", "-1"),
     ("seconds", "1e999")],
)  # fmt: skip
def test_a_line_that_was_edited_is_not_done(done: tuple[Path, Path], light: Path, column: str, value: str) -> None:
    source, out = done
    with (out / "summary.csv").open(newline="") as file:
        table = list(csv.reader(file))
    truth = rows(out)["case.nii.gz"]["volume_ml"]
    table[1] = edited(table[1], column, value)
    with (out / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    assert "case.nii.gz" in left(source, out, light)
    hemseg_here("segment", source, out, "--weights", light)
    assert rows(out)["case.nii.gz"]["volume_ml"] == truth
    assert "999.0" not in (out / "summary.html").read_text()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_that_a_spreadsheet_saved(done: tuple[Path, Path], light: Path, delimiter: str) -> None:
    source, out = done
    with (out / "summary.csv").open(newline="") as file:
        table = list(csv.reader(file))
    for row in table[1:]:
        row[2] = repr(float(row[2]))  # 12.300 becomes 12.3
    with (out / "summary.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(table)
    assert left(source, out, light) == []
    hemseg_here("segment", source, out, "--weights", light)
    assert rows(out)["case.nii.gz"]["status"] == "done"


def test_a_damaged_table(done: tuple[Path, Path], light: Path) -> None:
    """Cut anywhere, or with bytes changed: never a traceback, and never done by mistake."""
    source, out = done
    whole = (out / "summary.csv").read_bytes()
    rng = np.random.default_rng(0)
    first = whole.index(b"\n") + 1
    for number in range(60):
        at = int(rng.integers(first, len(whole)))
        noise = bytes(rng.integers(0, 256, int(rng.integers(1, 40)), np.uint8))
        damaged = (whole[:at], whole[:at] + noise + whole[at:], whole[:at] + noise)[number % 3]
        (out / "summary.csv").write_bytes(damaged)
        for row in Journal(out).rows.values():
            assert ",".join((row.case, row.status, row.volume_ml)).encode() in whole
    (out / "summary.csv").write_bytes(bytes(range(256)) * 100)
    assert "summary.csv (hemseg did not write it" in hemseg_here(
        "segment", source, out, "--redo", "--weights", light, check=1
    ).stderr  # fmt: skip
    hemseg_here("segment", source, out, "--overwrite", "--weights", light)
    assert len(rows(out)) == 2


def test_the_table_of_an_older_version_is_read(done: tuple[Path, Path], light: Path) -> None:
    """Its cases are done again, and its files are ours, although they have no marks."""
    source, out = done
    old = "case,status,volume_ml,lesions,largest_ml,seconds,warnings,error,series,mask,scan,made_by\n"
    old += "".join(f"{n},done,1,1,1,1,,,,{n},7 bytes,hemseg 0.1.0\n" for n in ("case.nii.gz", "other.nii.gz"))
    (out / "summary.csv").write_text(old)
    for name in ("case.nii.gz", "other.nii.gz"):
        plain = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(out / name))))
        sitk.WriteImage(plain, str(out / name))
    assert len(left(source, out, light)) == 2
    hemseg_here("segment", source, out, "--weights", light)
    assert left(source, out, light) == []


def test_python_knows_weights_by_their_content(scan: Path, tmp_path: Path, light: Path) -> None:
    """Replaced under the same path, they are other weights."""
    weights = Path(shutil.copytree(light, tmp_path / "weights"))
    found = hemseg.segment(scan, weights=weights)
    assert found.mask.any()
    high = Manifest.read(weights)
    values = json.loads((weights / "manifest.json").read_text())
    (weights / "manifest.json").write_text(json.dumps(values | {"min_lesion_ml": 5000.0}))
    assert not hemseg.segment(scan, weights=weights).mask.any()
    shutil.rmtree(weights)
    shutil.copytree(default_weights(), weights)
    assert hemseg.segment(scan, weights=weights).working.grid.spacing[1] != high.preprocessing.in_plane_mm
