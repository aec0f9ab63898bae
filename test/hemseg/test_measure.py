"""`hemseg measure`: own masks give the figures of `segment`, edited ones theirs; another grid is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import hemseg_here

from hemseg.errors import HemsegError
from hemseg.measure import read_given_mask
from hemseg.scan import read
from hemseg.volume import Volume


@pytest.fixture(scope="module")
def segmented(bleed_scan: Path, light: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of a scan in a subfolder, and what `segment` makes of it."""
    source, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("masks") / "out"
    (source / "sub").mkdir()
    shutil.copy(bleed_scan, source / "sub" / "case.nii.gz")
    hemseg_here("segment", source, out, "--weights", light, "--report")
    return source, out


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="")))


def edited(mask: Path, target: Path, change: Callable[[np.ndarray], np.ndarray], **geometry: object) -> Path:
    """The mask with other voxels, as an editor saves it: without our mark."""
    image = sitk.ReadImage(str(mask))
    new = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    if new.GetSize() == image.GetSize():
        new.CopyInformation(image)
    for name, value in geometry.items():
        getattr(new, name)(value)
    target.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(new, str(target), useCompression=True)
    return target


def test_own_masks_give_the_same_figures(segmented: tuple[Path, Path], light: Path, tmp_path: Path) -> None:
    source, masks = segmented
    out = tmp_path / "out"
    hemseg_here("measure", source, masks, out, "--weights", light, "--report", "--overlay")
    (segment,), (measure,) = table(masks / "summary.csv"), table(out / "summary.csv")
    same = ("case", "status", "volume_ml", "lesions", "largest_ml", "largest_abc2_ml", "largest_a_cm", "warnings",
            "implausible", "mask_sha256")  # fmt: skip
    assert {name: measure[name] for name in same} == {name: segment[name] for name in same}
    assert measure["scan"].split()[0] == segment["scan"].split()[0]
    assert (out / measure["mask"]).resolve() == masks / "sub" / "case.nii.gz"
    ours, theirs = table(masks / "lesions.csv"), table(out / "lesions.csv")
    without = {"probability_mean": "", "probability_max": ""}
    assert len(theirs) == len(ours) > 0
    assert theirs == [line | without for line in ours]
    made, given = (json.loads((folder / "sub" / "case" / "report.json").read_text()) for folder in (masks, out))
    assert (made["mask"], given["mask"]) == ("made", "given")
    for lesion in made["lesions"]:
        del lesion["probability_mean"], lesion["probability_max"]
    assert given["lesions"] == made["lesions"]
    assert {path.name for path in (out / "sub").iterdir()} == {"case", "case.png"}
    said = hemseg_here("measure", source, masks, out, "--weights", light, "--report", "--overlay").stderr
    assert "1 of 1 scans were done before" in said


def test_an_edited_mask(segmented: tuple[Path, Path], light: Path, tmp_path: Path) -> None:
    source, masks = segmented
    scan, mask = source / "sub" / "case.nii.gz", masks / "sub" / "case.nii.gz"

    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = np.zeros_like(voxels)
        voxels[8, 40:44, 40:45] = 2
        voxels[9, 40:44, 40:45] = 7
        voxels[3, 50, 50] = 7  # a single voxel counts, too
        return voxels

    new = edited(mask, tmp_path / "edited.nrrd", change)
    before = new.read_bytes()
    voxel_ml = read(scan).voxel_ml
    for label, voxels, lesions in ((0, 41, 2), (7, 21, 2), (5, 0, 0)):
        done = hemseg_here("measure", scan, new, tmp_path / "out", "--label", label, "--weights", light, "--json")
        (row,) = json.loads(done.stdout)
        assert float(row["volume_ml"]) == pytest.approx(voxels * voxel_ml, abs=1e-3)
        assert int(row["lesions"]) == lesions == len(table(tmp_path / "out" / "lesions.csv"))
        assert ("holds no label 5, but 2, 7." in row["warnings"]) == (label == 5)
    assert new.read_bytes() == before


