"""Connected components: which number each gets, and which of them stay."""

from __future__ import annotations

import numpy as np

from hemseg.components import drop_small_components, labeled_sizes, numbered_components


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
