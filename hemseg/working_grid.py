"""The grid that the networks work on, and how arrays come from a scan's grid to it and back.

A skull needs no 0.4 mm pixels, and a 512x512 slice costs five times as much as the same slice at 1 mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class WorkingGrid:
    """The grid that the network works on: the scan's own axes, pixels of one size, averaged slices.

    In plane, pixels are area averages (or linear interpolation where the scan is the coarser one). Along z, a
    whole number of neighbouring slices is averaged to come closest to the target spacing; slices are never
    interpolated or dropped, and thicker ones are kept as they are.

    Attributes:
        scan_shape: (z, y, x) of the scan in LPS order.
        scan_spacing: (z, y, x) mm.
        spacing: (z, y, x) mm of the working grid.
        slab: slices of the scan per slice of the working grid.
    """

    scan_shape: tuple[int, int, int]
    scan_spacing: tuple[float, float, float]
    spacing: tuple[float, float, float]
    slab: int

    @classmethod
    def of(
        cls, shape: tuple[int, ...], spacing: tuple[float, ...], target_spacing: tuple[float, float, float]
    ) -> WorkingGrid:
        """The working grid of a scan of ``shape`` and ``spacing``, which comes close to ``target_spacing``.

        All (z, y, x), spacings in mm. In plane the grid has pixels of the target spacing.
        """
        slab = min(max(1, round(target_spacing[0] / spacing[0])), shape[0])
        return cls(tuple(shape), tuple(spacing), (slab * spacing[0], *target_spacing[1:]), slab)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x) of the working grid: it covers the scan."""
        z = -(-self.scan_shape[0] // self.slab)
        y, x = (
            max(1, round(n * old / new))
            for n, old, new in zip(self.scan_shape[1:], self.scan_spacing[1:], self.spacing[1:], strict=True)
        )
        return z, y, x

    def from_scan(self, hu: np.ndarray, hu_range: tuple[float, float] | None = None) -> np.ndarray:
        """Average an array (z, y, x) of the scan onto the working grid; float32.

        Thin slices are averaged first and clipped to ``hu_range`` then, as in a thick slice of the scanner: clipped
        first, the skull's slanting edge would come out as bright as blood, all around the head.
        """
        _, y, x = self.shape
        rows = _resampling(self.scan_shape[1], self.scan_spacing[1], y, self.spacing[1])
        columns = _resampling(self.scan_shape[2], self.scan_spacing[2], x, self.spacing[2])
        result = np.empty(self.shape, np.float32)
        for z, plane in enumerate(result):
            slab = hu[z * self.slab : (z + 1) * self.slab].mean(axis=0, dtype=np.float32)
            plane[:] = _in_plane(np.clip(slab, *hu_range) if hu_range else slab, rows, columns)
        return result

    def to_scan(self, working: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        """Interpolate an array of the working grid linearly to part of the scan: all slices, some rows, columns.

        Args:
            working: (z, y, x) on the working grid.
            rows, columns: the part of the scan's y and x that is wanted.
        """
        y = _resampling(working.shape[1], self.spacing[1], self.scan_shape[1], self.scan_spacing[1])[rows]
        x = _resampling(working.shape[2], self.spacing[2], self.scan_shape[2], self.scan_spacing[2])[columns]
        array = np.stack([_in_plane(plane, y, x) for plane in np.asarray(working, dtype=np.float32)])
        if self.slab == 1:
            return array
        z = _resampling(working.shape[0], self.spacing[0], self.scan_shape[0], self.scan_spacing[0], centered=False)
        return z.along(array, 0)

    def nearest(self, voxels: np.ndarray) -> np.ndarray:
        """The working grid's voxels that voxels (n, 3) of the scan fall into; both (z, y, x) in LPS order."""
        z = voxels[:, 0] // self.slab
        at = []
        for axis in (1, 2):
            shift = (self.shape[axis] * self.spacing[axis] - self.scan_shape[axis] * self.scan_spacing[axis]) / 2
            index = ((voxels[:, axis] + 0.5) * self.scan_spacing[axis] + shift) // self.spacing[axis]
            at.append(np.clip(index, 0, self.shape[axis] - 1).astype(int))
        return np.stack([z, *at], axis=1)


@dataclass(frozen=True, eq=False)
class Resampling:
    """How one axis is resampled: each value that comes out is a weighted sum of a few neighbours.

    Attributes:
        first: int (n_out,), the first of the neighbours.
        weights: float32 (n_out, neighbours); 0 where there are fewer.
    """

    first: np.ndarray
    weights: np.ndarray

    def __getitem__(self, part: slice) -> Resampling:
        return Resampling(self.first[part], self.weights[part])

    def along(self, array: np.ndarray, axis: int) -> np.ndarray:
        """An array, float32, resampled along one axis."""
        last = array.shape[axis] - 1
        shape = [-1 if a == axis else 1 for a in range(array.ndim)]
        total = np.float32(0)
        for k, weight in enumerate(self.weights.T):
            total = total + array.take(np.minimum(self.first + k, last), axis) * weight.reshape(shape)
        return np.asarray(total)


def _in_plane(plane: np.ndarray, rows: Resampling, columns: Resampling) -> np.ndarray:
    """Resample both axes of an array (y, x)."""
    return columns.along(rows.along(plane, 0), 1)


def _resampling(n_in: int, mm_in: float, n_out: int, mm_out: float, centered: bool = True) -> Resampling:
    """Resample one axis with a tent as wide as the coarser of the two pixels.

    Coarser output: an antialiased average. Finer output: linear interpolation, constant beyond the edges.
    Both grids share their centre, or, with ``centered`` off, the edge of their first voxel.
    """
    at_in = (np.arange(n_in) + 0.5) * mm_in
    at_out = (np.arange(n_out) + 0.5) * mm_out
    if centered:
        at_out += (n_in * mm_in - n_out * mm_out) / 2
    at_out = np.clip(at_out, at_in[0], at_in[-1])
    weights = np.maximum(0.0, 1.0 - np.abs(at_out[:, None] - at_in) / max(mm_in, mm_out))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    first = (weights > 0).argmax(axis=1)
    reach = np.arange(int((weights > 0).sum(axis=1).max()))
    near = np.take_along_axis(weights, np.minimum(first[:, None] + reach, n_in - 1), axis=1)
    return Resampling(first, np.where(first[:, None] + reach < n_in, near, 0))
