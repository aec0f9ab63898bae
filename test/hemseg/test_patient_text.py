"""What a DICOM SEG and its SR keep of the patient: what the standard needs, and no free text."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import hemseg_here
from helpers.series import write_enhanced, write_series
from pydicom import dcmread
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset

from hemseg.dicom_out.seg import _GROUPS, KEPT_OF_PATIENT
from training.data.phantom import Phantom

TEXT = ("LO", "LT", "ST", "UT", "UC", "SH", "PN")
NEEDED = {"PatientName": "Doe^Jane", "PatientID": "12345", "PatientBirthDate": "19010203", "PatientSex": "F",
          "StudyID": "7", "AccessionNumber": "A1", "StudyDate": "20200101", "StudyTime": "101010",
          "ReferringPhysicianName": "Ref^Erring"}  # fmt: skip


@pytest.mark.parametrize("enhanced", [False, True])
def test_no_free_text_of_the_patient_is_kept(bleed: Phantom, tmp_path: Path, light: Path, enhanced: bool) -> None:
    """Whatever text a header may hold of patient, study, visit, request and trial, alone or in a sequence."""
    texts: dict[str, object] = {
        keyword: "Secret"
        for tag, (vr, _, _, _, keyword) in DicomDictionary.items()
        if tag >> 16 in _GROUPS and vr in TEXT and keyword and keyword not in KEPT_OF_PATIENT
    }
    assert {"PatientComments", "AdditionalPatientHistory", "StudyDescription", "Occupation"} <= set(texts)
    inner = Dataset()
    inner.CodeMeaning = inner.PatientID = "Secret"
    for keyword in ("OtherPatientIDsSequence", "ProcedureCodeSequence", "RequestAttributesSequence"):
        texts[keyword] = [inner]
    texts |= {"PatientAge": "077Y", "PatientWeight": 77.5}
    study = tmp_path / "study"
    if enhanced:
        write_enhanced(study / "all.dcm", bleed.volume, **texts, **NEEDED)
    else:
        write_series(study, bleed.volume, **texts, **NEEDED)
    hemseg_here("segment", study, tmp_path / "out", "--format", "dicom", "--weights", light)
    source = dcmread(next(study.iterdir()))
    written = {path.name: dcmread(path) for path in (tmp_path / "out").glob("*.dcm")}
    assert {made.Modality for made in written.values()} == {"SEG", "SR"}
    for name, made in written.items():
        assert b"Secret" not in (tmp_path / "out" / name).read_bytes()
        assert {name: str(made[name].value) for name in NEEDED} == NEEDED
        assert made.StudyInstanceUID == source.StudyInstanceUID
        assert "PatientAge" not in made
        assert "PatientWeight" not in made
    assert written["study.dcm"].FrameOfReferenceUID == source.FrameOfReferenceUID