def test_masks_of_other_grids_are_refused(segmented: tuple[Path, Path], tmp_path: Path) -> None:
    source, masks = segmented
    volume, mask = read(source / "sub" / "case.nii.gz"), masks / "sub" / "case.nii.gz"
    x, y, z = volume.spacing
    for name, change, geometry, said in (
        ("cut.mha", lambda v: v[1:], {}, "has 96 x 96 x 15 voxels, its scan 96 x 96 x 16"),
        ("scaled.mha", lambda v: v, {"SetSpacing": (x, y, z * 1.01)}, "does not lie on the grid"),
        ("shifted.mha", lambda v: v, {"SetOrigin": (volume.origin[0] + x, *volume.origin[1:])}, "up to 2.4 mm away"),
        ("soft.mha", lambda v: v * np.float32(0.7), {}, "other values than labels"),
        ("negative.mha", lambda v: v.astype(np.int16) - 1, {}, "other values than labels"),
    ):
        with pytest.raises(HemsegError, match=said):
            read_given_mask(edited(mask, tmp_path / name, change, **geometry), volume)
    (tmp_path / "mask.dcm").write_bytes(b"")
    with pytest.raises(HemsegError, match="is DICOM; give a mask in"):
        read_given_mask(tmp_path / "mask.dcm", volume)


def test_the_same_grid_in_another_order_of_axes(segmented: tuple[Path, Path], tmp_path: Path) -> None:
    """Some editors save left to right what came right to left; and round the header."""
    source, masks = segmented
    volume, path = read(source / "sub" / "case.nii.gz"), masks / "sub" / "case.nii.gz"
    mask = sitk.ReadImage(str(path))
    turned = sitk.DICOMOrient(mask, "RSP")
    assert turned.GetDirection() != mask.GetDirection()
    turned.SetOrigin([round(v, 2) for v in turned.GetOrigin()])
    sitk.WriteImage(turned, str(tmp_path / "turned.mha"))
    found, said = read_given_mask(tmp_path / "turned.mha", volume)
    assert np.array_equal(found, sitk.GetArrayFromImage(mask))
    assert said == ""


def test_every_scan_needs_one_mask(segmented: tuple[Path, Path], light: Path, tmp_path: Path) -> None:
    source, masks = segmented
    scans = Path(shutil.copytree(source, tmp_path / "scans"))
    shutil.copy(scans / "sub" / "case.nii.gz", scans / "other.nii.gz")
    shutil.copy(scans / "sub" / "case.nii.gz", scans / "third.nii.gz")
    own = tmp_path / "scans" / "masks"  # among the scans
    for name in ("sub/case.mha", "third.mha", "third.nrrd"):
        edited(masks / "sub" / "case.nii.gz", own / name, lambda v: v)
    done = hemseg_here("measure", scans, own, tmp_path / "out", "--weights", light, check=1)
    assert "other.nii.gz: there is no mask for it" in done.stderr
    assert "third.nii.gz: has several masks" in done.stderr
    rows = {row["case"]: row["status"] for row in table(tmp_path / "out" / "summary.csv")}
    assert rows == {"sub/case.nii.gz": "done", "other.nii.gz": "failed", "third.nii.gz": "failed"}
    for arguments, said in (
        ((scans, scans, tmp_path / "out2"), "holds scans and masks"),
        ((scans, own, own), "give another folder for the tables"),
        ((scans, tmp_path / "none", tmp_path / "out2"), "no such file or folder of masks"),
        ((scans, own / "third.mha", tmp_path / "out2"), "is one mask, but"),
        ((scans, own, tmp_path / "out.csv.mha"), "give a folder for the tables"),
    ):
        assert said in hemseg_here("measure", *arguments, check=1).stderr


def test_a_given_mask_has_no_probability(bleed_scan: Path) -> None:
    from dataclasses import replace

    from hemseg.manifest import Manifest, default_weights
    from hemseg.measure import measure
    from hemseg.preprocessing import working_image

    volume: Volume = read(bleed_scan)
    working = working_image(volume, replace(Manifest.read(default_weights()).preprocessing, in_plane_mm=4.0))
    result = measure(volume, np.zeros(volume.hu.shape, np.uint8), working)
    assert (result.volume_ml, result.lesions, result.measured) == (0, (), ())
    with pytest.raises(HemsegError, match="has no probability"):
        _ = result.probability
