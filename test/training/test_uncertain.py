"""Which scans to label next."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import COARSE, training
from onnx import numpy_helper

from hemseg.errors import HemsegError
from hemseg.manifest import Manifest
from hemseg.preprocessing import Settings, working_image
from training.data.phantom import make_phantom, write_image
from training.evaluation.uncertain import CommitteeAnswers, disagreement_scores, scans_in, shown_slices


def test_scans_are_ranked_by_all_criteria_alike() -> None:
    rows = [
        {"mirrored_ml": 1.0, "disputed_slices": 0.1},
        {"mirrored_ml": 900.0, "disputed_slices": 0.3},
        {"mirrored_ml": 2.0, "disputed_slices": 0.2},
    ]
    assert disagreement_scores(rows).tolist() == [0.0, 1.0, 0.5]
    assert disagreement_scores(rows[:1]).tolist() == [1.0]
    assert len(disagreement_scores([])) == 0


def test_disagreement_is_in_ml_and_slices() -> None:
    volume = make_phantom(1, (), replace(COARSE, shape=(6, 48, 48), spacing=(4.8, 4.8, 10.0))).volume
    working = working_image(volume, Settings(in_plane_mm=4.8, slice_mm=10.0))
    one = np.zeros(working.hu.shape, np.float32)
    z, y, x = np.argwhere(working.intracranial)[0]
    other = one.copy()
    other[z, y, x] = 0.5
    slices = np.zeros(len(one), np.float32)
    slices[z] = 0.8
    voxel_ml = 4.8 * 4.8 * 10 / 1000
    answers = CommitteeAnswers(working, one, other, slices, second=one + 0.1)
    found = answers.disagreement()
    assert found["mirrored_ml"] == pytest.approx(0.5 * voxel_ml, rel=1e-3)
    assert found["disputed_slices"] == pytest.approx(0.8)
    assert found["second_ml"] == pytest.approx(0.1 * one.size * voxel_ml, rel=1e-3)
    assert int(answers.by_slice().argmax()) == z
    first = shown_slices(answers, 0.4, most=1)[0]
    assert list(first.outlines) == ["U-Net", "mirrored", "second"]
    assert (first.outlines["U-Net"].any(), first.outlines["mirrored"].any()) == (False, True)
    assert "classifier 0.80" in first.caption


def test_folders_without_scans_or_with_two_of_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="has no scans"):
        scans_in(tmp_path)
    for name in ("a.nii.gz", "a.mha"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(HemsegError, match="the same name"):
        scans_in(tmp_path)


def test_scans_that_training_does_without_are_not_ranked(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.nii.gz", "damaged.nii.gz"):
        (tmp_path / "images" / name).write_bytes(b"")
    (tmp_path / "left_out.txt").write_text("damaged\n")
    assert list(scans_in(tmp_path)) == ["a"]
    (tmp_path / "left_out.txt").write_text("b\n")
    with pytest.raises(HemsegError) as caught:
        scans_in(tmp_path)
    assert "names cases that are not there: b" in str(caught.value)


def test_the_command_ranks_what_can_be_read_and_writes_below_the_run_alone(light: Path, tmp_path: Path) -> None:
    """The second weights call blood what is 12 HU fainter, so a bleed of 60 HU is where the two disagree."""
    second = tmp_path / "second"
    shutil.copytree(light, second)
    network = onnx.load(str(second / "light.onnx"))
    (bias,) = (part for part in network.graph.initializer if part.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(60 * 12 / 120), "bias"))
    onnx.save(network, str(second / "light.onnx"))
    manifest = Manifest.read(second)
    replace(manifest, sha256=sha256((second / "light.onnx").read_bytes()).hexdigest()).write(second)
    for name, kinds in (("healthy", ()), ("bleed", ("intraparenchymal",))):
        phantom = make_phantom(3, kinds, COARSE)
        write_image(phantom.volume.hu, phantom.volume, tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "scans" / "broken.nii.gz").write_bytes(b"no scan")
    run = tmp_path / "run"
    arguments = ("--scans", tmp_path / "scans", "--run", run, "--weights", light, "--second", second, "--panels", 1)
    before = {path for path in tmp_path.rglob("*") if run not in path.parents}
    done = training("uncertain", *arguments, check=1)
    assert "broken.nii.gz" in done.stderr
    assert "the slice classifier is not asked" in done.stderr
    rows = list(csv.DictReader((run / "uncertain" / "ranking.csv").open()))
    assert [row["case"] for row in rows] == ["bleed", "healthy"]
    assert float(rows[0]["second_ml"]) > float(rows[1]["second_ml"])
    assert [path.name for path in (run / "uncertain").glob("*.png")] == ["001-bleed.png"]
    assert {path for path in tmp_path.rglob("*") if run not in path.parents} - before <= {run}
    assert json.loads((light / "manifest.json").read_text())["name"] == "light"
