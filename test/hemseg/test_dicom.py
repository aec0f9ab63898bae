"""DICOM series that are written here from a phantom, and the real one of the shared data: in, and out as DICOM SEG."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from conftest import ROOT, SHARED, dice, process
from conftest import hemseg as command
from conftest import hemseg_here as command_here
from helpers.series import write_enhanced, write_series
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

import hemseg
from hemseg.dicom.choice import choose_series as choose
from hemseg.dicom.choice import is_sharp
from hemseg.dicom.reading import find_series, read_series, sources_of
from hemseg.dicom.source import members
from hemseg.errors import HemsegError
from hemseg.folder.plan import plan_jobs
from hemseg.model import Model
from hemseg.scan import read
from hemseg.segmentation import segment
from hemseg.volume import Volume
from training.data.phantom import write_image

REAL = SHARED / "dicom-head-ge"
SAMPLE = ROOT / "test" / "cases" / "phantom-intraparenchymal.nii.gz"


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return read(SAMPLE)


SYNTAXES = {
    uid.name: uid
    for uid in (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLossless,
        JPEGLosslessSV1,
        JPEGLSLossless,
        JPEG2000Lossless,
    )
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_plain_series_is_read_as_it_was_written(tmp_path: Path, phantom: Volume, syntax: str) -> None:
    written = write_series(tmp_path / "series", phantom, syntax=SYNTAXES[syntax])
    assert pydicom.dcmread(written[0]).file_meta.TransferSyntaxUID == SYNTAXES[syntax]
    (tmp_path / "series" / "README.md").write_text("not DICOM")
    volume = read(tmp_path / "series")
    assert np.array_equal(volume.hu, phantom.hu.round())
    assert volume.spacing == pytest.approx(phantom.spacing)
    assert volume.direction == (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert volume.warnings == ()
    assert volume.stack is not None
    assert np.array_equal(volume.stack.to_slices(volume.hu), volume.hu)


def test_slope_intercept_and_padding(tmp_path: Path, phantom: Volume) -> None:
    write_series(tmp_path, phantom, RescaleSlope=2, RescaleIntercept=-2048, PixelPaddingValue=24)
    hu = read(tmp_path).hu
    stored = (phantom.hu + 1024).round()
    expected = np.where(stored == 24, -1024, np.maximum(2 * stored - 2048, -1024))
    assert np.array_equal(hu, expected)
    assert (stored == 24).any()


def test_a_tilted_gantry_is_undone_and_the_mask_comes_back(tmp_path: Path, model: Model) -> None:
    """The same head, cut by upright and by leaning slices, holds the same blood."""
    phantom = read(SAMPLE)
    tilt = 15.0
    _, mm_y, mm_z = phantom.spacing
    leaning = np.zeros_like(phantom.hu)
    for k in range(len(leaning)):  # what a tilted gantry stores: each slice shifted in its own plane
        shift = (k - len(leaning) // 2) * mm_z * np.tan(np.radians(tilt)) / mm_y
        rows = np.round(np.arange(leaning.shape[1]) - shift).astype(int)
        inside = (rows >= 0) & (rows < leaning.shape[1])
        leaning[k] = -1000
        leaning[k, inside] = phantom.hu[k, rows[inside]]
    write_series(tmp_path, Volume(leaning, phantom.spacing), depth=mm_z * np.arange(len(leaning)), tilt=tilt)
    volume = read(tmp_path)
    assert any("tilted by 15.0 degrees" in said for said in volume.warnings)
    assert volume.hu.shape[1] > leaning.shape[1]
    assert volume.stack is not None
    assert np.array_equal(volume.stack.to_slices(volume.hu), leaning.round())  # whole pixels: nothing was blurred
    upright, tilted = segment(phantom, model), segment(volume, model)
    assert tilted.volume_ml == pytest.approx(upright.volume_ml, rel=0.1)
    direction = volume.cosines
    assert np.linalg.det(direction) == pytest.approx(1)


def test_uneven_gaps_are_made_even(tmp_path: Path, phantom: Volume, model: Model) -> None:
    keep = [*range(0, 10), *range(10, len(phantom.hu), 2)]  # 5 mm below, 10 mm above
    depth = np.array(keep) * phantom.spacing[2]
    write_series(tmp_path, Volume(phantom.hu[keep], phantom.spacing), depth=depth)
    volume = read(tmp_path)
    assert any("Gaps between slices go from 5.0 to 10.0 mm" in said for said in volume.warnings)
    step = volume.spacing[2]
    assert step * (len(volume.hu) - 1) == pytest.approx(depth[-1] - depth[0], abs=step / 2)
    result, whole = segment(volume, model), segment(phantom, model)
    assert result.volume_ml == pytest.approx(whole.volume_ml, rel=0.25)
    assert volume.stack is not None
    back = volume.stack.to_slices(result.mask)
    assert back.shape == (len(keep), *phantom.hu.shape[1:])
    assert dice(back, whole.mask[keep]) > 0.8


def test_odd_slices_are_told(tmp_path: Path, phantom: Volume) -> None:
    depth = phantom.spacing[2] * np.arange(len(phantom.hu))
    depth[5] = depth[4] + 0.5
    write_series(tmp_path / "near", phantom, depth=depth)
    assert any("nearly coincide" in said for said in read(tmp_path / "near").warnings)
    for path in write_series(tmp_path / "gone", phantom)[10:12]:
        path.unlink()
    assert any("others missing between them" in said for said in read(tmp_path / "gone").warnings)
    files = write_series(tmp_path / "twice", phantom)
    shutil.copy(files[3], tmp_path / "twice" / "copy.dcm")
    assert any("1 slice lies where another" in said for said in read(tmp_path / "twice").warnings)


def test_the_series_of_a_study_is_chosen_by_rule(tmp_path: Path, phantom: Volume) -> None:
    study = generate_uid()
    thick = Volume(phantom.hu[::4], phantom.spacing)
    write_series(tmp_path / "bone", phantom, study=study, SeriesNumber=1, ConvolutionKernel="H60s", SliceThickness=1)
    write_series(tmp_path / "derived", phantom, study=study, SeriesNumber=3, ImageType=["DERIVED", "SECONDARY"])
    write_series(tmp_path / "contrast", phantom, study=study, SeriesNumber=4, ContrastBolusAgent="Iomeprol")
    write_series(tmp_path / "thick", thick, study=study, SeriesNumber=5, SliceThickness=20)
    write_series(tmp_path / "soft", phantom, study=study, SeriesNumber=6)
    scout = Volume(phantom.hu[:1], phantom.spacing)
    write_series(tmp_path / "scout", scout, study=study, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    coronal = [1.0, 0, 0, 0, 0, -1.0]
    write_series(tmp_path / "coronal", phantom, study=study, SeriesNumber=8, ImageOrientationPatient=coronal)
    write_series(tmp_path / "mr", phantom, study=study, Modality="MR")
    series = find_series(sources_of(tmp_path))
    best, rule = choose(series)
    assert best.instances[0].get("SeriesNumber") == "6"
    assert "series 6" in rule
    assert choose(series, "1")[0].instances[0].get("SeriesNumber") == "1"
    assert choose(series, best.uid)[0] is best
    ends = [1, 2, 2, 4]  # a number goes before the end of a UID, and an end of several is none
    for number, end in enumerate(ends):
        uid = {"SeriesInstanceUID": f"1.{number}.{end}", "SeriesNumber": number}
        write_series(tmp_path / "numbered" / str(number), phantom, study="9.9", **uid)
    numbered = find_series(sources_of(tmp_path / "numbered"))
    assert choose(numbered, "1")[0].uid == "1.1.2"
    assert choose(numbered, "4")[0].uid == "1.3.4"
    with pytest.raises(HemsegError, match=r"series \.2 may be any of: 1\.1\.2; 1\.2\.2; give more"):
        choose(numbered, ".2")
    with pytest.raises(HemsegError, match="there is no series none"):
        choose(series, "none")  # a number could be the end of a UID
    shutil.rmtree(tmp_path / "numbered")
    assert read(tmp_path).chosen == rule
    (job,) = plan_jobs(tmp_path, tmp_path.parent / "out")
    assert job.mask.name == f"{tmp_path.name}.mha"  # one study, one mask


def test_kernels() -> None:
    sharp = (
        "BONE",
        "BONEPLUS",
        "EDGE",
        "LUNG",
        "H60s",
        "H70h",
        "Hr68f",
        "J70h",
        "['Br64d', '3']",
        "FC30",
        "FC81",
        "YB",
    )
    assert all(is_sharp(name) for name in sharp)
    soft = ("STANDARD", "STD+", "SOFT", "BRAIN", "H31s", "Hr40f", "J40s", "FC21", "FC64", "UB", "", "['Hr36', '2']")
    assert not any(is_sharp(name) for name in soft)


def test_enhanced_ct_is_what_its_slices_are(tmp_path: Path, phantom: Volume, model: Model) -> None:
    """One file, frames in any order: the same volume, warnings and mask as of the slices in files of their own."""
    depth = phantom.spacing[2] * np.arange(len(phantom.hu))
    depth[15:] += 3.0
    shuffled = np.random.default_rng(0).permutation(len(phantom.hu))
    write_series(tmp_path / "classic", phantom, depth=depth, tilt=15.0)
    write_enhanced(tmp_path / "enhanced" / "all.dcm", phantom, shuffled, depth=depth, tilt=15.0)
    classic, enhanced = read(tmp_path / "classic"), read(tmp_path / "enhanced")
    assert np.array_equal(enhanced.hu, classic.hu)
    assert (enhanced.spacing, enhanced.direction) == (classic.spacing, classic.direction)
    assert enhanced.origin == pytest.approx(classic.origin)
    assert enhanced.warnings == classic.warnings != ()
    assert "28 slices, 5 mm, kernel H31s" in enhanced.chosen.replace(".0 mm", " mm")

    result = segment(enhanced, model)
    path = result.save(tmp_path / "mask.dcm")
    mask = hd.seg.segread(path)
    source = pydicom.dcmread(tmp_path / "enhanced" / "all.dcm")
    found = mask.get_pixels_by_source_frame(
        source.SOPInstanceUID, list(range(1, 29)), segment_numbers=[1], ignore_spatial_locations=True
    )[..., 0]
    assert classic.stack is not None
    assert found.any()
    assert np.array_equal(found, classic.stack.to_slices(segment(classic, model).mask)[shuffled])


def test_enhanced_ct_beside_other_series(tmp_path: Path, phantom: Volume) -> None:
    """Each file is a series by itself; localizers, other classes and files without a scale are not taken."""
    study = generate_uid()
    write_enhanced(tmp_path / "a.dcm", Volume(phantom.hu[:8], phantom.spacing), study=study, SeriesInstanceUID="1.2")
    write_enhanced(tmp_path / "b.dcm", phantom, study=study, SeriesInstanceUID="1.2")
    write_series(tmp_path / "bone", phantom, study=study, ConvolutionKernel="H60s")
    volume = read(tmp_path)
    assert volume.hu.shape == phantom.hu.shape
    assert volume.stack is not None
    assert volume.stack.series.paths == (tmp_path / "b.dcm",)
    write_enhanced(tmp_path / "unscaled" / "c.dcm", phantom, RescaleSlope=None)
    with pytest.raises(HemsegError, match=r"c\.dcm: has no rescale slope"):
        read(tmp_path / "unscaled")


def damage(path: Path) -> None:
    """Letters where a header has numbers."""
    content = path.read_bytes()
    at = content.index(b"DS", content.index(b"\x20\x00\x32\x00")) + 4  # ImagePositionPatient
    path.write_bytes(content[:at] + b"x" + content[at + 1 :])


def test_a_damaged_slice_is_left_out_and_told(tmp_path: Path, phantom: Volume) -> None:
    files = write_series(tmp_path / "series", phantom)
    damage(files[7])
    damage(files[20])
    volume = read(tmp_path / "series")
    named = [said for said in volume.warnings if "2 DICOM files could not be read" in said]
    assert "008.dcm: its DICOM header is damaged" in named[0]
    assert any("others missing between them" in said for said in volume.warnings)
    command("segment", tmp_path, tmp_path / "out", "--report")
    report = json.loads((tmp_path / "out" / "series" / "report.json").read_text())
    assert named[0] in report["warnings"]
    assert "2 DICOM files could not be read" in (tmp_path / "out" / "summary.csv").read_text()
    for path in files:
        damage(path) if path not in (files[7], files[20]) else None
    with pytest.raises(HemsegError, match=r"001\.dcm: its DICOM header is damaged"):
        read(tmp_path / "series")


def test_a_folder_with_one_series_gets_a_mask_of_the_name_given(tmp_path: Path, phantom: Volume, light: Path) -> None:
    write_series(tmp_path / "series", phantom)
    mask = tmp_path / "mask.nii.gz"
    command_here("segment", tmp_path / "series", mask, "--weights", light)
    assert mask.is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.nii.gz", "series"]
    assert read(mask).hu.shape == phantom.hu.shape


def test_damaged_enhanced_ct_gets_a_sentence(tmp_path: Path, phantom: Volume) -> None:
    write_enhanced(tmp_path / "a.dcm", phantom)
    damage(tmp_path / "a.dcm")
    with pytest.raises(HemsegError, match=r"a\.dcm: its DICOM header is damaged"):
        read(tmp_path / "a.dcm")
    write_enhanced(tmp_path / "b.dcm", phantom)
    dataset = pydicom.dcmread(tmp_path / "b.dcm")
    dataset.NumberOfFrames = 27
    dataset.save_as(tmp_path / "b.dcm")
    with pytest.raises(HemsegError, match=r"describes 28 frames and claims to have 27"):
        read(tmp_path / "b.dcm")


def test_files_of_many_slices_that_are_no_enhanced_ct_are_named(tmp_path: Path, phantom: Volume) -> None:
    write_series(tmp_path / "study", phantom, NumberOfFrames=28)
    assert "not enhanced CT" in command("segment", tmp_path / "study", tmp_path / "out", check=1).stderr
    with pytest.raises(
        HemsegError, match=r"study: holds no CT .*: 28 files with many slices in one file .*convert it to NIfTI"
    ):
        read(tmp_path / "study")
    write_image(phantom.hu, phantom, tmp_path / "study" / "other.nii.gz")
    assert [job.case.name for job in plan_jobs(tmp_path / "study", tmp_path / "out")] == ["other.nii.gz"]


def test_nobody_is_told_who_the_patient_is(tmp_path: Path, phantom: Volume) -> None:
    """Reports, tables, pictures and what is printed: names, numbers and dates of birth stay in the DICOM files."""
    secret = {"PatientName": "Doe^Secret", "PatientID": "SecretNumber", "PatientBirthDate": "19010203"}
    write_series(tmp_path / "in" / "study", phantom, **secret)
    done = command("segment", tmp_path / "in", tmp_path / "out", "--report", "--overlay", "--verbose", "--json")
    texts = [done.stdout.encode(), done.stderr.encode()]
    texts += [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(texts) >= 8
    for text in texts:
        assert b"Secret" not in text
        assert b"19010203" not in text


def test_zip(tmp_path: Path, phantom: Volume) -> None:
    files = write_series(tmp_path / "series", phantom)
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in files:
            archive.write(path, f"../../{path.name}")  # names that would leave the folder are never unpacked
        archive.writestr("README", "not DICOM")
    assert len(members(tmp_path / "study.zip")) == len(files)
    assert np.array_equal(read(tmp_path / "study.zip").hu, phantom.hu.round())
    (tmp_path / "bad.zip").write_bytes(b"PK no archive")
    with pytest.raises(HemsegError, match=r"bad\.zip: cannot be read as a zip archive"):
        read(tmp_path / "bad.zip")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"RescaleIntercept": None}, "no rescale slope and intercept"),
        ({"PixelData": b"\0" * 10}, "cannot be decoded"),
        ({"PixelSpacing": [0.0, 1.0]}, "pixel size"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "28 slices at one and the same position"),
        ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.9, 0]}, "perpendicular"),
        ({"Modality": "MR"}, "there are: none"),
        ({"ImagePositionPatient": None}, "28 slices without ImagePositionPatient"),
    ],
)
def test_bad_series_get_a_sentence(tmp_path: Path, phantom: Volume, header: dict, said: str) -> None:
    write_series(tmp_path / "series", phantom, **header)
    with pytest.raises(HemsegError, match=said) as error:
        read(tmp_path / "series")
    assert str(tmp_path / "series") in str(error.value)


def test_dicom_segmentation(tmp_path: Path, phantom: Volume, model: Model) -> None:
    depth = phantom.spacing[2] * np.arange(len(phantom.hu))
    depth[15:] += 3.0
    files = write_series(tmp_path / "series", phantom, depth=depth)
    result = segment(read(tmp_path / "series"), model)
    path = result.save(tmp_path / "mask.dcm")
    read_back = hd.seg.segread(path)
    uids = [pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID for p in files]
    assert read_back.SegmentationType == "BINARY"
    frames = read_back.get_pixels_by_source_instance(uids, segment_numbers=[1], ignore_spatial_locations=True)
    assert result.volume.stack is not None
    assert np.array_equal(frames[..., 0], result.volume.stack.to_slices(result.mask))
    assert frames.any()
    code = read_back.get_segment_description(1).segmented_property_type
    assert (code.value, code.scheme_designator) == ("1386000", "SCT")
    if validator := shutil.which("dciodvfy"):
        done = subprocess.run([validator, str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in done.stdout + done.stderr, done.stderr


def test_an_empty_segmentation_is_valid(tmp_path: Path, model: Model) -> None:
    healthy = read(ROOT / "test" / "cases" / "phantom-healthy.nii.gz")
    write_series(tmp_path / "series", healthy)
    result = segment(read(tmp_path / "series"), model)
    result.mask[:] = 0
    assert not hd.seg.segread(result.save(tmp_path / "mask.dcm")).pixel_array.any()


def test_dicom_segmentations_are_of_dicom_scans(tmp_path: Path, phantom: Volume, model: Model) -> None:
    with pytest.raises(HemsegError, match="refers to DICOM slices"):
        segment(phantom, model).save(tmp_path / "mask.dcm")
    array = replace(phantom, path=None)
    with pytest.raises(HemsegError, match="but this scan has none"):
        segment(array, model).save(tmp_path / "mask.dcm")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not here")
def test_the_real_series(tmp_path: Path) -> None:
    """A GE head with 18.5 degrees of tilt and gaps of 1 to 7 mm."""
    volume = read_series(sources_of(REAL), REAL)
    assert any("tilted by 18.5 degrees" in said for said in volume.warnings)
    assert any("nearly coincide" in said for said in volume.warnings)
    assert volume.stack is not None
    assert volume.stack.to_slices(volume.hu).shape == (28, 512, 512)
    for form, name in (("nii.gz", "series.nii.gz"), ("dicom-seg", "series.dcm")):
        call = ["-m", "hemseg.cli", "segment", REAL, tmp_path / form, "--format", form, "--report", "--quiet"]
        done = subprocess.run([sys.executable, *map(str, call)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / form / name).is_file()
        assert (tmp_path / form / "series" / "report.html").is_file()
    assert hemseg.read(tmp_path / "nii.gz" / "series.nii.gz").hu.shape == volume.hu.shape


def test_the_container_reads_studies_beside_images(tmp_path: Path, phantom: Volume, model: Model) -> None:
    """The log counts what gets a mask as a scan: the image and both studies."""
    source = tmp_path / "in"
    write_series(source / "study one" / "series", phantom)
    write_series(source / "study two", phantom)
    shutil.copy(SAMPLE, source / "image.nii.gz")
    (source / "study one" / "README").write_text("not DICOM")
    done = process("--input", source, "--output", tmp_path / "out")
    assert "mode legacy, 3 scans, 56 DICOM files" in done.stdout
    masks = tmp_path / "out" / "images"
    assert sorted(p.name for p in masks.iterdir()) == ["image.nii.gz", "series.mha", "study two.mha"]
    expected = segment(read(source / "study two"), model).mask
    assert expected.any()
    assert all(np.array_equal(read(masks / name).hu, expected) for name in ("series.mha", "study two.mha"))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {r["inputs"][0]["filename"]: r["outputs"][0]["filename"] for r in results} == {
        "image.nii.gz": "image.nii.gz", "series": "series.mha", "study two": "study two.mha",
    }  # fmt: skip


def test_a_study_in_the_input_folder_itself(tmp_path: Path, phantom: Volume) -> None:
    write_series(tmp_path / "input", phantom)
    process("--input", tmp_path / "input", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "images" / "input.mha").is_file()


def test_the_container_names_what_it_cannot_read(tmp_path: Path, phantom: Volume) -> None:
    """Two studies of one name, a series without a scale, DICOM that is no CT: sentences, and the rest is done."""
    source = tmp_path / "in"
    for place in ("a", "b"):
        write_series(source / place / "same", phantom)
    write_series(source / "unscaled", phantom, RescaleSlope=None)
    write_series(source / "good", phantom)
    done = process("--input", source, "--output", tmp_path / "out", check=1)
    assert "would write the same same.mha" in done.stderr
    assert "no rescale slope" in done.stderr
    assert [p.name for p in (tmp_path / "out" / "images").iterdir()] == ["good.mha"]
    write_series(tmp_path / "mr", phantom, Modality="MR")
    done = process("--input", tmp_path / "mr", "--output", tmp_path / "none", check=1)
    assert "no CT slices" in done.stderr
