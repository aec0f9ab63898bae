from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from hemseg.errors import HemsegError
from hemseg.fields_of_view import fields_of_view
from hemseg.kinds import (
    CODES,
    FORMAT,
    INPUTS,
    KINDS,
    UNSURE,
    UNSURE_CODE,
    KindHead,
    classify_lesions,
    lesion_inputs,
    weighted_map_means,
)
from hemseg.lesion_features import FEATURES, lesion_features, surroundings
from hemseg.second_opinion import ClassifierOutput

MM = (5.0, 2.0, 2.0)
CHANNELS = 3


def disc(radius: float, center: tuple[float, float] = (40, 32), shape: tuple[int, int] = (80, 64)) -> np.ndarray:
    y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return ((y - center[0]) / 1.2) ** 2 + (x - center[1]) ** 2 <= radius**2


@pytest.fixture(scope="module")
def head_scan() -> tuple[np.ndarray, np.ndarray]:
    """HU and intracranial mask of two slices of an oval head: brain of 32 HU, two dark ventricles."""
    inside = np.stack([disc(28.0)] * 2)
    hu = np.where(inside, 32.0, 100.0).astype(np.float32)
    for x in (26, 38):
        hu[:, disc(4.0, (40, x))] = 8.0
    return hu, inside


@pytest.fixture(scope="module")
def lesions() -> dict[str, np.ndarray]:
    """One of each shape, bool (2, 80, 64)."""
    crescent = disc(28.0) & ~disc(26.0)
    crescent[:, :40] = False
    right_ventricle = disc(4.0, (40, 38))
    shapes = {"crescent": crescent, "ball": disc(6.0, (22, 24)), "ventricle": right_ventricle}
    return {name: np.stack([shape, np.zeros_like(shape)]) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def numbers() -> KindHead:
    rng = np.random.default_rng(0)
    return KindHead(
        classifier=np.array("0" * 64),
        maps=rng.normal(size=(len(KINDS), CHANNELS)),
        bias=rng.normal(size=len(KINDS)),
        mean=np.zeros(len(INPUTS)),
        scale=np.ones(len(INPUTS)),
        weight=rng.normal(size=(len(KINDS), len(INPUTS))) / 10,
        offset=np.zeros(len(KINDS)),
        unsure_below=np.array(0.3),
        right=np.array([7, 9]),
    )


@pytest.fixture(scope="module")
def output(numbers: KindHead) -> ClassifierOutput:
    """What a slice classifier says of the two slices, on cells of eight pixels."""
    features = np.random.default_rng(1).normal(size=(2, CHANNELS, 10, 8)).astype(np.float32)
    return ClassifierOutput(np.full(2, 0.9, np.float32), dict(enumerate(numbers.kind_maps(features))), (0, 0), (80, 64))


def by_name(lesion: np.ndarray, hu: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURES, lesion_features(lesion, surroundings(hu, inside, MM)), strict=True))


def test_features_tell_shapes_and_places_apart(
    head_scan: tuple[np.ndarray, np.ndarray], lesions: dict[str, np.ndarray]
) -> None:
    hu, inside = head_scan
    bloody = {name: np.where(lesion, 65.0, hu).astype(np.float32) for name, lesion in lesions.items()}
    found = {name: by_name(lesion, bloody[name], inside) for name, lesion in lesions.items()}
    crescent, ball, ventricle = (found[name] for name in ("crescent", "ball", "ventricle"))
    assert crescent["near_rim"] == 1
    assert ball["near_rim"] == ventricle["near_rim"] == 0
    assert crescent["elongation"] > 1.5 > ball["elongation"]
    assert crescent["solidity"] < 0.7 < ball["solidity"]
    assert crescent["depth_min"] < 3 < ball["depth_min"] < ventricle["depth_min"]
    assert ventricle["mirror_fluid"] > 0.8
    assert ball["mirror_fluid"] < 0.05
    assert ball["log_ml"] == pytest.approx(np.log(lesions["ball"].sum() * 20 / 1000))
    assert ball["contrast"] == pytest.approx(33, abs=1)


