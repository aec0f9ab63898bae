"""DICOM SEG and SR together: what the report says is what the segmentation holds."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from conftest import hemseg_here
from helpers.series import write_series
from pydicom.sr.codedict import codes

from hemseg.components import numbered_components
from hemseg.dicom.reading import read_series, sources_of
from hemseg.dicom_out.sr import NOTICE, write_segmentation_and_report
from hemseg.lesions import measured_lesions
from hemseg.model import load
from hemseg.segmentation import Segmentation, segment
from training.data.phantom import Phantom

FREE_TEXT = {
    "InstitutionName": "Secret Hospital", "StudyDescription": "secret study", "AdmittingDiagnosesDescription": "secret",
    "PatientComments": "secret comment", "ReferringPhysicianName": "Secret^Doctor", "StationName": "SECRET1",
}  # fmt: skip


@pytest.fixture(scope="module")
def series(bleed: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sr") / "series"
    write_series(folder, bleed.volume, **FREE_TEXT, PatientID="ID7", StudyDate="20260102", AccessionNumber="A1")
    return folder


@pytest.fixture(scope="module")
def result(series: Path, light: Path) -> Segmentation:
    volume = read_series(sources_of(series), series)
    return segment(volume, load(light, "cpu"))


def written(result: Segmentation, folder: Path) -> tuple[hd.seg.Segmentation, hd.sr.ComprehensiveSR]:
    write_segmentation_and_report(result, folder / "seg.dcm", folder / "sr.dcm")
    return hd.seg.segread(folder / "seg.dcm"), hd.sr.srread(folder / "sr.dcm")


def values(group: hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations) -> dict[str, float]:
    return {one.name.meaning: one.value for one in group.get_measurements()}


def presence(group: hd.sr.MeasurementsAndQualitativeEvaluations) -> hd.sr.CodedConcept:
    (evaluation,) = group.get_qualitative_evaluations(name=codes.DCM.PresenceOfProperty)
    return evaluation.value


def test_the_report_says_what_the_segmentation_holds(result: Segmentation, tmp_path: Path) -> None:
    segmentation, report = written(result, tmp_path)
    lesions = measured_lesions(result.mask, result.volume, result.working, result.working_probability)
    assert len(lesions) >= 2
    assert segmentation.number_of_segments == len(lesions)
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(lesions)
    labels, _ = numbered_components(result.mask)
    assert np.array_equal(labels > 0, result.mask > 0)
    for number, (group, lesion) in enumerate(zip(groups, lesions, strict=True), start=1):
        assert group.referenced_segment.referenced_sop_instance_uid == segmentation.SOPInstanceUID
        assert group.referenced_segment[0].referenced_segment_numbers == [number]
        voxels = (labels == number).sum()
        said = values(group)
        assert said["Volume"] == pytest.approx(voxels * result.volume.voxel_ml, abs=1e-3)
        assert said["Volume of ellipsoid"] == pytest.approx(lesion.abc2.volume_ml, abs=1e-3)
        assert said["Attenuation Coefficient"] == pytest.approx(lesion.lesion.mean_hu, abs=1e-3)
        segment_voxels = segmentation.get_pixels_by_source_instance(
            [i.get("SOPInstanceUID") for i in result.volume.stack.series.instances],
            segment_numbers=[number], assert_missing_frames_are_empty=True,
        ).sum()  # fmt: skip
        assert segment_voxels == voxels
        site = group.finding_sites[0]
        expected = {"left": codes.SCT.Left, "right": codes.SCT.Right}.get(lesion.lesion.side)
        assert site.laterality == expected
    assert len({lesion.lesion.side for lesion in lesions} & {"left", "right"}) >= 1
    (whole,) = report.content.get_image_measurement_groups()
    assert values(whole)["Volume"] == pytest.approx(result.volume_ml, abs=1e-3)
    assert presence(whole) == codes.DCM.Present
    assert report.StudyInstanceUID == segmentation.StudyInstanceUID


def test_nothing_found_is_said(result: Segmentation, tmp_path: Path) -> None:
    empty = replace(result, mask=np.zeros_like(result.mask), lesions=(), volume_ml=0.0)
    segmentation, report = written(empty, tmp_path)
    assert segmentation.number_of_segments == 1
    assert not segmentation.pixel_array.any()
    assert not report.content.get_volumetric_roi_measurement_groups()
    (whole,) = report.content.get_image_measurement_groups()
    assert values(whole) == {"Volume": 0}
    assert presence(whole) == codes.DCM.Absent
    assert whole.source_images[0].referenced_sop_instance_uid == segmentation.SOPInstanceUID
    texts = [item for item in whole[0].ContentSequence if item.ValueType == "TEXT"]
    comments = [item.TextValue for item in texts if item.name == codes.DCM.Comment]
    assert comments[0] == "No hemorrhage was found."
    assert comments[-1] == NOTICE


def test_where_a_slice_is_doubtful_hemorrhage_is_not_called_absent(result: Segmentation, tmp_path: Path) -> None:
    volume = replace(result.volume, warnings=("Look at slice 4.",))
    empty = replace(
        result, mask=np.zeros_like(result.mask), lesions=(), volume_ml=0.0, doubtful_slices=(3,), volume=volume
    )
    _, report = written(empty, tmp_path)
    (whole,) = report.content.get_image_measurement_groups()
    assert values(whole) == {"Volume": 0}
    assert not whole.get_qualitative_evaluations(name=codes.DCM.PresenceOfProperty)
    texts = [item for item in whole[0].ContentSequence if item.ValueType == "TEXT"]
    comments = [item.TextValue for item in texts if item.name == codes.DCM.Comment]
    assert comments == ["Look at slice 4.", NOTICE]


def test_no_free_text_is_carried(result: Segmentation, tmp_path: Path) -> None:
    segmentation, report = written(result, tmp_path)
    assert (report.PatientID, report.StudyDate, report.AccessionNumber) == ("ID7", "20260102", "A1")
    for name in ("seg.dcm", "sr.dcm"):
        content = (tmp_path / name).read_bytes().lower()
        assert content.count(b"secret") == 1  # the referring physician, whom the standard wants
    assert segmentation.PatientID == "ID7"


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is not installed (Debian: dicom3tools)")
def test_dciodvfy_finds_no_error(result: Segmentation, tmp_path: Path) -> None:
    empty = replace(result, mask=np.zeros_like(result.mask), lesions=(), volume_ml=0.0)
    for name, one in (("full", result), ("empty", empty)):
        written(one, tmp_path / name)
        for file in ("seg.dcm", "sr.dcm"):
            done = subprocess.run(["dciodvfy", tmp_path / name / file], capture_output=True, text=True, check=False)
            errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
            assert not errors, (name, file)


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="dsrdump is not installed (Debian: dcmtk)")
def test_dsrdump_reads_the_report(result: Segmentation, tmp_path: Path) -> None:
    written(result, tmp_path)
    shown = subprocess.run(["dsrdump", tmp_path / "sr.dcm"], capture_output=True, text=True, check=True).stdout
    assert "Imaging Measurement Report" in shown
    assert shown.count("Volume of ellipsoid") == len(result.lesions)


def test_the_command_writes_both(series: Path, light: Path, tmp_path: Path) -> None:
    words = ("segment", series, tmp_path / "out", "--format", "dicom", "--weights", light, "--device", "cpu")
    hemseg_here(*words)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.dcm")) == ["series.dcm", "series_sr.dcm"]
    assert "were done before" in hemseg_here(*words).stderr
