"""A later round's labels, from what the U-Net before says of its own positive slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hemseg.preprocessing import Settings
from training.config import SelfTraining
from training.data.datasets import Prepared
from training.labels.self_training import relabel_case

GRID = Settings(in_plane_mm=1.0)
SETTINGS = SelfTraining(core=0.7, sure=0.95, doubt=0.1)


@pytest.fixture
def case() -> Prepared:
    """Four slices, the last one healthy."""
    hu = np.full((4, 30, 30), 32, np.float32)
    return Prepared("head", "train", hu, np.ones(hu.shape, bool), np.array([1, 1, 1, 0], np.int8))


def square(z: int, corner: int) -> tuple[int, slice, slice]:
    return z, slice(corner, corner + 5), slice(corner, corner + 5)


def test_the_unet_adds_what_it_is_sure_of_and_takes_out_what_it_does_not_see(case: Prepared) -> None:
    label, probability = np.zeros(case.hu.shape, bool), np.zeros(case.hu.shape, np.float32)
    label[square(0, 3)] = label[square(0, 20)] = label[square(1, 3)] = True
    probability[square(0, 3)] = 0.4  # seen a little: stays
    probability[square(1, 12)] = 0.8
    probability[1, 14, 14] = 0.97  # sure: added
    probability[square(2, 12)] = 0.8  # never sure
    probability[square(3, 12)] = 1.0  # a healthy slice stays empty
    result = relabel_case(case, label, probability, SETTINGS, GRID, 0.0)
    expected = np.zeros_like(label)
    expected[square(0, 3)] = expected[square(1, 12)] = True
    assert np.array_equal(result, expected)


def test_a_positive_slice_can_keep_its_last_component(case: Prepared) -> None:
    label, probability = np.zeros(case.hu.shape, bool), np.zeros(case.hu.shape, np.float32)
    label[square(0, 3)] = label[square(1, 3)] = label[square(1, 20)] = True
    probability[square(1, 3)] = 0.5
    emptied = relabel_case(case, label, probability, SETTINGS, GRID, 3.0)
    kept = relabel_case(case, label, probability, replace(SETTINGS, keep_emptied=True), GRID, 3.0)
    assert not emptied[0].any()
    assert np.array_equal(kept[0], label[0])
    assert np.array_equal(kept[1:], emptied[1:])  # where something stays, the rest goes as before
    assert not kept[2:].any()