def test_features_depend_neither_on_the_scanners_level_nor_on_the_side(
    head_scan: tuple[np.ndarray, np.ndarray], lesions: dict[str, np.ndarray]
) -> None:
    hu, inside = head_scan
    lesion = lesions["ball"]
    bloody = np.where(lesion, 65.0, hu).astype(np.float32)
    plain = by_name(lesion, bloody, inside)
    assert by_name(lesion, bloody + 6, inside) == pytest.approx(plain, abs=1e-3)
    mirrored = by_name(lesion[..., ::-1], bloody[..., ::-1], inside[..., ::-1])
    assert mirrored == pytest.approx(plain, abs=0.15)


@pytest.mark.parametrize("where", [(0, 0, 0), (0, 40, 32), (1, 79, 63)])
def test_a_lesion_of_one_voxel_has_finite_features(
    head_scan: tuple[np.ndarray, np.ndarray], where: tuple[int, int, int]
) -> None:
    hu, inside = head_scan
    lesion = np.zeros(hu.shape, bool)
    lesion[where] = True
    assert np.isfinite(lesion_features(lesion, surroundings(hu, inside, MM))).all()


def test_maps_are_exact(numbers: KindHead) -> None:
    """The mean of a map over the slice is the logit that the pooled features give."""
    features = np.random.default_rng(2).normal(size=(1, CHANNELS, 10, 8)).astype(np.float32)
    logits = numbers.maps @ features[0].mean(axis=(1, 2)) + numbers.bias
    assert numbers.kind_maps(features)[0].mean(axis=(1, 2)) == pytest.approx(logits, abs=1e-5)


def test_maps_within_a_lesion_are_weighted_by_where_it_lies() -> None:
    maps = np.zeros((2, len(KINDS), 2, 2), np.float32)
    maps[0, 3, 0, 0] = 8.0
    seen = np.zeros((2, 2, 2), np.float32)
    seen[0, 0, 0] = 0.5
    values = dict(zip(INPUTS, weighted_map_means(maps, seen), strict=False))
    assert values["map_subdural"] == 8.0
    assert values["slice_subdural"] == 2.0
    assert values["map_epidural"] == 0.0
    seen[1] = 0.125  # as much in the other slice, which has none
    assert dict(zip(INPUTS, weighted_map_means(maps, seen), strict=False))["map_subdural"] == 4.0


def test_what_the_classifier_sees_is_read_where_the_lesion_lies(
    head_scan: tuple[np.ndarray, np.ndarray], numbers: KindHead
) -> None:
    """Its field of view lies elsewhere than the scan does, and its cells are larger than the scan's pixels."""
    hu, inside = head_scan
    maps = np.zeros((len(KINDS), 10, 8), np.float32)
    maps[1, 5, 4] = 1.0  # pixels 36 to 43 and 26 to 33 of the scan
    said = ClassifierOutput(np.full(2, np.nan, np.float32), {1: maps}, (-4, -6), (80, 64))
    lesion = np.zeros(hu.shape, bool)
    lesion[1, 36:44, 26:34] = True
    values = dict(zip(INPUTS, lesion_inputs([lesion], hu, inside, MM, said)[0], strict=True))
    assert values["map_intraventricular"] == 1
    assert values["slice_intraventricular"] == pytest.approx(1 / 80)
    elsewhere = np.roll(lesion, 8, axis=1)
    assert lesion_inputs([elsewhere], hu, inside, MM, said)[0, INPUTS.index("map_intraventricular")] == 0


def test_a_field_that_leaves_the_scan_is_background() -> None:
    hu, inside = np.full((1, 20, 20), 30.0, np.float32), np.zeros((1, 20, 20), bool)
    inside[0, :4, :4] = True
    window, corner = fields_of_view(np.array([0]), hu, inside, (10, 10), -20.0)
    assert corner == (-3, -3)
    assert (window[0, 3:7, 3:7] == 30).all()
    assert (window[0] == -20).sum() == 84


