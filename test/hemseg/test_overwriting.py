"""Nothing that is not hemseg's own is replaced, and no scan ever."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import hemseg_here, process, same_geometry
from test_folders import rows

from hemseg.errors import HemsegError
from hemseg.io.files import atomic_write
from hemseg.io.marks import mark, marked_jpeg, marked_png, read_mark
from hemseg.io.masks import write_image, write_mask
from hemseg.io.writers import to_itk
from hemseg.model import load
from hemseg.scan import read
from hemseg.segmentation import segment
from hemseg.volume import Volume
from training.data.phantom import Phantom


@pytest.fixture
def two(scan: Path) -> tuple[Path, Path]:
    """Two scans in one folder."""
    other = scan.with_name("other.nii.gz")
    shutil.copy(scan, other)
    return scan, other


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def edit(mask: Path) -> bytes:
    """What an expert does: the mask with other voxels, and whatever else its header holds."""
    image = sitk.ReadImage(str(mask))
    array = sitk.GetArrayFromImage(image)
    array[2, 3, 4] = 1 - array[2, 3, 4]
    edited = sitk.GetImageFromArray(array)
    edited.CopyInformation(image)
    for key in image.GetMetaDataKeys():
        edited.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(edited, str(mask), True)
    return mask.read_bytes()


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_scans_and_no_folder(two: tuple[Path, Path], overwrite: bool, light: Path) -> None:
    """A shell makes ``segment *.nii.gz`` of it: the second scan is no place for a mask."""
    before = contents(two[0].parent)
    if not overwrite:
        said = hemseg_here("segment", *two, "--weights", light, check=1).stderr
        assert "other.nii.gz (hemseg did not write it" in said
        assert "--overwrite" in said
    three = shutil.copy(two[0], two[0].with_name("third.nii.gz"))
    options = ["--overwrite"] * overwrite
    assert "is a file" in hemseg_here("segment", *two, three, *options, "--weights", light, check=1).stderr
    Path(three).unlink()
    assert contents(two[0].parent) == before


def test_several_scans_and_a_folder(two: tuple[Path, Path], tmp_path: Path, light: Path) -> None:
    study = tmp_path / "study"
    (study / "deep").mkdir(parents=True)
    shutil.copy(two[0], study / "deep" / "x.nii.gz")
    out = tmp_path / "out"
    for _ in range(2):
        hemseg_here("segment", *two, two[0], study, out, "--weights", light)
    assert sorted(rows(out)) == ["case.nii.gz", "other.nii.gz", "study/deep/x.nii.gz"]
    assert same_geometry(two[1], out / "other.nii.gz")
    assert (out / "study" / "deep" / "x.nii.gz").is_file()
    said = hemseg_here("segment", *two, tmp_path / "mask.nii.gz", "--weights", light, check=1).stderr
    assert "folder" in said


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("output", ["case.nii.gz", "case.png", "summary.html", "thumbnails/other.nii.gz.jpg"])
def test_no_output_is_ever_a_scan(
    two: tuple[Path, Path], tmp_path: Path, light: Path, link: Callable[[Path, Path], None], output: str
) -> None:
    """By whatever name: linked, or in pictures and tables too; not even with --overwrite."""
    out = tmp_path / "out"
    (out / output).parent.mkdir(parents=True)
    link(two[1], out / output)
    before = contents(tmp_path)
    for option in ("--redo", "--overwrite"):
        words = ["segment", two[0].parent, out, "--overlay", option, "--weights", light]
        said = hemseg_here(*words, check=1).stderr
        foreign = option == "--redo" and "hemseg did not write it" in said
        assert "would replace the scan other.nii.gz" in said or foreign
    assert contents(tmp_path) == before


def test_the_output_folder_is_the_input_by_another_name(scan: Path, tmp_path: Path, light: Path) -> None:
    (tmp_path / "alias").symlink_to(scan.parent, target_is_directory=True)
    before = contents(scan.parent)
    for source, target in (
        (scan.parent, "alias"),
        (tmp_path / "alias", "in"),
        (scan, "alias"),
        (scan, "alias/case.nii.gz"),
    ):
        said = hemseg_here("segment", source, tmp_path / target, "--overwrite", "--weights", light, check=1).stderr
        assert "would replace the scan" in said
    assert contents(scan.parent) == before


def test_what_others_wrote_is_named_at_once_before_any_work(
    two: tuple[Path, Path], tmp_path: Path, light: Path
) -> None:
    out = tmp_path / "out"
    foreign = [
        "case.nii.gz",
        "other.png",
        "summary.html",
        "summary.csv",
        "lesions.csv",
        "thumbnails/case.nii.gz.jpg",
        "other/report.json",
    ]
    for name in foreign:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("somebody's work\n")
    before = contents(out)
    words = ["segment", two[0].parent, out, "--overlay", "--report", "--weights", light]
    for option in ([], ["--redo"]):
        said = hemseg_here(*words, *option, check=1).stderr
        assert said.count("error: ") == 1
        assert all(f"{out / name} (hemseg did not write it" in said for name in foreign)
        assert contents(out) == before
    hemseg_here(*words, "--overwrite")
    assert len(rows(out)) == 2
    assert all(contents(out)[name] != content for name, content in before.items())
    hemseg_here(*words)


def test_many_in_the_way_are_counted(two: tuple[Path, Path], tmp_path: Path, light: Path) -> None:
    for number in range(30):
        shutil.copy(two[0], two[0].with_name(f"{number}.nii.gz"))
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / f"{number}.nii.gz").write_text("mine")
    said = hemseg_here("segment", two[0].parent, tmp_path / "out", "--weights", light, check=1).stderr
    assert said.count("did not write it") == 20
    assert "and 10 more" in said


def test_the_same_command_again_replaces_its_own(scan: Path, tmp_path: Path, light: Path) -> None:
    """A single scan, ``process.py``; with the options that write more."""
    for format_ in ("nii.gz", "mha"):
        for _ in range(2):
            hemseg_here(
                "segment", scan, tmp_path / format_, "--format", format_, "--overlay", "--report", "--weights", light
            )
    for _ in range(2):
        hemseg_here("segment", scan, tmp_path / "named" / "mask.nii.gz", "--weights", light)
    for _ in range(2):
        process("--input", scan.parent, "--output", tmp_path / "gc", "--weights", light)


def test_a_mask_that_was_corrected_stays(scan: Path, tmp_path: Path, light: Path) -> None:
    """A header that is still ours does not make the voxels ours: single scans, folders, process.py; --redo, too."""
    hemseg_here("segment", scan, tmp_path / "single", "--weights", light)
    hemseg_here("segment", scan.parent, tmp_path / "folder", "--weights", light)
    process("--input", scan.parent, "--output", tmp_path / "gc", "--weights", light)
    corrected = {n: edit(tmp_path / n / "case.nii.gz") for n in ("single", "folder", "gc/images")}
    for option in ([], ["--redo"]):
        hemseg_here("segment", scan, tmp_path / "single", *option, "--weights", light, check=1)
        hemseg_here("segment", scan.parent, tmp_path / "folder", *option, "--weights", light, check=1)
    said = process("--input", scan.parent, "--output", tmp_path / "gc", "--weights", light, check=1).stderr
    assert "or it was changed since" in said
    assert all((tmp_path / n / "case.nii.gz").read_bytes() == content for n, content in corrected.items())
    process("--input", scan.parent, "--output", tmp_path / "gc", "--weights", light, "--overwrite")
    assert (tmp_path / "gc" / "images" / "case.nii.gz").read_bytes() != corrected["gc/images"]


def test_the_mask_of_another_scan_stays(scan: Path, bleed: object, tmp_path: Path, light: Path) -> None:
    """Same name, another folder, other voxels; the same scan in another place may be done there."""
    other = tmp_path / "elsewhere" / scan.name
    other.parent.mkdir()
    image = sitk.ReadImage(str(scan))
    sitk.WriteImage(image + 1, str(other))
    copied = tmp_path / "copied" / scan.name
    copied.parent.mkdir()
    shutil.copy(scan, copied)
    for source, out in (
        (((scan, other, copied)), tmp_path / "single"),
        ((scan.parent, other.parent, copied.parent), tmp_path / "folder"),
    ):
        hemseg_here("segment", source[0], out, "--weights", light)
        before = contents(out)
        said = hemseg_here("segment", source[1], out, "--weights", light, check=1).stderr
        assert "belongs to another scan" in said
        assert contents(out) == before
        hemseg_here("segment", source[2], out, "--redo", "--weights", light)
        hemseg_here("segment", source[1], out, "--overwrite", "--weights", light)


def test_a_scan_that_changed_is_done_again_in_its_folder(scan: Path, tmp_path: Path, light: Path) -> None:
    hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light)
    before = contents(tmp_path / "out")
    sitk.WriteImage(sitk.ReadImage(str(scan)) + 20, str(scan))
    hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light)
    assert contents(tmp_path / "out")["case.nii.gz"] != before["case.nii.gz"]


def test_cases_of_another_run_stay_in_the_table(two: tuple[Path, Path], tmp_path: Path, light: Path) -> None:
    second = tmp_path / "second" / "more.nii.gz"
    second.parent.mkdir()
    shutil.copy(two[0], second)
    hemseg_here("segment", two[0].parent, tmp_path / "out", "--weights", light)
    hemseg_here("segment", second.parent, tmp_path / "out", "--weights", light)
    assert sorted(rows(tmp_path / "out")) == ["case.nii.gz", "more.nii.gz", "other.nii.gz"]
    (tmp_path / "out" / "case.nii.gz").unlink()
    hemseg_here("segment", second.parent, tmp_path / "out", "--weights", light)
    assert sorted(rows(tmp_path / "out")) == ["more.nii.gz", "other.nii.gz"]


@pytest.mark.parametrize("damage", [b"", b"cut", None])
def test_a_mask_that_a_crash_left_empty_is_made_again(
    scan: Path, tmp_path: Path, light: Path, damage: bytes | None
) -> None:
    """Empty, it is replaced; anything else may be somebody's work."""
    hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light)
    mask = tmp_path / "out" / "case.nii.gz"
    before = mask.read_bytes()
    mask.unlink() if damage is None else mask.write_bytes(damage)
    hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light, check=int(bool(damage)))
    assert (mask.read_bytes() == before) == (not damage)


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        assert done[-1] == "folder" or os.fstat(descriptor).st_size == 3
        sync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        done.append("name")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    with atomic_write(tmp_path / "a") as partial:
        partial.write_bytes(b"abc")
    assert done == ["file", "name", "folder"]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("from_file", [True, False])
