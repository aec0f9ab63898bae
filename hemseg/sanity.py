"""Can this result be? What no head has is marked `implausible`, before anyone takes it for a measurement.

The rules are about results, not about scans (`hemseg.checks` looks at those): a network that was shown the wrong thing
answers with hundreds of mL and does not know. They are loose: what breaks one is wrong, what keeps them all may be.
"""

from __future__ import annotations

import cv2
import numpy as np

from hemseg.components import drop_small_components, labeled, without_holes
from hemseg.preprocessing import WorkingImage
from hemseg.volume import Volume

MAX_ML = 250.0  # the largest hemorrhages that anyone survives to a scan have 150 to 200 mL
MAX_INTRACRANIAL_SHARE = 0.2  # of the intracranial volume
INTRACRANIAL_ML = (600.0, 2200.0)  # of an adult or a child; infants have less
INFANT_ML, INFANT_CM2 = 250.0, 150.0  # least intracranial volume; largest section of a head with its scalp
RIM_MM, RIM_SHARE, RIM_ML = 2.0, 0.5, 3.0
SECTORS, ALL_AROUND = 24, 0.75  # of a slice, by the angle around its middle, and the share of them that counts as all
TOP, BASE = 0.5, 0.7  # area of the first and the last slice of a whole head, as shares of the largest
MIN_HEIGHT = 0.6  # of a whole head's mask, as a share of the diameter of its largest slice


def implausible(mask: np.ndarray, ml: float, volume: Volume, working: WorkingImage) -> tuple[str, ...]:
    """What cannot be about a result, in sentences; empty for almost all.

    Args:
        mask: uint8 (z, y, x) of 0 and 1 on the scan's own grid.
        ml: its volume.
        volume, working: the scan, and on the working grid.
    """
    blood = np.zeros(working.hu.shape, bool)
    if mask.any():
        in_lps, _ = volume.with_voxels(mask).in_lps()
        blood = working.grid.from_scan(in_lps.astype(np.float32)) >= 0.5
    voxel_ml = float(np.prod(working.grid.spacing)) / 1000
    intracranial_ml = float(working.intracranial.sum()) * voxel_ml
    reasons = []
    if ml > MAX_ML:
        reasons.append(f"A hemorrhage of {ml:.0f} mL is more than a head can hold ({MAX_ML:.0f} mL).")
    whole = reaches_from_base_to_vertex(working)
    if whole and ml > MAX_INTRACRANIAL_SHARE * intracranial_ml:
        reasons.append(f"A hemorrhage of {ml:.0f} mL is more than a fifth of the intracranial volume.")
    if float(blood.sum()) * voxel_ml >= RIM_ML and rim_share(blood, working) > RIM_SHARE:
        reasons.append(
            f"Most of the hemorrhage lies within {RIM_MM:.0f} mm of bone all around the head: it is the skull."
        )
    low, high = INTRACRANIAL_ML
    too_small = whole and intracranial_ml < low and (intracranial_ml < INFANT_ML or not is_infant(working))
    if too_small or intracranial_ml > high:  # no part of a head has more than a whole one
        reasons.append(
            f"The intracranial volume would be {intracranial_ml:.0f} mL, where heads have {low:.0f} to {high:.0f} mL: "
            "the inside of the skull was not found."
        )
    return tuple(reasons)


def reaches_from_base_to_vertex(working: WorkingImage) -> bool:
    """Whether a scan shows a whole head, by the areas of its intracranial mask from inferior to superior."""
    areas = working.intracranial.sum(axis=(1, 2), dtype=np.int64)
    held = np.flatnonzero(areas)
    if not len(held):
        return False
    first, last, largest = held[0], held[-1], int(areas.max())
    mm_z, mm_y, mm_x = working.grid.spacing
    diameter = 2 * np.sqrt(largest * mm_y * mm_x / np.pi)
    tall = (last - first + 1) * mm_z >= MIN_HEIGHT * diameter
    closed_above = last < len(areas) - 1 or areas[last] <= TOP * largest
    closed_below = first > 0 or areas[first] <= BASE * largest
    return bool(tall and closed_above and closed_below)


def is_infant(working: WorkingImage) -> bool:
    """Whether the whole head, scalp included, is too small for an older child's."""
    opening = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    largest = 0
    for plane, inside in zip(working.hu, working.intracranial, strict=True):
        if not inside.any():
            continue
        tissue = cv2.morphologyEx((plane > plane.min() + 5).astype(np.uint8), cv2.MORPH_OPEN, opening)
        labels, _ = labeled(tissue | inside)
        sizes = np.bincount(labels[inside])
        sizes[0] = 0
        head = without_holes(labels == sizes.argmax())
        largest = max(largest, int(head.sum()))
    return 0 < largest * working.grid.spacing[1] * working.grid.spacing[2] / 100 < INFANT_CM2


def rim_share(blood: np.ndarray, working: WorkingImage) -> float:
    """Share of the blood near bone or the mask's edge, counted in the slices where it goes all around the head.

    Args:
        blood: bool (z, y, x) on the working grid.
    """
    bone = _saturated_skull(working.hu)
    mm = working.grid.spacing[1]
    near_and_around = 0
    for z in np.flatnonzero(blood.any(axis=(1, 2))):
        inside = working.intracranial[z]
        soft = np.pad((inside & ~bone[z]).astype(np.uint8), 1)  # where the picture ends, the inside ends
        depth = cv2.distanceTransform(soft, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1] * mm
        near = blood[z] & (depth <= RIM_MM)
        if near.any() and _goes_around(near, inside | bone[z]):
            near_and_around += int(near.sum())
    return near_and_around / max(1, int(blood.sum()))


def _saturated_skull(hu: np.ndarray) -> np.ndarray:
    """Voxels at the highest value of the whole scan, in components as large as bones of a skull; bool (z, y, x)."""
    return drop_small_components(hu >= hu.max() - 0.5, share=0.05)


def _goes_around(near: np.ndarray, head: np.ndarray) -> bool:
    """Whether voxels lie in almost all directions from the middle of a slice's head; bool (y, x)."""
    middle = np.argwhere(head).mean(axis=0)
    y, x = (np.argwhere(near) - middle).T
    sectors = ((np.arctan2(y, x) / (2 * np.pi) + 0.5) * SECTORS).astype(int) % SECTORS
    return len(np.unique(sectors)) >= ALL_AROUND * SECTORS
