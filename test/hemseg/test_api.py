from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, same_geometry
from helpers.series import write_series

import hemseg
from hemseg.api import _to_volume
from hemseg.volume import Volume

SCAN = ROOT / "test" / "cases" / "phantom-lobar.mha"
NOISE = np.random.default_rng(0).normal(0, 100, (4, 6, 8)).astype(np.float32)
LEANING = np.diag([1.0, 1, 5, 1]) + np.diag([0, 1.3, 0], 1)


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
        (np.zeros((4, 5)), {"spacing": (1, 1, 1)}, "not a volume"),
        (np.zeros((3, 4, 5)), {"spacing": (1, 0, 1)}, "positive"),
        (np.full((3, 4, 5), np.nan), {"spacing": (1, 1, 1)}, "NaN"),
        (np.array([[["a"]]]), {"spacing": (1, 1, 1)}, "not a volume"),
        (SCAN, {"spacing": (1, 1, 1)}, "has its own"),
        ("missing.nii.gz", {}, "no such file"),
        (sitk.Image(4, 4, sitk.sitkInt16), {}, "3D"),
        (sitk.Cast(sitk.Image([3, 4, 5], sitk.sitkUInt8), sitk.sitkLabelUInt8), {}, "3D of type label of 8-bit"),
        (sitk.Image([3, 4, 5], sitk.sitkComplexFloat32), {}, "3D of type complex"),
        (sitk.Image([3, 4, 5], sitk.sitkVectorFloat32), {}, "3D of type vector"),
        (sitk.Image([0, 0, 0], sitk.sitkInt16), {}, "holds no voxels"),
        (Volume(NOISE[0]), {}, r"shape \(6, 8\) and type float32 is not a volume"),
        (Volume(NOISE[:0]), {}, "holds no voxels"),
        (Volume(NOISE + 1j), {}, "type complex64 is not a volume"),
        (Volume(NOISE.tolist()), {}, "hu of a Volume is an array .* not a list"),  # type: ignore[arg-type]
        (Volume(NOISE, (1, 1)), {}, r"spacing \(1, 1\) is not three positive"),  # type: ignore[arg-type]
        (Volume(NOISE, (1, 1, np.nan)), {}, "nan\\) is not three positive"),
        (Volume(NOISE, None), {}, "spacing None is not three positive"),  # type: ignore[arg-type]
        (Volume(NOISE, origin=(0, 0, np.inf)), {}, "origin .* is not three numbers of mm"),
        (Volume(NOISE, origin=(0, 0)), {}, "origin .* is not three numbers of mm"),  # type: ignore[arg-type]
        (Volume(NOISE, direction=(1, 0, 0, 1)), {}, "direction .* is not nine numbers"),
        (Volume(NOISE, path=3), {}, "path of a Volume is the path of a file, not a int"),  # type: ignore[arg-type]
        (np.zeros((3, 4, 5)), {"spacing": (10**400, 1, 1)}, "not three positive numbers"),
        (SCAN, {"weights": "missing"}, "missing"),
        (SCAN.read_bytes, {}, "method is not a scan"),
        ([], {}, "neither one of DICOM files nor of numbers"),
        ([SCAN], {}, "is not a DICOM file"),
        (["missing.dcm"], {}, "no such file"),
        ([[[1, 2], [3]]], {"spacing": (1, 1, 1)}, "three even dimensions"),
        (np.zeros((0, 4, 5)), {"spacing": (1, 1, 1)}, "holds no voxels"),
        (np.zeros((3, 4, 5)), {"spacing": "115"}, "not three positive numbers"),
        (np.zeros((3, 4, 5)), {"spacing": (1, 1)}, "not three positive numbers"),
        (np.zeros((3, 4, 5)), {"spacing": 5}, "not three positive numbers"),
        (np.ma.masked_less(np.arange(60.0).reshape(3, 4, 5), 5), {"spacing": (1, 1, 1)}, "masked"),
        (np.zeros((3, 4, 5), bool), {"spacing": (1, 1, 1)}, "not a volume"),
        (nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4)), {}, "give one 3D volume"),
        (nibabel.Nifti1Image(np.zeros((1, 4, 5, 6), np.int16), np.eye(4)), {}, "give one 3D volume"),
        (nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), LEANING), {}, "the nibabel image: its header has axes"),
        (SCAN, {"device": "tpu"}, "tpu"),
        (SCAN, {"device": ["cpu"]}, "device is a text, not a list"),
        (SCAN, {"operating_point": ["sensitive"]}, "operating_point is a text, not a list"),
        (SCAN, {"series": b"2"}, "series is a text, not a bytes"),
        (SCAN, {"weights": 3}, "weights is the path of a folder, not a int"),
        ("", {}, "an empty path is no scan"),
        ("x" * 300, {}, "no such file"),
        ("x" * 300 + ".nii.gz", {}, "no such file"),
    ],
)
def test_mistakes_are_hemseg_errors(scan: object, options: dict, said: str) -> None:
    with pytest.raises(hemseg.HemsegError, match=said):
        hemseg.segment(scan, **options)  # type: ignore[arg-type]


def test_what_has_one_meaning_is_taken(tmp_path: Path) -> None:
    """Lists, objects, tensors, text spacing; nibabel's images; paths as bytes; the files of a DICOM series."""
    hu = np.random.default_rng(0).integers(-1000, 1000, (6, 5, 4)).astype(np.int16)
    arrays: list[Any] = [hu, hu.tolist(), hu.astype(object), hu.astype(">i2"), np.asfortranarray(hu), np.ma.array(hu)]
    for array in arrays:
        volume = _to_volume(array, ("1", 1, np.float32(5)), "")
        assert np.array_equal(volume.hu, hu)
        assert volume.spacing == (1, 1, 5)
    image = nibabel.Nifti1Image(hu.transpose(2, 1, 0), np.diag([-1, -1, 5, 1]))
    nibabel.save(image, tmp_path / "a.nii.gz")
    files = write_series(tmp_path / "dicom", Volume(hu.astype(np.float32), (1, 1, 5)))
    scans: list[Any] = [image, str(tmp_path / "a.nii.gz").encode(), files, [str(f) for f in files]]
    for scan in scans:
        volume = _to_volume(scan, None, "")
        assert np.array_equal(volume.hu, hu)
        assert volume.spacing == (1, 1, 5)
    assert _to_volume(image, None, "").direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    flat = nibabel.Nifti1Image(hu[:1, :, :, None].transpose(2, 1, 0, 3), np.diag([-1, -1, 5, 1]))  # (x, y, 1, 1)
    nibabel.save(flat, tmp_path / "flat.nii")
    for scan in (flat, tmp_path / "flat.nii"):
        assert np.array_equal(_to_volume(scan, None, "").hu, hu[:1])
    given = _to_volume(Volume(hu, [1, 1, "5"], np.zeros(3), np.eye(3), "a.mha"), None, "")  # type: ignore[arg-type]
    assert given.hu.dtype == np.float32
    assert (given.spacing, given.origin, given.direction, given.path) == (
        (1, 1, 5), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1), Path("a.mha"),
    )  # fmt: skip
    read = hemseg.read(SCAN)
    assert _to_volume(read, None, "").hu is read.hu  # a scan that was read is not copied


def test_importing_costs_nothing() -> None:
    code = "import sys, hemseg; assert 'numpy' not in sys.modules and 'SimpleITK' not in sys.modules; hemseg.segment"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    with pytest.raises(AttributeError, match="nonsense"):
        hemseg.nonsense  # type: ignore[attr-defined]  # noqa: B018
