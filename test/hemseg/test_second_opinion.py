"""What the slice classifier does not confirm is left out, and said."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import hemseg
from hemseg.errors import HemsegError
from hemseg.manifest import Manifest
from hemseg.model import load
from hemseg.preprocessing import Settings, WorkingImage
from hemseg.second_opinion import Opinion, SliceClassifier, drop_components_within, drop_unconfirmed_components
from hemseg.segmentation import postprocess
from hemseg.volume_range import volume_range
from hemseg.working_grid import WorkingGrid

NOT_ASKED = np.nan


def lesions() -> np.ndarray:
    """Three lesions: in slices 0-1, in slice 1, in slices 3-4."""
    probability = np.full((6, 8, 8), 0.1, np.float32)
    probability[0:2, 1:3, 1:3] = 0.9
    probability[1, 6, 6] = 0.8
    probability[3:5, 4:6, 4:6] = 0.7
    return probability


@pytest.mark.parametrize(
    ("opinion", "kept"),
    [
        ((0.9, 0.9, NOT_ASKED, 0.9, 0.9, NOT_ASKED), (1, 1, 1)),
        ((0.9, 0.1, NOT_ASKED, 0.1, 0.2, NOT_ASKED), (1, 0, 0)),  # one slice is enough
        ((0.1, 0.9, NOT_ASKED, NOT_ASKED, 0.1, NOT_ASKED), (1, 1, 0)),
        ((NOT_ASKED,) * 6, (1, 1, 1)),  # nobody contradicted
        ((0.1, 0.1, 0.9, NOT_ASKED, NOT_ASKED, 0.1), (0, 0, 1)),
    ],
)
def test_a_lesion_stands_where_one_of_its_slices_is_confirmed(
    opinion: tuple[float, ...], kept: tuple[int, ...]
) -> None:
    probability = lesions()
    found = drop_unconfirmed_components(probability, 0.5, np.array(opinion, np.float32), 0.3)
    here = [found[0, 1, 1] > 0.5, found[1, 6, 6] > 0.5, found[3, 4, 4] > 0.5]
    assert tuple(map(int, here)) == kept
    assert (found[probability < 0.5] == probability[probability < 0.5]).all()
    assert (probability == lesions()).all()  # what the U-Net said is not changed


@pytest.mark.parametrize(("seen", "stays"), [((0.1, 0.1, 0.1, 0.9), False), ((0.1, 0.9, 0.1, 0.1), True)])
def test_a_rim_that_reaches_into_one_more_slice_does_not_speak_for_all_of_a_lesion(
    seen: tuple[float, ...], stays: bool
) -> None:
    probability = np.zeros((4, 8, 8), np.float32)
    probability[:3, 1:7, 1:7] = 0.9
    probability[3, 1, 1:7] = 0.9
    found = drop_unconfirmed_components(probability, 0.5, np.array(seen, np.float32), 0.4)
    assert bool((found >= 0.5).any()) == stays


def test_only_slices_with_something_to_judge_are_looked_at_and_at_the_unets_level() -> None:
    inside = np.zeros((4, 40, 40), bool)
    inside[:, 10:30, 12:28] = True
    hu = np.where(inside, 20.0, -1000.0).astype(np.float32).clip(-20, 100)
    grid = WorkingGrid(hu.shape, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 1)
    working = WorkingImage(hu, inside, grid)
    probability = np.zeros(hu.shape, np.float32)
    probability[2, 20, 20] = 0.6
    seen: list[np.ndarray] = []

    def network(slices: np.ndarray) -> np.ndarray:
        seen.append(slices)
        return np.full(len(slices), 0.25, np.float32)

    settings = replace(Settings(), level_hu=32.0)
    classifier = SliceClassifier((24, 16), network)
    said = classifier.classify_marked(probability, 0.5, working, settings).probability
    assert np.isnan(said).tolist() == [True, True, False, True]
    assert said[2] == 0.25
    assert seen[0].shape == (1, 24, 16)
    assert seen[0][0, 12, 8] == pytest.approx(32)  # the brain of this scan lies at 20 HU
    assert (seen[0][0, :2] == settings.hu_range[0]).all()  # above the brain
    assert np.isnan(classifier.classify_marked(probability, 0.7, working, settings).probability).all()
    assert len(seen) == 1


LARGE, OTHER, UNMARKED = (slice(5, 15), slice(5, 15)), (slice(20, 24), slice(20, 24)), (slice(28, 30), slice(5, 7))


def two_lesions(other_hu: float, unmarked_hu: float) -> tuple[WorkingImage, np.ndarray]:
    """A scan and the U-Net's probability: a large lesion in slices 1-4, another one in slices 3-4, and what it does not
    mark in slice 3.
    """
    hu = np.full((6, 40, 30), 32.0, np.float32)
    probability = np.zeros(hu.shape, np.float32)
    for where, slices, value in ((LARGE, slice(1, 5), 85.0), (OTHER, slice(3, 5), other_hu)):
        hu[(slices, *where)] = value
        probability[(slices, *where)] = 0.9
    hu[(slice(3, 4), *UNMARKED)] = unmarked_hu
    return WorkingImage(hu, np.ones(hu.shape, bool), WorkingGrid(hu.shape, (5, 1, 1), (5, 1, 1), 1)), probability


def brightest(slices: np.ndarray) -> np.ndarray:
    """A classifier that is sure of hemorrhage from 80 HU, sees some from 60, and none below."""
    top = slices.max(axis=(1, 2))
    return np.select([top >= 80, top >= 60], [0.99, 0.6], 0.1).astype(np.float32)


@pytest.mark.parametrize("quarters", [0, 1])
@pytest.mark.parametrize(
    ("other_hu", "unmarked_hu", "unconfirmed"),
    [
        (82.0, 32.0, False),  # sure of it
        (65.0, 32.0, False),  # sees some, which goes with it
        (65.0, 66.0, True),  # what it sees is something else
        (50.0, 32.0, True),  # sees none
        (50.0, 90.0, False),  # sees much: cannot judge
    ],
)
def test_beside_a_larger_lesion_another_is_judged_alone(
    other_hu: float, unmarked_hu: float, unconfirmed: bool, quarters: int
) -> None:
    working, probability = two_lesions(other_hu, unmarked_hu)
    working.hu[4][UNMARKED] = unmarked_hu
    classifier = SliceClassifier((40, 40), brightest)
    found = classifier.unconfirmed_components(
        probability, 0.5, 0.4, 0.05, replace(working, quarters=quarters), Settings()
    )
    expected = np.zeros(probability.shape, bool)
    expected[(slice(3, 5), *OTHER)] = unconfirmed
    assert np.array_equal(found, expected)
    left = drop_components_within(probability, 0.5, found)
    assert np.array_equal(left, np.where(expected, 0, probability))
    assert (
        classifier.unconfirmed_components(probability, 0.5, 0.4, 0.2, working, Settings()).sum() == 0
    )  # too small to be judged


def test_only_what_lies_beside_a_larger_lesion_is_asked_about_again() -> None:
    asked: list[int] = []

    def network(slices: np.ndarray) -> np.ndarray:
        asked.append(len(slices))
        return brightest(slices)

    working, probability = two_lesions(65.0, 32.0)
    classifier = SliceClassifier((40, 40), network)
    alone = probability.copy()
    alone[:, *OTHER] = 0
    assert not classifier.unconfirmed_components(alone, 0.5, 0.4, 0.0, working, Settings()).any()
    apart = alone.copy()
    apart[(slice(0, 1), *OTHER)] = 0.9  # in a slice of its own
    assert not classifier.unconfirmed_components(apart, 0.5, 0.4, 0.0, working, Settings()).any()
    assert not asked
    assert not classifier.unconfirmed_components(probability, 0.5, 0.4, 0.0, working, Settings()).any()
    assert asked == [2, 2]  # two slices, without the large one and without both


def test_what_is_unseen_is_left_out_and_said(light: Path, bleed_scan: Path) -> None:
    model = load(light, "cpu")
    plain = hemseg.segment(bleed_scan, weights=light)
    probability = plain.working_probability
    assert probability is not None
    slices = np.ones(len(probability), np.float32)
    manifest = replace(model.manifest, min_slice_probability=0.3)
    for unconfirmed, ml in ((probability > 0.4, 0.0), (probability < 0, plain.volume_ml)):
        result = postprocess(plain.volume, plain.working, probability, manifest, Opinion(slices, unconfirmed))
        assert result.volume_ml == ml
        assert ("was left out" in " ".join(result.volume.warnings)) == (ml == 0)


def with_classifier(light: Path, folder: Path, logit: float) -> Path:
    """The light weights and a classifier that gives every slice the same logit."""
    shutil.copytree(light, folder)
    field = (40, 32)
    nodes = [
        helper.make_node("ReduceMean", ["slices", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "logit"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["probability"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.float32(logit), "logit"),
    ]
    given = helper.make_tensor_value_info("slices", TensorProto.FLOAT, ["n", *field])
    answer = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "same", [given], [answer], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data = model.SerializeToString()
    (folder / "classifier.onnx").write_bytes(data)
    named = {"classifier_file": "classifier.onnx", "classifier_sha256": hashlib.sha256(data).hexdigest()}
    manifest = replace(Manifest.read(folder), classifier_field=field, min_slice_probability=0.3, **named)
    replace(manifest, operating_points={"alone": {"min_slice_probability": 0.0}}).write(folder)
    return folder


def test_what_is_not_confirmed_is_left_out_and_said(light: Path, bleed_scan: Path, tmp_path: Path) -> None:
    plain = hemseg.segment(bleed_scan, weights=light)
    agrees = hemseg.segment(bleed_scan, weights=with_classifier(light, tmp_path / "agrees", 3.0))
    assert plain.volume_ml > 1
    assert (agrees.mask == plain.mask).all()
    assert agrees.volume.warnings == plain.volume.warnings
    denying = with_classifier(light, tmp_path / "denies", -3.0)
    denies = hemseg.segment(bleed_scan, weights=denying)
    assert not denies.mask.any()
    (said,) = set(denies.volume.warnings) - set(plain.volume.warnings)
    assert said.startswith(f"{plain.volume_ml:.1f} mL that the U-Net marked was left out")
    assert (denies.probability == plain.probability).all()  # the heat map shows it
    alone = hemseg.segment(bleed_scan, weights=denying, operating_point="alone")
    assert (alone.mask == plain.mask).all()
    model = load(denying, "cpu")
    assert volume_range(denies, model)[0] == 0


def test_a_classifier_that_answers_nonsense_is_an_error(light: Path, bleed_scan: Path, tmp_path: Path) -> None:
    broken = with_classifier(light, tmp_path / "broken", float("nan"))
    with pytest.raises(HemsegError, match="which are not probabilities"):
        hemseg.segment(bleed_scan, weights=broken)
    (broken / "classifier.onnx").write_bytes(b"")
    with pytest.raises(HemsegError, match=r"classifier\.onnx"):
        load(broken, "cpu")
    manifest = with_classifier(light, tmp_path / "unnamed", 0.0) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"classifier.onnx"', '""'))
    with pytest.raises(HemsegError, match="min_slice_probability needs classifier_file"):
        Manifest.read(manifest.parent)