def test_lesions_are_named_or_unsure(
    head_scan: tuple[np.ndarray, np.ndarray],
    lesions: dict[str, np.ndarray],
    numbers: KindHead,
    output: ClassifierOutput,
) -> None:
    hu, inside = head_scan
    masks = list(lesions.values())
    inputs = lesion_inputs(masks, hu, inside, MM, output)
    assert inputs.shape == (3, len(INPUTS))
    probabilities = numbers.probabilities(inputs)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    named = classify_lesions(masks, hu, inside, MM, numbers, output)
    assert [kind.probability for kind in named] == pytest.approx(probabilities.max(axis=1).tolist())
    assert [kind.name for kind in named] == [KINDS[i] for i in probabilities.argmax(axis=1)]
    strict = replace(numbers, unsure_below=np.array(1.01))
    assert {kind.name for kind in classify_lesions(masks, hu, inside, MM, strict, output)} == {UNSURE}
    assert classify_lesions([], hu, inside, MM, numbers, output) == []


def test_the_numbers_come_back_from_their_file(numbers: KindHead, tmp_path: Path) -> None:
    path = tmp_path / "kinds.npz"
    numbers.write(path)
    again = KindHead.read(path)
    assert all(np.array_equal(getattr(again, f.name), getattr(numbers, f.name)) for f in fields(KindHead))


def without_maps(numbers: KindHead) -> KindHead:
    rest = {name: getattr(numbers, name)[..., -len(FEATURES) :] for name in ("mean", "scale", "weight")}
    return replace(numbers, classifier=np.array(""), maps=np.zeros((len(KINDS), 0)), **rest)


def test_without_a_classifier_lesions_are_named_by_their_own_figures(
    head_scan: tuple[np.ndarray, np.ndarray],
    lesions: dict[str, np.ndarray],
    numbers: KindHead,
    output: ClassifierOutput,
    tmp_path: Path,
) -> None:
    hu, inside = head_scan
    masks = list(lesions.values())
    plain = without_maps(numbers)
    inputs = lesion_inputs(masks, hu, inside, MM)
    assert np.array_equal(inputs, lesion_inputs(masks, hu, inside, MM, output)[:, -len(FEATURES) :])
    plain.write(tmp_path / "kinds.npz")
    again = KindHead.read(tmp_path / "kinds.npz")
    named = classify_lesions(masks, hu, inside, MM, again)
    assert [kind.probability for kind in named] == plain.probabilities(inputs).max(axis=1).tolist()


def truncated(path: Path, numbers: KindHead) -> None:
    path.write_bytes(path.read_bytes()[:300])


def of_other_inputs(path: Path, numbers: KindHead) -> None:
    arrays = {f.name: getattr(numbers, f.name) for f in fields(KindHead)}
    np.savez(path, format=np.array(FORMAT), inputs=np.array(["volume"]), **arrays)


def newer(path: Path, numbers: KindHead) -> None:
    np.savez(path, format=np.array(FORMAT + 1))


def misshapen(path: Path, numbers: KindHead) -> None:
    replace(numbers, bias=np.zeros(2)).write(path)


def without_its_classifier(path: Path, numbers: KindHead) -> None:
    replace(numbers, classifier=np.array("")).write(path)


def not_a_number(path: Path, numbers: KindHead) -> None:
    replace(numbers, bias=np.full(len(KINDS), np.nan)).write(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "cannot be read"),
        (of_other_inputs, "other figures"),
        (newer, "update hemseg"),
        (misshapen, "damaged"),
        (without_its_classifier, "damaged"),
        (not_a_number, "damaged"),
    ],
)
def test_damaged_numbers_are_refused(
    numbers: KindHead, tmp_path: Path, damage: Callable[[Path, KindHead], None], said: str
) -> None:
    path = tmp_path / "kinds.npz"
    numbers.write(path)
    damage(path, numbers)
    with pytest.raises(HemsegError, match=said):
        KindHead.read(path)


def test_codes_of_the_mask() -> None:
    assert CODES == {
        "intraparenchymal": 1,
        "intraventricular": 2,
        "subarachnoid": 3,
        "subdural": 4,
        "epidural": 5,
    }
    assert UNSURE_CODE == 6
