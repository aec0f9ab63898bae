"""Connected components of masks: numbered by size, the largest one, which are too small to stay; boxes and holes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
import SimpleITK as sitk


def labeled(mask: np.ndarray, corners: bool = False) -> tuple[np.ndarray, int]:
    """The components of a mask, each with a number.

    Args:
        mask: of two or three dimensions; what is not 0 counts.
        corners: voxels that share a corner are connected, too, and not only those that share a face.

    Returns:
        int32 shaped like ``mask``: 1, 2, ... in the components, in no order that can be relied on, 0 elsewhere; and
        how many there are.
    """
    voxels = (mask != 0).view(np.uint8)
    if not voxels.any():  # both libraries end the process over an array without voxels
        return np.zeros(mask.shape, np.int32), 0
    if mask.ndim == 2:  # OpenCV knows planes alone, and is the faster one
        n, labels = cv2.connectedComponents(np.ascontiguousarray(voxels), connectivity=8 if corners else 4)
        return labels, n - 1
    found = sitk.ConnectedComponentImageFilter()
    found.SetFullyConnected(corners)
    labels = sitk.GetArrayFromImage(found.Execute(sitk.GetImageFromArray(voxels)))
    return labels.view(np.int32), int(found.GetObjectCount())


def labeled_sizes(mask: np.ndarray, corners: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The components of a mask, and how many voxels each has; arguments as for `labeled`.

    Returns:
        Labels from 1 on, shaped like ``mask``, and the sizes by label; that of label 0, the background, is 0.
    """
    labels, n = labeled(mask, corners)
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    sizes[0] = 0
    return labels, sizes


def boxes(labels: np.ndarray) -> list[tuple[slice, ...]]:
    """The smallest box around each label from 1 on, in order; every number up to the highest must be there."""
    at = np.nonzero(labels)
    if not len(at[0]):
        return []
    values = labels[at]
    order = np.argsort(values, kind="stable")
    begins = np.searchsorted(values[order], np.arange(1, int(values.max()) + 1))
    ends = [(np.minimum.reduceat(index[order], begins), np.maximum.reduceat(index[order], begins) + 1) for index in at]
    return [tuple(slice(int(low[n]), int(high[n])) for low, high in ends) for n in range(len(begins))]


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
    labels, _ = labeled(above[around], corners=True)
    for i, where in enumerate(boxes(labels), start=1):
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
    labels, sizes = labeled_sizes(mask, corners=True)
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    number = np.zeros(len(sizes), np.int32)
    number[order] = np.arange(1, len(order) + 1)
    return number[labels], sizes[order]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The component with the most voxels among those connected by faces, bool; empty where there is none."""
    labels, sizes = labeled_sizes(mask)
    return labels == sizes.argmax() if sizes.any() else np.zeros(mask.shape, bool)


def drop_small_components(
    mask: np.ndarray,
    least: float = 1,
    share: float = 0.0,
    corners: bool = False,
    keep_largest: bool = False,
) -> np.ndarray:
    """A mask without its small components, bool.

    Args:
        mask, corners: as for `labeled`.
        least: voxels that a component has at least.
        share: of the largest component's voxels, that a component has at least.
        keep_largest: however small it is.
    """
    labels, sizes = labeled_sizes(mask, corners)
    if keep_largest:
        least = min(least, int(sizes.max()))
    return (sizes >= max(1, least, share * sizes.max()))[labels]


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box that holds all of a mask, bool (any axes); None for an empty one."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        part = mask[tuple(box)]  # what the axes before have left of it
        held = np.flatnonzero(part.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        if not len(held):
            return None
        box.append(slice(int(held[0]), int(held[-1]) + 1))
    return tuple(box)


def without_holes(mask: np.ndarray) -> np.ndarray:
    """A mask of two or three dimensions, as bool, with what it encloses: from there no way leads to the array's border
    but through the mask, from face to face."""
    background, _ = labeled(np.pad(mask == 0, 1, constant_values=True))
    inner = (slice(1, -1),) * mask.ndim
    return background[inner] != background[(0,) * mask.ndim]
