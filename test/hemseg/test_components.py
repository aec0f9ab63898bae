"""Connected components: which number each gets, and which of them stay."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from hemseg.components import (
    bounding_box,
    boxes,
    drop_small_components,
    labeled,
    labeled_sizes,
    numbered_components,
    without_holes,
)


def test_numbers_follow_size_and_then_place() -> None:
    mask = np.zeros((4, 8, 8), np.uint8)
    mask[0, 0, :2] = 1
    mask[0, 4, 4], mask[1, 5, 5], mask[1, 5, 6] = 1, 1, 1  # voxels that share a corner are connected
    mask[3, 7, 6:] = 1
    numbers, sizes = numbered_components(mask)
    assert sizes.tolist() == [3, 2, 2]
    assert [numbers[at] for at in ((0, 4, 4), (1, 5, 6), (0, 0, 1), (3, 7, 7))] == [1, 1, 2, 3]
    assert np.array_equal(numbers > 0, mask > 0)
    nothing, none = numbered_components(mask * 0)
    assert not nothing.any()
    assert none.tolist() == []


def test_small_components_go_and_the_largest_may_stay() -> None:
    mask = np.zeros((6, 6), bool)
    mask[0, :2], mask[2, :3], mask[5, 5] = True, True, True
    assert labeled_sizes(mask)[1].tolist() == [0, 2, 3, 1]
    assert drop_small_components(mask, 2).sum() == 5
    assert drop_small_components(mask, share=0.9).sum() == 3
    assert not drop_small_components(mask, 10).any()
    assert np.array_equal(drop_small_components(mask, 10, keep_largest=True), mask & (np.arange(6)[:, None] == 2))
    assert not drop_small_components(mask & False, 10, keep_largest=True).any()


@pytest.mark.parametrize("shape", [(40, 50), (12, 30, 40)])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
def test_labels_boxes_and_holes_are_those_of_scipy(shape: tuple[int, ...], share: float) -> None:
    mask = np.random.default_rng(len(shape)).random(shape) < share
    for corners, structure in ((False, None), (True, np.ones((3,) * len(shape)))):
        labels, n = labeled(mask, corners)
        expected, count = ndimage.label(mask, structure)
        assert n == count
        assert len(np.unique(np.stack([labels[mask], expected[mask]]), axis=1).T) == n  # each is one of them
        assert boxes(labels) == ndimage.find_objects(labels)
    assert np.array_equal(without_holes(mask), ndimage.binary_fill_holes(mask))
    assert np.array_equal(without_holes(mask.astype(np.uint8)), without_holes(mask))
    assert bounding_box(mask) == ndimage.find_objects(mask.astype(np.uint8))[0]


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 5), (0, 5, 5), (5, 5, 0), (0, 5), (5, 0)])
def test_of_an_empty_mask_nothing_comes(shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape, bool)
    assert bounding_box(mask) is None
    assert not without_holes(mask).any()
    assert labeled(mask)[1] == 0
    assert boxes(labeled(mask)[0]) == []
