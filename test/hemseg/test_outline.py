"""A lesion is found by one threshold and outlined at another."""

from __future__ import annotations

import numpy as np
import pytest

from hemseg.outline import narrow_outlines


@pytest.fixture
def probability() -> np.ndarray:
    """A certain bleed with a wide slope, a faint one, and a point in between."""
    z, y, x = np.ogrid[:9, :60, :60]
    certain = 1.2 - np.sqrt((2 * (z - 4)) ** 2 + (y - 20) ** 2 + (x - 20) ** 2) / 15
    faint = 0.6 - np.sqrt((2 * (z - 4)) ** 2 + (y - 45) ** 2 + (x - 45) ** 2) / 15
    result = np.maximum(certain, faint).clip(0, 1).astype(np.float32)
    result[0, 0, 0] = 0.2
    return result


def test_a_certain_lesion_ends_where_the_higher_threshold_says(probability: np.ndarray) -> None:
    found = narrow_outlines(probability, 0.3, 0.7, 0.1, 0.005)
    assert found.dtype == np.float32
    mask = found >= 0.3
    certain = np.zeros(mask.shape, bool)
    certain[:, :36, :36] = True
    assert np.array_equal(mask & certain, (probability >= 0.7) & certain)
    assert np.array_equal(mask & ~certain, (probability >= 0.3) & ~certain)  # the faint one keeps the outline it has
    assert (mask & ~certain).any()
    assert found[0, 0, 0] == probability[0, 0, 0]


def test_between_voxels_the_outline_moves_as_well(probability: np.ndarray) -> None:
    """Half-way between two voxels a linear resampling is cut at the same place as before."""
    line, new = probability[4, 20], narrow_outlines(probability, 0.3, 0.7, 0.1, 0.005)[4, 20]
    fine = np.linspace(20, 35, 1501)
    old_end = fine[np.interp(fine, np.arange(60), line) >= 0.7].max()
    new_end = fine[np.interp(fine, np.arange(60), new) >= 0.3].max()
    assert new_end == pytest.approx(old_end, abs=0.01)


@pytest.mark.parametrize(("outline", "least_ml"), [(0.0, 0.1), (0.3, 0.1), (0.7, 1e4)])
def test_nothing_is_changed_where_nothing_is_asked_for(
    probability: np.ndarray, outline: float, least_ml: float
) -> None:
    assert np.array_equal(narrow_outlines(probability, 0.3, outline, least_ml, 0.005), probability)
