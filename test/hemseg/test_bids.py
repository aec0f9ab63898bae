"""Masks as a BIDS derivative data set."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import hemseg_here

from hemseg.bids import COLUMNS, Entities, entities_of
from hemseg.errors import HemsegError
from training.data.phantom import Phantom, write_image


@pytest.mark.parametrize(
    ("case", "expected", "mask"),
    [
        ("sub-01/anat/sub-01_ct.nii.gz", Entities("01"), "sub-01/anat/sub-01_desc-hemorrhage_mask.nii.gz"),
        (
            "x/sub-A1/ses-2/ct/sub-A1_ses-2_run-03_acq-thin_ct.nii.gz",
            Entities("A1", "2", (("acq", "thin"), ("run", "03"))),
            "sub-A1/ses-2/anat/sub-A1_ses-2_acq-thin_run-03_desc-hemorrhage_mask.nii.gz",
        ),
        ("ward/head 7.nii", Entities("wardhead7"), "sub-wardhead7/anat/sub-wardhead7_desc-hemorrhage_mask.nii.gz"),
        ("sub-09", Entities("09"), "sub-09/anat/sub-09_desc-hemorrhage_mask.nii.gz"),
    ],
)
def test_names_say_who(case: str, expected: Entities, mask: str) -> None:
    assert entities_of(Path(case)) == expected
    assert str(expected.mask) == mask


def test_a_name_without_a_letter_is_refused() -> None:
    with pytest.raises(HemsegError, match="label"):
        entities_of(Path("頭/部.nii.gz"))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def tree(bleed: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BIDS tree: two sessions of one subject, MR beside CT, and derivatives of somebody else's."""
    folder = tmp_path_factory.mktemp("bids") / "raw"
    for name in ("sub-01/ses-1/anat/sub-01_ses-1_ct", "sub-01/ses-2/anat/sub-01_ses-2_ct",
                 "sub-01/ses-1/anat/sub-01_ses-1_T1w", "derivatives/other/sub-01/anat/sub-01_ct"):  # fmt: skip
        write_image(bleed.volume.hu, bleed.volume, folder / f"{name}.nii.gz")
    (folder / "dataset_description.json").write_text('{"Name": "raw", "BIDSVersion": "1.10.0"}')
    return folder


@pytest.fixture(scope="module")
def derivative(tree: Path, light: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("derivative") / "hemseg"
    hemseg_here("segment", tree, target, "--bids", "--weights", light, "--device", "cpu")
    return target


def test_a_tree_becomes_a_derivative(tree: Path, derivative: Path) -> None:
    masks = sorted(derivative.rglob("*_mask.nii.gz"))
    assert [str(path.relative_to(derivative)) for path in masks] == [
        f"sub-01/ses-{n}/anat/sub-01_ses-{n}_desc-hemorrhage_mask.nii.gz" for n in (1, 2)
    ]
    rows = read_table(derivative / "hemorrhage.tsv")
    assert [(row["participant_id"], row["session_id"]) for row in rows] == [("sub-01", "ses-1"), ("sub-01", "ses-2")]
    for path, row in zip(masks, rows, strict=True):
        mask = nibabel.load(path)
        volume = float(np.asarray(mask.dataobj).sum() * np.prod(mask.header.get_zooms()) / 1000)
        assert float(row["volume_ml"]) == pytest.approx(volume, rel=1e-3)
        assert volume > 1
        sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["Type"] == "Lesion"
        session = row["session_id"]
        assert sidecar["Sources"] == [f"bids:raw:sub-01/{session}/anat/sub-01_{session}_ct.nii.gz"]
        assert mask.header["descrip"].item().decode().startswith(sidecar["Mark"])
        assert sidecar["VolumeMilliliter"] == float(row["volume_ml"])
    described = json.loads((derivative / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert (derivative / described["DatasetLinks"]["raw"]).resolve() == tree.resolve()
    assert read_table(derivative / "participants.tsv") == [{"participant_id": "sub-01", "masks": "2"}]
    assert set(COLUMNS) == set(rows[0]) == set(json.loads((derivative / "hemorrhage.json").read_text()))


def test_a_second_folder_joins_the_table(derivative: Path, bleed: Phantom, light: Path, tmp_path: Path) -> None:
    target = tmp_path / "hemseg"
    shutil.copytree(derivative, target)
    table = target / "hemorrhage.tsv"  # as it was before there were doubtful slices
    table.write_text("".join(line.rpartition("\t")[0] + "\n" for line in table.read_text().splitlines()))
    write_image(bleed.volume.hu, bleed.volume, tmp_path / "more" / "x-9.nii.gz")
    hemseg_here("segment", tmp_path / "more", target, "--bids", "--weights", light, "--device", "cpu")
    rows = read_table(target / "hemorrhage.tsv")
    assert [row["participant_id"] for row in rows] == ["sub-01", "sub-01", "sub-x9"]
    assert rows[2]["session_id"] == "n/a"
    assert {row["doubtful_slices"] for row in rows} == {"n/a"}
    (sidecar,) = (target / "sub-x9").rglob("*.json")
    assert "Sources" not in json.loads(sidecar.read_text())


def test_wrong_use_is_said(tree: Path, light: Path, tmp_path: Path) -> None:
    words = ("--bids", "--weights", light)
    assert "NIfTI" in hemseg_here("segment", tree, tmp_path / "a", "--format", "mha", *words, check=1).stderr
    assert "needs a folder" in hemseg_here("segment", tree, tmp_path / "a.nii.gz", *words, check=1).stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "participants.tsv").write_text("participant_id\nsub-1\n")
    assert "another data set" in hemseg_here("segment", tree, tmp_path / "other", *words, check=1).stderr
    only_mr = tmp_path / "mr"
    shutil.copytree(tree / "sub-01" / "ses-1", only_mr / "sub-01" / "ses-1", ignore=shutil.ignore_patterns("*_ct.*"))
    shutil.copy(tree / "dataset_description.json", only_mr)
    assert "without a CT scan" in hemseg_here("segment", only_mr, tmp_path / "b", *words, check=1).stderr
