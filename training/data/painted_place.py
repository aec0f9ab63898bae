"""A head to paint into: what painting needs to know of a prepared scan (`painted.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy import ndimage

from .brain import brain_level

CSF_HU = 14.0  # so far below the brain lies what is CSF
BONE_HU = 70.0  # at the rim: bone in part
DEEP_MM = 14.0  # so far from the skull a ventricle lies


@dataclass(frozen=True, eq=False)
class Place:
    """A head to paint into.

    Attributes:
        smooth: HU, smoothed in plane among what is inside (bone does not shine in), float32 (z, y, x).
        inside: bool (z, y, x), the intracranial space without the skull's blurred edge.
        depth: mm from each voxel to its slice's intracranial edge, float32 (z, y, x).
        brain: HU of its brain.
        mm: spacing (z, y, x).
    """

    smooth: np.ndarray
    inside: np.ndarray
    depth: np.ndarray
    brain: float
    mm: tuple[float, float, float]

    @cached_property
    def fluid(self) -> np.ndarray:
        """How much of each voxel is CSF, 0..1, float16 (z, y, x)."""
        share = np.clip((self.brain - 4 - self.smooth) / (CSF_HU - 4), 0, 1) * self.inside
        return share.astype(np.float16)

    @cached_property
    def ventricles(self) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of CSF far from the skull: numbered, int16 (z, y, x), and the numbers of the large ones."""
        labels, _ = ndimage.label((self.fluid > 0.5) & (self.depth > DEEP_MM))
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        return labels.astype(np.int16), np.flatnonzero((sizes >= 60) & (sizes >= 0.2 * sizes.max()))


def place_of(hu: np.ndarray, inside: np.ndarray, mm: tuple[float, float, float]) -> Place:
    """What painting needs to know of a prepared scan, (z, y, x)."""
    within = np.stack([_smooth(s, i, 1.2 / mm[1]) for s, i in zip(hu.astype(np.float32), inside, strict=True)])
    inside = inside & ~_rim_of_bone(within, inside)
    smooth = np.stack([_smooth(s, i, 1.2 / mm[1]) for s, i in zip(hu.astype(np.float32), inside, strict=True)])
    edged = np.pad(inside, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    depth = np.stack([cv2.distanceTransform(s, cv2.DIST_L2, 5)[1:-1, 1:-1] for s in edged]) * mm[1]
    middle = inside & (depth > 8)
    return Place(smooth, inside, depth.astype(np.float32), brain_level(smooth, middle if middle.any() else inside), mm)


def _smooth(hu: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of a slice (y, x) over the pixels inside; the slice itself elsewhere."""
    weight = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma)
    mean = cv2.GaussianBlur(np.where(inside, hu, 0), (0, 0), sigma) / np.maximum(weight, 1e-3)
    return np.where(inside, mean, hu)


def _rim_of_bone(smooth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The skull's edge that the strip leaves within the mask: bright pixels at most 3 mm from its rim."""
    cross = ndimage.generate_binary_structure(2, 1)[None]
    return np.asarray(inside & (smooth > BONE_HU) & ~ndimage.binary_erosion(inside, cross, iterations=3))
