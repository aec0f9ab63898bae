"""Connected components of masks: numbered by size, the largest one, and which of them are too small to stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import ndimage

TOUCHING = np.ones((3, 3, 3), bool)  # voxels that share a corner are connected: 26 neighbours in place of 6


def labeled_sizes(mask: np.ndarray, structure: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The components of a mask, and how many voxels each has.

    Args:
        mask: of two or three dimensions; what is not 0 counts.
        structure: which neighbours are connected, as in `scipy.ndimage.label`; those that share a face when None.

    Returns:
        Labels from 1 on, shaped like ``mask``, and the sizes by label; that of label 0, the background, is 0.
    """
    labels, n = ndimage.label(mask, structure)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[0] = 0
    return labels, sizes


def components_above(probability: np.ndarray, threshold: float) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """The 26-connected components in which a probability (z, y, x) reaches a threshold.

    They are found before the first one is given: the array may be changed meanwhile.

    Yields:
        The box (z, y, x) of a component in the array, and the component within it, bool.
    """
    above = probability >= threshold
    around = bounding_box(above)  # of all of them: the rest need not be labelled
    if around is None:
        return
    labels, _ = ndimage.label(above[around], TOUCHING)
    for i, where in enumerate(ndimage.find_objects(labels), start=1):
        whole = tuple(slice(b.start + w.start, b.start + w.stop) for b, w in zip(around, where, strict=True))
        yield whole, labels[where] == i


def without_components(
    probability: np.ndarray, threshold: float, dropped: Callable[[tuple[slice, ...], np.ndarray], bool]
) -> np.ndarray:
    """A probability (z, y, x) that is 0 in those of the `components_above` a threshold that a rule drops.

    Args:
        dropped: the rule; it gets a component's box and the component within it.
    """
    result = probability.copy()
    for where, component in components_above(probability, threshold):
        if dropped(where, component):
            result[where][component] = 0
    return result


def numbered_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 26-connected components of a mask (z, y, x), numbered by size; of the same size, as they lie in memory.

    Returns:
        int32 (z, y, x): 1 in the largest component, 2 in the second, ..., 0 in the background; and their sizes in
        voxels, the largest first.
    """
    labels, sizes = labeled_sizes(mask, TOUCHING)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    number = np.zeros(len(sizes), np.int32)
    number[order] = np.arange(1, len(order) + 1)
    return number[labels], sizes[order]


def largest_component(mask: np.ndarray, structure: np.ndarray | None = None) -> np.ndarray:
    """The component with the most voxels, bool; empty where there is none. Arguments as for `labeled_sizes`."""
    labels, sizes = labeled_sizes(mask, structure)
    return labels == sizes.argmax() if sizes.any() else np.zeros(mask.shape, bool)


def drop_small_components(
    mask: np.ndarray,
    least: float = 1,
    share: float = 0.0,
    structure: np.ndarray | None = None,
    keep_largest: bool = False,
) -> np.ndarray:
    """A mask without its small components, bool.

    Args:
        mask, structure: as for `labeled_sizes`.
        least: voxels that a component has at least.
        share: of the largest component's voxels, that a component has at least.
        keep_largest: however small it is.
    """
    labels, sizes = labeled_sizes(mask, structure)
    if keep_largest:
        least = min(least, int(sizes.max()))
    return (sizes >= max(1, least, share * sizes.max()))[labels]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds all of a mask, bool (any axes); None for an empty one."""
    found = ndimage.find_objects(mask.view(np.uint8))
    return found[0] if found else None
