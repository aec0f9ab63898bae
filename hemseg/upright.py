"""Which way up a head lies in the picture: its two sides mirror each other, front and back do not (beyond the paper).

Heads lie on their back in almost every scan, and the networks learned from nothing else. A head that lies across (a
patient on the side, a wrong direction in the header) is shown to them turned by a quarter: a turn of the grid, which
changes no voxel. The long axis alone would not show it: of 150 heads, some are as wide as they are long.
"""

from __future__ import annotations

import cv2
import numpy as np

MIN_SLICES = 12  # of the working grid; a few slices of an upright head are as symmetrical across now and then
# so many times better the halves of a head that lies across match from top to bottom than side by side
MIN_ASYMMETRY_RATIO = 1.2
AXIS_SEARCH_DEGREES = 30.0  # to either side of upright, or of across, in which the axis of symmetry is looked for
RADIUS_MM, STEP_MM = 96.0, 4.0
ANGLES = 72  # around the circle


def quarters_to_upright(hu: np.ndarray, intracranial: np.ndarray, mm: float) -> int:
    """Quarter turns, as `numpy.rot90` counts them in (y, x), that bring a head upright which lies clearly across.

    The front is where the intracranial space narrows: so it is in 149 of 150 heads. One that is upside down is left so.

    Args:
        hu, intracranial: (z, y, x) on the working grid.
        mm: its pixel size.

    Returns:
        1, 3, or 0: upright, upside down, oblique, or not clear.
    """
    slices = np.flatnonzero(intracranial.any(axis=(1, 2)))
    if len(slices) < MIN_SLICES:
        return 0
    area = intracranial.sum(axis=0)
    total = float(area.sum())
    columns, rows = np.arange(area.shape[1]), np.arange(area.shape[0])
    middle = float((area.sum(axis=1) * rows).sum() / total), float((area.sum(axis=0) * columns).sum() / total)
    some = slices[:: len(slices) // MIN_SLICES]  # enough of them
    polar = [_to_polar(planes[some], middle, mm) for planes in (hu, intracranial)]
    across, upright = (_least_asymmetry(polar, quarter) for quarter in (0, ANGLES // 2))
    if across * MIN_ASYMMETRY_RATIO >= upright:
        return 0
    narrows_to_the_right = float((area.sum(axis=0) * (columns - middle[1]) ** 3).sum()) > 0
    return 1 if narrows_to_the_right else 3


def turned(array: np.ndarray, quarters: int) -> np.ndarray:
    """An array (z, y, x) turned in plane by quarters of a circle, as `numpy.rot90` counts them."""
    return np.ascontiguousarray(np.rot90(array, quarters, axes=(1, 2))) if quarters % 4 else array


def _to_polar(planes: np.ndarray, middle: tuple[float, float], mm: float) -> np.ndarray:
    """Slices (z, y, x) in polar coordinates around a point (y, x): (z, angle, radius)."""
    radius = np.arange(STEP_MM / 2, RADIUS_MM, STEP_MM) / mm
    angle = np.arange(ANGLES)[:, None] * (2 * np.pi / ANGLES)
    x = (middle[1] + radius * np.cos(angle)).astype(np.float32)
    y = (middle[0] + radius * np.sin(angle)).astype(np.float32)
    wide = max(1, round(STEP_MM / mm)) | 1  # pixels that a sample stands for
    outside = float(planes.min())
    return np.stack(
        [
            cv2.remap(cv2.blur(plane, (wide, wide)), x, y, cv2.INTER_LINEAR, borderValue=outside)
            for plane in np.ascontiguousarray(planes, np.float32)
        ]
    )


def _least_asymmetry(pictures: list[np.ndarray], axis: int) -> float:
    """By how much pictures (z, angle, radius) differ from their mirror images, at the best axis near a given one.

    Of the scan and of its mask, as their geometric mean: neither a flap that is missing nor a bleed speaks for both.

    Args:
        axis: in steps of 180 degrees / `ANGLES`; 0 is across.
    """
    at = np.arange(ANGLES)
    weight = np.arange(pictures[0].shape[2]) + 0.5  # an outer sample stands for more of the plane
    weight /= weight.sum()
    steps = round(AXIS_SEARCH_DEGREES * ANGLES / 180)
    found = []
    for k in range(axis - steps, axis + steps + 1):
        mirrored = (k - at) % ANGLES  # twice the axis less the angle; axes go half as far as angles in a step
        differ = [np.abs(one - one[:, mirrored]).mean(axis=(0, 1)) @ weight for one in pictures]
        found.append(float(np.prod(differ)) ** (1 / len(differ)))
    return min(found)
