from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import orthonormal, random_image, same_geometry
from helpers.faults import write_faulty

from hemseg.errors import HemsegError
from hemseg.folder.plan import plan_jobs
from hemseg.io.formats import SUFFIXES, mask_name
from hemseg.io.masks import write_mask
from hemseg.scan import read
from hemseg.volume import Volume


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_mask_has_the_geometry_of_its_scan_to_the_last_bit(tmp_path: Path, suffix: str) -> None:
    for seed in range(20):
        scan = tmp_path / f"scan{seed}{suffix}"
        sitk.WriteImage(random_image(seed), str(scan))
        volume = read(scan)
        mask = np.random.default_rng(seed).integers(0, 2, volume.hu.shape)
        written = write_mask(mask, volume, tmp_path / "out" / mask_name(scan))
        assert same_geometry(scan, written)
        image = sitk.ReadImage(str(written))
        assert image.GetPixelID() == sitk.sitkUInt8
        assert np.array_equal(sitk.GetArrayFromImage(image), mask)
    assert not list((tmp_path / "out").glob(".*"))


def test_nifti_header_fields_stay_bit_for_bit(tmp_path: Path) -> None:
    sitk.WriteImage(random_image(1), str(tmp_path / "scan.nii.gz"))
    image = nibabel.load(tmp_path / "scan.nii.gz")
    image.header["qform_code"], image.header["sform_code"] = 1, 4
    image.header["scl_slope"], image.header["scl_inter"] = 2.0, -1024.0
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / "scan.nii.gz")
    volume = read(tmp_path / "scan.nii.gz")
    write_mask(np.ones(volume.hu.shape), volume, tmp_path / "mask.nii.gz")
    a, b = (nibabel.load(tmp_path / name).header for name in ("scan.nii.gz", "mask.nii.gz"))
    for field in (
        "pixdim",
        "qform_code",
        "sform_code",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "qoffset_x",
        "qoffset_y",
    ):
        assert np.array_equal(a[field], b[field])
    for field in ("qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim"):
        assert np.array_equal(a[field], b[field])
    assert np.array_equal(np.unique(nibabel.load(tmp_path / "mask.nii.gz").get_fdata()), [1.0])


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(array, np.diag([1, 1, 5, 1]))
    image.header.set_slope_inter(2.0, -1024.0)
    nibabel.save(image, tmp_path / "scan.nii")
    stored = np.asarray(nibabel.load(tmp_path / "scan.nii").dataobj)
    assert np.allclose(read(tmp_path / "scan.nii").hu, stored.transpose(2, 1, 0))


@pytest.mark.parametrize("seed", range(8))
def test_lps_order_follows_the_patient(seed: int) -> None:
    direction = np.array(orthonormal(seed)).reshape(3, 3)
    volume = Volume(
        np.random.default_rng(seed).random((3, 4, 5)).astype(np.float32), (1, 2, 3), direction=tuple(direction.ravel())
    )
    array, spacing = volume.in_lps()
    assert np.array_equal(volume.from_lps(array), volume.hu)
    index = np.argwhere(array == array.max())[0], np.argwhere(array == array.min())[0]
    source = np.argwhere(volume.hu == volume.hu.max())[0], np.argwhere(volume.hu == volume.hu.min())[0]
    moved = direction @ ((source[0] - source[1])[::-1] * np.array(volume.spacing))
    # one step along an axis of the LPS array goes forward along that patient axis
    axes, _ = volume._to_lps()
    for axis in range(3):
        step = direction[:, 2 - axes[axis]] * volume.spacing[2 - axes[axis]]
        assert abs(np.linalg.norm(step) - spacing[axis]) < 1e-9
    assert np.linalg.norm((index[0] - index[1]) * spacing) == pytest.approx(np.linalg.norm(moved))


def test_axial_volume_turned_to_ras_reads_the_same() -> None:
    hu = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    turned = Volume(hu[:, ::-1, ::-1], direction=(-1, 0, 0, 0, -1, 0, 0, 0, 1))
    assert np.array_equal(turned.in_lps()[0], Volume(hu).in_lps()[0])


def test_bad_files_get_one_clear_sentence(tmp_path: Path, scan: Path) -> None:
    for name, said in write_faulty(tmp_path / "bad", scan).items():
        with pytest.raises(HemsegError) as error:
            read(tmp_path / "bad" / name)
        assert name in str(error.value)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"), [("missing.nii.gz", "no such file"), ("notes.txt", "not an image"), (".", "no DICOM files")]
)
def test_what_is_no_scan_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(HemsegError, match=said):
        read(tmp_path / name)


def test_a_mask_keeps_its_scans_format_or_is_metaimage(tmp_path: Path) -> None:
    for seed in range(20):
        for suffix in (".nii.gz", ".nrrd"):
            scan = tmp_path / f"scan{seed}{suffix}"
            sitk.WriteImage(random_image(seed), str(scan))
            volume = read(scan)
            mask = write_mask(np.ones(volume.hu.shape), volume, tmp_path / "mask.mha")
            assert same_geometry(scan, mask)
    with pytest.raises(HemsegError, match="NIfTI would round"):
        write_mask(np.zeros(volume.hu.shape), volume, tmp_path / "mask.nii.gz")
    sitk.WriteImage(random_image(0), str(tmp_path / "scan.mha"))
    with pytest.raises(HemsegError, match="is written as MetaImage; NIfTI would round"):  # before anything is read
        plan_jobs(tmp_path / "scan.mha", tmp_path / "mask.nii.gz")
    with pytest.raises(HemsegError, match="must end in"):
        write_mask(np.zeros(volume.hu.shape), volume, tmp_path / "mask.png")


def test_4d_of_one_time_point_is_a_volume(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 7, 6, 1), np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    volume = read(tmp_path / "scan.nii.gz")
    assert volume.hu.shape == (6, 7, 8)
    write_mask(np.zeros(volume.hu.shape), volume, tmp_path / "mask.nii.gz")
