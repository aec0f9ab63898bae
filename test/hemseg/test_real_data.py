"""Real head CT, where it lies beside the project (see the README of that folder); skipped elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHARED, dice, same_geometry

from hemseg.io.images import from_itk
from hemseg.model import Model
from hemseg.preprocessing import working_image
from hemseg.scan import read
from hemseg.segmentation import segment
from training.data.datasets import load_dataset
from training.data.references import read_reference

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")


def test_hemorrhage_of_validation_patients_is_found(model: Model, tmp_path: Path) -> None:
    cases = load_dataset(SHARED / "phe-sich").part("val")[:4]
    scores = []
    for case in cases:
        volume = read(case.image)
        result = segment(volume, model)
        assert case.reference is not None
        scores.append(dice(result.mask, read_reference(case.reference)))
        assert same_geometry(case.image, result.save(tmp_path / case.image.name))
    assert np.mean(scores) > 0.6


def test_stripping_keeps_the_reference(model: Model) -> None:
    for case in load_dataset(SHARED / "phe-sich").part("val")[:4]:
        assert case.reference is not None
        working = working_image(read(case.image), model.manifest.preprocessing)
        reference = working.grid.from_scan(read_reference(case.reference).astype(np.float32))
        assert reference[working.intracranial].sum() > 0.99 * reference.sum()


def test_a_vault_and_a_whole_head_in_full_hu(model: Model, tmp_path: Path) -> None:
    vault = segment(read(SHARED / "cranium" / "cranium.nii.gz"), model)
    assert same_geometry(SHARED / "cranium" / "cranium.nii.gz", vault.save(tmp_path / "cranium.nii.gz"))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(SHARED / "dicom-head-ge" / "series"))
    head = segment(from_itk(sitk.ReadImage(names)), model)
    for result in (vault, head):
        assert result.mask.shape == result.volume.hu.shape
        assert result.volume_ml < 1.5  # nobody knows of a bleed in them
    assert not head.working.intracranial[:3, 80:120, 70:100].any()  # the face's muscles
