"""What a slice network sees of a scan: a window of each slice, centred on the inside of the skull."""

from __future__ import annotations

import numpy as np

from hemseg.components import bounding_box


def fields_of_view(
    slices: np.ndarray, hu: np.ndarray, inside: np.ndarray, field: tuple[int, int], background: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """HU of some slices as a slice network sees them, the background outside the mask.

    They are what the slice classifier learned from (`training.data.field_of_view`).

    Args:
        slices: numbers of the slices of the working grid that are wanted.
        hu: float32 (z, y, x) on the working grid.
        inside: bool (z, y, x), the intracranial mask.
        field: (y, x) voxels.
        background: HU outside the mask.

    Returns:
        float32 (slice, *field), and the field's corner (y, x) on the working grid, possibly negative.
    """
    corner = corner_of(inside, field)
    planes = [cut(np.where(inside[z], hu[z], background), corner, field, background) for z in slices]
    return np.stack(planes).astype(np.float32), corner


def corner_of(inside: np.ndarray, field: tuple[int, int]) -> tuple[int, int]:
    """The corner (y, x) of a field of view that is centred on the inside of the skull, bool (z, y, x)."""
    box = bounding_box(np.any(inside, axis=0))
    middle = [(s.start + s.stop) // 2 for s in box] if box else [n // 2 for n in inside.shape[1:]]
    return middle[0] - field[0] // 2, middle[1] - field[1] // 2


def cut(array: np.ndarray, corner: tuple[int, int], size: tuple[int, ...], fill: float) -> np.ndarray:
    """A window of a plane (y, x), or of each slice (z, y, x), of ``size`` (y, x), filled where it leaves the array."""
    result = np.full((*array.shape[:-2], *size), fill, array.dtype)
    inner, outer = overlap(array.shape[-2:], corner, size)
    (y, x), (own_y, own_x) = outer, inner
    result[..., own_y, own_x] = array[..., y, x]
    return result


def overlap(
    shape: tuple[int, ...], corner: tuple[int, int], size: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a window of ``size`` at a corner, all (y, x), and a plane of ``shape`` overlap: in the window, and in the
    plane."""
    spans = [(max(0, c), max(max(0, c), min(n, c + s)), c) for n, c, s in zip(shape, corner, size, strict=True)]
    return tuple(slice(a - c, b - c) for a, b, c in spans), tuple(slice(a, b) for a, b, _ in spans)
