"""Volume = voxels in HU + geometry: the only module that knows about axis order and orientation. No files.

Arrays are (z, y, x); ``spacing``, ``origin`` and ``direction`` are (x, y, z) as in ITK, in mm and LPS. Scans are
read by `hemseg.scan`, masks are written by `hemseg.io.masks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class FileIdentity(Protocol):
    """By which the files of a scan are known again, see `hemseg.io.fingerprint.Fingerprint`."""

    @property
    def content(self) -> str:
        """A hash of their contents."""


class SliceStack(Protocol):
    """How the slices of a DICOM series lie in an even volume, see `hemseg.dicom.stack.Stack`."""

    @property
    def series(self) -> Any:
        """The slices, see `hemseg.dicom.stacks.Series`."""

    def to_slices(self, mask: np.ndarray) -> np.ndarray:
        """A mask (z, y, x) of the even volume on the slices as they are, (slice, row, column)."""


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan.

    Attributes:
        hu: float32 array (z, y, x) in HU.
        spacing: voxel size (x, y, z) in mm.
        origin: position of voxel 0 (x, y, z) in mm, LPS.
        direction: row-major 3x3 direction cosines, LPS.
        path: the file that it was read from, if any.
        warnings: what looks odd about it, in sentences.
        oriented: whether it is known which of its sides is the patient's left.
        stack: how the slices of a DICOM series lie in it, see `hemseg.dicom.stack`.
        chosen: which series of a DICOM study this is, and why.
        fingerprint: of the files that it was read from.
    """

    hu: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    path: Path | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    stack: SliceStack | None = field(default=None, repr=False)
    chosen: str = ""
    fingerprint: FileIdentity | None = field(default=None, repr=False)
    oriented: bool = True

    @property
    def cosines(self) -> np.ndarray:
        """``direction`` as a matrix, float64 (3, 3): a row per patient axis, a column per image axis; (x, y, z)."""
        return np.asarray(self.direction, dtype=float).reshape(3, 3)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(np.prod(self.spacing)) / 1000.0

    @property
    def content(self) -> str:
        """The content hash of its files; empty where they are not known."""
        return self.fingerprint.content if self.fingerprint else ""

    def with_voxels(self, array: np.ndarray) -> Volume:
        """Another array of the same shape (a mask, say) with this volume's geometry."""
        if array.shape != self.hu.shape:
            raise ValueError(f"array {array.shape} and scan {self.hu.shape} differ in shape")
        return replace(self, hu=array)

    def _to_lps(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Which array axis runs along patient z, y, x, and which of those axes (afterwards) must be flipped."""
        cosines = self.cosines
        image_axis = [-1, -1, -1]
        left = np.abs(cosines)
        for _ in range(3):  # greedy assignment: the best-aligned pair first, each axis once
            patient, image = np.unravel_index(int(np.argmax(left)), left.shape)
            image_axis[patient] = int(image)
            left[patient, :] = -1
            left[:, image] = -1
        axes = (2 - image_axis[2], 2 - image_axis[1], 2 - image_axis[0])
        flips = tuple(i for i, p in enumerate((2, 1, 0)) if cosines[p, image_axis[p]] < 0)
        return axes, flips

    def in_lps(self) -> tuple[np.ndarray, tuple[float, float, float]]:
        """The voxels with axes permuted and flipped (never interpolated) so that z runs to superior, y to
        posterior, x to the patient's left, as nearly as the scan's own axes allow.

        Returns:
            A view (z, y, x) of ``hu`` and its spacing (z, y, x) in mm.
        """
        axes, flips = self._to_lps()
        spacing = self.spacing[::-1]
        return np.flip(self.hu.transpose(axes), flips), tuple(spacing[a] for a in axes)  # type: ignore[return-value]

    def lps_frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the voxels of `in_lps` lie: (x, y, z; mm, LPS) of its voxel (0, 0, 0), and a 3x3 matrix whose columns
        are the steps (mm) from a voxel to the next along its z, y and x.
        """
        axes, flips = self._to_lps()
        steps = (self.cosines * self.spacing)[:, ::-1][:, list(axes)]
        start = np.array(self.origin, dtype=float)
        for axis in flips:
            start = start + steps[:, axis] * (self.hu.shape[axes[axis]] - 1)
            steps[:, axis] *= -1
        return start, steps

    def from_lps(self, array: np.ndarray) -> np.ndarray:
        """Undo `in_lps` for an array of the same shape: back to the scan's own axes (a view)."""
        axes, flips = self._to_lps()
        return np.flip(array, flips).transpose(np.argsort(axes))

    def indices_in_lps(self, voxels: np.ndarray) -> np.ndarray:
        """Where voxels (n, 3) of this volume, (z, y, x), lie in the array of `in_lps`."""
        axes, flips = self._to_lps()
        moved = voxels[:, axes]
        for axis in flips:
            moved[:, axis] = self.hu.shape[axes[axis]] - 1 - moved[:, axis]
        return moved
