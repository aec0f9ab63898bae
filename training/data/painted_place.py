"""A head to paint into: what painting needs to know of a prepared scan (`painted.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

from hemseg.lesion_features import Surroundings, depth_mm, smoothed_inside

from .brain import brain_level

BONE_HU, RIM_MM = 70.0, 3.0  # at the rim: bone in part


@dataclass(frozen=True, eq=False)
class Place(Surroundings):
    """A head to paint into; ``inside`` is the intracranial space without the skull's blurred edge."""

    @cached_property
    def fluid(self) -> np.ndarray:
        """As that of `Surroundings`, in half the memory, as training keeps it of every scan: float16 (z, y, x)."""
        return super().fluid.astype(np.float16)  # type: ignore[no-any-return]


def place_of(hu: np.ndarray, inside: np.ndarray, mm: tuple[float, float, float]) -> Place:
    """What painting needs to know of a prepared scan, (z, y, x)."""
    hu = hu.astype(np.float32)
    inside = inside & ~_rim_of_bone(smoothed_inside(hu, inside, mm[1]), inside, mm[1])
    smooth, depth = smoothed_inside(hu, inside, mm[1]), depth_mm(inside, mm[1])
    middle = inside & (depth > 8)
    return Place(smooth, inside, depth, brain_level(smooth, middle if middle.any() else inside), mm)


def _rim_of_bone(smooth: np.ndarray, inside: np.ndarray, in_plane_mm: float) -> np.ndarray:
    """The skull's edge that the strip leaves within the mask: bright pixels at most `RIM_MM` from its rim."""
    cross, pixels = ndimage.generate_binary_structure(2, 1)[None], max(1, round(RIM_MM / in_plane_mm))
    return np.asarray(inside & (smooth > BONE_HU) & ~ndimage.binary_erosion(inside, cross, iterations=pixels))
