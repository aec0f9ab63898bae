from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from hemseg.errors import HemsegError
from hemseg.fields_of_view import fields_of_view
from hemseg.kinds import (
    ANSWERS,
    CODES,
    INPUTS,
    KINDS,
    UNSURE,
    UNSURE_CODE,
    Head,
    KindModel,
    kind_maps,
    lesion_inputs,
    within,
    zone_shares,
)
from hemseg.lesion_features import FEATURES, lesion_features, surroundings

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
def numbers() -> Head:
    rng = np.random.default_rng(0)
    return Head(
        field=np.array([80, 64]),
        background=np.array(-20.0),
        zones_mm=np.array([8.0, 25.0]),
        maps=rng.normal(size=(len(ANSWERS), 3, CHANNELS)),
        bias=rng.normal(size=len(ANSWERS)),
        mean=np.zeros(len(INPUTS)),
        scale=np.ones(len(INPUTS)),
        weight=rng.normal(size=(len(KINDS), len(INPUTS))) / 10,
        offset=np.zeros(len(KINDS)),
        unsure_below=np.array(0.3),
    )


def network(slices: np.ndarray) -> np.ndarray:
    """Stands in for the slice network: three features on cells of ten pixels."""
    small = np.stack([cv2.resize(s, (8, 10), interpolation=cv2.INTER_AREA) for s in slices])
    return np.stack([small / 100, np.abs(small), small**2 / 1000], axis=1).astype(np.float32)


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


def test_maps_are_exact(head_scan: tuple[np.ndarray, np.ndarray], numbers: Head) -> None:
    """The mean of a map over the slice is the logit that the pooled features give."""
    hu, inside = head_scan
    around, slices = surroundings(hu, inside, MM), np.array([1])
    maps, corner = kind_maps(slices, hu, around, network, numbers)
    windows, _ = fields_of_view(slices, hu, inside, numbers.view.field, numbers.view.background)
    zones = zone_shares(slices, around, corner, numbers.view, (10, 8))
    assert zones.sum(axis=1).max() <= 1 + 1e-6
    pooled = np.einsum("zyx,cyx->zc", zones[0], network(windows)[0]) / 80
    logits = np.einsum("zc,azc->a", pooled, numbers.maps) + numbers.bias
    assert maps[0].mean(axis=(1, 2)) == pytest.approx(logits, abs=1e-4)


def test_maps_within_a_lesion_are_weighted_by_where_it_lies() -> None:
    maps = np.zeros((2, len(ANSWERS), 2, 2), np.float32)
    maps[0, 3, 0, 0] = 8.0
    seen = np.zeros((2, 2, 2), np.float32)
    seen[0, 0, 0] = 0.5
    values = dict(zip(INPUTS, within(maps, seen), strict=False))
    assert values["map_subdural"] == 8.0
    assert values["slice_subdural"] == 2.0
    assert values["map_any"] == 0.0
    seen[1] = 0.125  # as much in the other slice, which has none
    assert dict(zip(INPUTS, within(maps, seen), strict=False))["map_subdural"] == 4.0


def test_a_field_that_leaves_the_scan_is_background() -> None:
    hu, inside = np.full((1, 20, 20), 30.0, np.float32), np.zeros((1, 20, 20), bool)
    inside[0, :4, :4] = True
    window, corner = fields_of_view(np.array([0]), hu, inside, (10, 10), -20.0)
    assert corner == (-3, -3)
    assert (window[0, 3:7, 3:7] == 30).all()
    assert (window[0] == -20).sum() == 84


def test_lesions_are_named_or_unsure(
    head_scan: tuple[np.ndarray, np.ndarray], lesions: dict[str, np.ndarray], numbers: Head
) -> None:
    hu, inside = head_scan
    masks = list(lesions.values())
    inputs = lesion_inputs(masks, hu, inside, MM, numbers, network)
    assert inputs.shape == (3, len(INPUTS))
    probabilities = numbers.probabilities(inputs)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    voxels = [np.argwhere(mask) for mask in masks]
    named = KindModel(numbers, network).kinds(voxels, hu, inside, MM)
    assert [kind.probability for kind in named] == pytest.approx(probabilities.max(axis=1).tolist())
    assert [kind.name for kind in named] == [KINDS[i] for i in probabilities.argmax(axis=1)]
    strict = replace(numbers, unsure_below=np.array(1.01))
    assert {kind.name for kind in KindModel(strict, network).kinds(voxels, hu, inside, MM)} == {UNSURE}
    assert KindModel(numbers, network).kinds([], hu, inside, MM) == []


def test_the_numbers_come_back_from_their_file(numbers: Head, tmp_path: Path) -> None:
    path = tmp_path / "kinds.npz"
    numbers.write(path)
    again = Head.read(path)
    assert all(np.array_equal(getattr(again, f.name), getattr(numbers, f.name)) for f in fields(Head))


def without_maps(numbers: Head) -> Head:
    rest = {name: getattr(numbers, name)[..., -len(FEATURES) :] for name in ("mean", "scale", "weight")}
    return replace(numbers, maps=np.zeros((len(ANSWERS), 3, 0)), **rest)


def test_without_a_network_lesions_are_named_by_their_own_figures(
    head_scan: tuple[np.ndarray, np.ndarray], lesions: dict[str, np.ndarray], numbers: Head, tmp_path: Path
) -> None:
    hu, inside = head_scan
    masks = list(lesions.values())
    plain = without_maps(numbers)
    inputs = lesion_inputs(masks, hu, inside, MM, plain, None)
    assert np.array_equal(inputs, lesion_inputs(masks, hu, inside, MM, numbers, network)[:, -len(FEATURES) :])
    plain.write(tmp_path / "kinds.npz")
    again = Head.read(tmp_path / "kinds.npz")
    named = KindModel(again).kinds([np.argwhere(mask) for mask in masks], hu, inside, MM)
    assert [kind.probability for kind in named] == plain.probabilities(inputs).max(axis=1).tolist()


def truncated(path: Path, numbers: Head) -> None:
    path.write_bytes(path.read_bytes()[:300])


def of_other_inputs(path: Path, numbers: Head) -> None:
    arrays = {f.name: getattr(numbers, f.name) for f in fields(Head)}
    np.savez(path, format=np.array(1), inputs=np.array(["volume"]), **arrays)


def newer(path: Path, numbers: Head) -> None:
    np.savez(path, format=np.array(2))


def misshapen(path: Path, numbers: Head) -> None:
    replace(numbers, bias=np.zeros(2)).write(path)


def not_a_number(path: Path, numbers: Head) -> None:
    replace(numbers, bias=np.full(len(ANSWERS), np.nan)).write(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "cannot be read"),
        (of_other_inputs, "other figures"),
        (newer, "update hemseg"),
        (misshapen, "damaged"),
        (not_a_number, "damaged"),
    ],
)
def test_damaged_numbers_are_refused(
    numbers: Head, tmp_path: Path, damage: Callable[[Path, Head], None], said: str
) -> None:
    path = tmp_path / "kinds.npz"
    numbers.write(path)
    damage(path, numbers)
    with pytest.raises(HemsegError, match=said):
        Head.read(path)


def test_codes_of_the_mask() -> None:
    assert CODES == {
        "intraparenchymal": 1,
        "intraventricular": 2,
        "subarachnoid": 3,
        "subdural": 4,
        "epidural": 5,
    }
    assert UNSURE_CODE == 6