def test_marks_of_masks(tmp_path: Path, suffix: str, from_file: bool) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 8)).astype(np.int16)
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    assert read_mark(path) is None
    mask = (array > 0).astype(np.uint8)
    out = write_mask(mask, read(path) if from_file else Volume(array.astype(np.float32)), tmp_path / f"mask{suffix}")
    made = read_mark(out)
    assert made
    assert made.voxels
    edit(out)
    assert read_mark(out) is None


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize(
    "voxels",
    [
        np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4) % 7,  # kinds
        np.zeros((2, 3, 4), np.uint8),  # none
        np.zeros((2, 3, 4), np.float32),  # probabilities, all 0
        np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    ],
    ids=["kinds", "no kinds", "no probability", "probability"],
)
def test_marks_of_kinds_and_probabilities(tmp_path: Path, suffix: str, voxels: np.ndarray) -> None:
    out = write_image(voxels, Volume(np.zeros(voxels.shape, np.float32)), tmp_path / f"a{suffix}", "the image")
    made = read_mark(out)
    assert made
    assert made.voxels
    changed = voxels.copy()
    changed[0, 0, 0] += voxels.dtype.type(1)
    image = sitk.ReadImage(str(out))
    other = sitk.GetImageFromArray(changed)
    for key in image.GetMetaDataKeys():
        other.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(other, str(out))
    assert read_mark(out) is None


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_result_is_not_saved_over_its_scan(bleed: Phantom, tmp_path: Path, light: Path, suffix: str) -> None:
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(to_itk(bleed.volume.hu, bleed.volume), str(path))
    (tmp_path / f"link{suffix}").symlink_to(path)
    before, scan = path.read_bytes(), read(path)
    result = segment(scan, load(light, "cpu"))
    for name in (path, tmp_path / f"link{suffix}"):
        with pytest.raises(HemsegError, match="is the scan itself"):
            result.save(name)
        with pytest.raises(HemsegError, match="is the scan itself"):
            write_mask(result.mask, scan, name)
    assert path.read_bytes() == before
    assert result.save(tmp_path / f"mask{suffix}").is_file()


def test_marks_of_pictures_leave_them_as_they_are() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    for suffix, marked in ((".png", marked_png), (".jpg", marked_jpeg)):
        plain = cv2.imencode(suffix, picture)[1].tobytes()
        made = np.frombuffer(marked(plain, mark("0123456789abcdef")), np.uint8)
        assert np.array_equal(cv2.imdecode(made, cv2.IMREAD_COLOR), cv2.imdecode(np.frombuffer(plain, np.uint8), 1))


def test_every_output_has_a_mark(scan: Path, tmp_path: Path, light: Path) -> None:
    hemseg_here("segment", scan.parent, tmp_path / "out", "--overlay", "--report", "--weights", light)
    names = {p for p in contents(tmp_path / "out") if p not in ("summary.csv", "lesions.csv")}
    assert names == {
        "case.nii.gz",
        "case.png",
        "case/report.json",
        "case/report.html",
        "thumbnails/case.nii.gz.jpg",
        "summary.html",
    }
    for name in names:
        assert read_mark(tmp_path / "out" / name), name
    report = json.loads((tmp_path / "out" / "case" / "report.json").read_text())
    assert report["made_by"].startswith("hemseg ")
