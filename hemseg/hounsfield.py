"""Are these values Hounsfield units? Judged by the level of the brain, not by the extremes.

A scan may be stored in any window whose bottom lies in -1024..10 and whose top lies in 70..3071 HU, so neither its
lowest nor its highest value says anything; one odd voxel must not either. What stays is that brain has 25 to 40 HU and
is the most of what is neither background nor bone. In a picture of gray values it lies elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from hemseg.errors import HemsegError

BLOCK_MM = 4.0  # blocks of pixels that are averaged: noise goes, gray and white matter stay
MAX_SLICES, STEP = 40, 2  # of the scan that are looked at, and every such pixel for percentiles
OUTLIER_PERCENT = 0.05  # of voxels at an end of the range that are too few to mean anything
MIN_PLATEAU_SHARE = 0.02  # of voxels at one and the same value at an end of the range: background, or saturation
BACKGROUND = 0.025  # of the range above its lower end, up to which values count as background: noise of air
MIN_RANGE = 50.0  # the narrowest window: 10..70 HU, less what noise does to its percentiles
MAX_BRAIN_HU = 62.0  # of the brain's 40 HU, and 15 by a scanner that is off
MAX_BRAIN_HU_IN_GRAY = 50.0  # the same where values of 0..255 suggest a picture
GRAY_TOP = (110.0, 255.0)
MAX_GRAIN = 9.0  # grain of brain in HU; in a stroke window's gray values it is six times as large
OFFSET_HU = (900.0, 1250.0)  # of the brain where 1024 was not subtracted


@dataclass(frozen=True)
class Values:
    """What a scan's values are like, in their own units.

    Attributes:
        low, high: of what is no padding, the value at the bottom that many voxels share, or else the first percentile;
            and the 99.9th percentile.
        mode, median: of what is neither background nor saturated, averaged over blocks of 4 mm: the brain's in a head.
        grain: standard deviation within a block: noise; of a brain in HU 3 to 12.
    """

    low: float
    high: float
    mode: float
    median: float
    grain: float


def describe(hu: np.ndarray, spacing: tuple[float, float, float]) -> Values:
    """The values of a scan (z, y, x; any units), whose ``spacing`` (z, y, x) is in mm."""
    looked_at = np.unique(np.linspace(0, len(hu) - 1, min(len(hu), MAX_SLICES)).round().astype(int))
    planes = [np.ascontiguousarray(hu[z], dtype=np.float32) for z in looked_at]
    values = np.concatenate([plane[::STEP, ::STEP].ravel() for plane in planes])
    bottom, top = -np.inf, np.inf
    for _ in range(2):  # padding around the field of view, then air
        above = values[values > bottom]
        if not len(above):
            break
        lowest = float(np.percentile(above, OUTLIER_PERCENT, method="lower"))
        if (above == lowest).sum() < MIN_PLATEAU_SHARE * len(values):
            break
        bottom = lowest
    within = values[values > bottom]
    if not len(within):
        within = values
    low, high = (float(v) for v in np.percentile(within, (1, 99.9)))
    highest = float(np.percentile(within, 100 - OUTLIER_PERCENT, method="higher"))
    if (values == highest).sum() >= MIN_PLATEAU_SHARE * len(values):
        top = highest
    limit = low + BACKGROUND * (high - low)
    means, grains = np.concatenate([_blocks(plane, spacing[1:], bottom, top) for plane in planes], axis=1)
    chosen = (means > limit) & (means < high)
    tissue, grain = (means[chosen], float(np.median(grains[chosen]))) if chosen.any() else (within, 0.0)
    if bottom > low - (high - low):  # background next to the tissue: the bottom of a window, no padding
        low = bottom
    return Values(low, high, _mode(tissue), float(np.median(tissue)), grain)


def _blocks(plane: np.ndarray, spacing: tuple[float, ...], bottom: float, top: float) -> np.ndarray:
    """Averages and standard deviations (2, n) of a slice's blocks without background or saturated voxels."""
    rows, columns = (max(1, round(n * mm / BLOCK_MM)) for n, mm in zip(plane.shape, spacing, strict=True))
    size = (min(columns, plane.shape[1]), min(rows, plane.shape[0]))
    with np.errstate(over="ignore", invalid="ignore"):  # values of 1e30, which are refused in a sentence of their own
        means, squares = (cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (plane, plane * plane))
        variance = np.maximum(squares - means * means, 0)
    ends = ((plane <= bottom) | (plane >= top)).astype(np.float32)
    whole = cv2.resize(ends, size, interpolation=cv2.INTER_AREA) == 0
    return np.stack([means[whole], np.sqrt(variance[whole])])


def _mode(values: np.ndarray) -> float:
    """The most frequent value, to about a 200th of the range of the middle 98 %."""
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        return float(low)
    counts, edges = np.histogram(values, bins=200, range=(float(low), float(high)))
    smooth = cv2.GaussianBlur(counts.astype(np.float32)[None], (0, 0), 2.0)[0]
    at = int(smooth.argmax())
    return float(edges[at] + edges[at + 1]) / 2


def require_hounsfield_units(hu: np.ndarray, spacing: tuple[float, float, float], name: str) -> None:
    """Raise where values are not HU.

    Args:
        hu: (z, y, x).
        spacing: (z, y, x) mm.
        name: what the sentence begins with.

    Raises:
        HemsegError: HU + 1024, gray values, MR, values scaled to a small range.
    """
    found = describe(hu, spacing)
    levels = sorted((found.mode, found.median))
    if OFFSET_HU[0] < levels[0] and levels[1] < OFFSET_HU[1] and found.high > OFFSET_HU[0]:
        raise HemsegError(
            f"{name}: its values look like HU + 1024 (tissue at {levels[0]:.0f}): the intercept is missing; "
            "subtract 1024, or export it with RescaleIntercept."
        )
    gray = found.low >= 0 and GRAY_TOP[0] <= found.high <= GRAY_TOP[1]
    brain = levels[0] <= MAX_BRAIN_HU_IN_GRAY and found.grain <= MAX_GRAIN
    if found.high - found.low < MIN_RANGE or levels[0] > MAX_BRAIN_HU or (gray and not brain):
        raise HemsegError(
            f"{name}: is not in HU: values from {found.low:.4g} to {found.high:.4g}, tissue at {levels[0]:.4g}; air "
            "is -1000 HU and brain 35. Is it MR, a picture of gray values, or scaled? Give a CT in HU."
        )
