"""Our figures against DeepMind's surface-distance, on which INSTANCE 2022's own evaluation is built."""

from __future__ import annotations

import numpy as np
import pytest
import surface_distance
from scipy import ndimage

from training.evaluation.metrics import NSD_TOLERANCE_MM, overlap, surface

SPACING = (5.0, 0.45, 0.42)
SMOOTH = 1e-5  # INSTANCE's, in Dice


def blob(seed: int, shape: tuple[int, int, int] = (10, 48, 52)) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), (1, 4, 4)) > 0.03


PAIRS = {
    "unlike": (blob(0), blob(1)),
    "grown": (blob(2), ndimage.binary_dilation(blob(2))),
    "shifted": (blob(3), np.roll(blob(3), 1, axis=2)),
    "same": (blob(4), blob(4)),
    "one voxel": (np.arange(1000).reshape(10, 10, 10) == 555, np.arange(1000).reshape(10, 10, 10) == 999),
}


@pytest.mark.parametrize("name", PAIRS)
def test_figures_are_those_of_instance(name: str) -> None:
    mask, reference = PAIRS[name]
    measured = overlap(mask, reference) | surface(mask, reference, SPACING)
    distances = surface_distance.compute_surface_distances(reference, mask, SPACING)
    assert measured["surface_dice"] == pytest.approx(
        surface_distance.compute_surface_dice_at_tolerance(distances, NSD_TOLERANCE_MM), abs=1e-6
    )
    assert measured["hd"] == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 100), abs=1e-4)
    both = 2.0 * np.logical_and(mask, reference).sum()
    assert measured["dice"] == pytest.approx((both + SMOOTH) / (mask.sum() + reference.sum() + SMOOTH), abs=1e-5)
    assert measured["rvd"] == pytest.approx(abs(mask.sum() - reference.sum()) / reference.sum())


def test_an_empty_prediction_is_infinitely_far() -> None:
    reference = blob(0)
    assert surface(np.zeros_like(reference), reference, SPACING) == {"hd": float("inf"), "surface_dice": 0.0}
