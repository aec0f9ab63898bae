"""What changed between two masks: volume, expansion, lesions that came and went. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hemseg.components import numbered_components

# Dowlatshahi et al., Neurology 76:1238, 2011; the third is Brott et al., Stroke 28:1, 1997
EXPANSION_ML, EXPANSION_PERCENT = 6.0, 33.0
NEAR_MM = 2.0  # lesions so near to each other after alignment are one: alignment and slices are not exact
MIN_ML = 0.1  # of a lesion that is listed; smaller ones count for the volume alone
ROUNDING = 1e-9  # of sums of binary numbers: 33 % is 33 %


@dataclass(frozen=True)
class Band:
    """Differences (mL) that mean nothing: of a hemorrhage that did not change, 95 % lie within."""

    low_ml: float
    high_ml: float


@dataclass(frozen=True)
class Change:
    """Volumes of two scans, in mL, and what they are compared with.

    Attributes:
        least_ml, least_percent: expansion is growth by at least so many mL, or by more than so many percent.
        band: see `Band`; None where it is not known.
    """

    baseline_ml: float
    followup_ml: float
    least_ml: float = EXPANSION_ML
    least_percent: float = EXPANSION_PERCENT
    band: Band | None = None

    @property
    def ml(self) -> float:
        """By how much it grew."""
        return self.followup_ml - self.baseline_ml

    @property
    def percent(self) -> float | None:
        """Of the baseline; None where that holds no hemorrhage."""
        return 100 * self.ml / self.baseline_ml if self.baseline_ml > 0 else None

    @property
    def measurable(self) -> bool | None:
        """Whether it is more than what two scans of the same hemorrhage differ by; None where that is not known."""
        if self.band is None:
            return None
        return not self.band.low_ml <= self.ml <= self.band.high_ml

    @property
    def reaches_thresholds(self) -> bool:
        """Whether the volumes as they are reach one of the thresholds of expansion."""
        percent = self.percent
        return self.ml >= self.least_ml - ROUNDING or (percent is not None and percent > self.least_percent + ROUNDING)

    @property
    def expansion(self) -> bool:
        """Whether it grew by a threshold, and measurably."""
        return self.reaches_thresholds and self.measurable is not False

    @property
    def verdict(self) -> str:
        """In words."""
        if self.baseline_ml == 0 and self.followup_ml == 0:
            return "no hemorrhage in either scan"
        if self.measurable is False:
            return "no measurable change"
        if self.expansion:
            return "expansion" if self.baseline_ml > 0 else "new hemorrhage, expansion"
        if self.baseline_ml == 0:
            return "new hemorrhage"
        if self.followup_ml == 0:
            return "hemorrhage gone"
        return "growth below the thresholds of expansion" if self.ml > 0 else "decrease" if self.ml < 0 else "no change"


@dataclass(frozen=True)
class LesionPair:
    """Lesions of the baseline and of the follow-up that are the same: several where they merged or split.

    Attributes:
        baseline, followup: their numbers, from 0, the largest first; empty for a lesion that is new or gone.
    """

    baseline: tuple[int, ...]
    followup: tuple[int, ...]
    baseline_ml: float
    followup_ml: float

    @property
    def kind(self) -> str:
        """``matched``, ``new`` or ``gone``."""
        if not self.baseline:
            return "new"
        return "matched" if self.followup else "gone"


def numbered_lesions(mask: np.ndarray, voxel_ml: float) -> tuple[np.ndarray, list[float]]:
    """Connected components (26 neighbours) of a mask (z, y, x) of at least `MIN_ML`, the largest first.

    Returns:
        int16 (z, y, x), 1 for the first one, 0 for none; their volumes in mL.
    """
    numbers, sizes = numbered_components(mask > 0)
    ml = sizes * voxel_ml
    listed = int(np.count_nonzero(ml >= MIN_ML))
    return np.where(numbers <= listed, numbers, 0).astype(np.int16), [float(v) for v in ml[:listed]]


def match_lesions(
    baseline: np.ndarray,
    followup: np.ndarray,
    spacing: tuple[float, float, float],
    volumes: tuple[list[float], list[float]],
) -> list[LesionPair]:
    """Which lesions are the same: those that touch, or lie within `NEAR_MM` of each other, on one grid.

    Args:
        baseline, followup: numbered lesions (z, y, x) of both scans on the same grid, see `numbered_lesions`.
        spacing: of that grid (z, y, x) in mm.
        volumes: of the lesions of both, in mL, as measured on their own grids.

    Returns:
        The matched ones, the largest first, then the new ones, then those that are gone.
    """
    counts = [len(v) for v in volumes]
    total = sum(counts)
    edges = np.zeros((0, 2), int)
    if followup.any() and baseline.any():
        far, nearest = ndimage.distance_transform_edt(followup == 0, sampling=spacing, return_indices=True)
        grown = np.where(far <= NEAR_MM, followup[tuple(nearest)], 0)
        touching = (baseline > 0) & (grown > 0)
        edges = np.unique(np.stack([baseline[touching], grown[touching]], axis=1).astype(int), axis=0)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0] - 1, counts[0] + edges[:, 1] - 1)), shape=(total, total))
    groups = connected_components(graph, directed=False)[1] if total else np.zeros(0, int)
    pairs = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        before = tuple(int(i) for i in members if i < counts[0])
        after = tuple(int(i) - counts[0] for i in members if i >= counts[0])
        pairs.append(LesionPair(before, after, sum(volumes[0][i] for i in before), sum(volumes[1][i] for i in after)))
    rank = {"matched": 0, "new": 1, "gone": 2}
    return sorted(pairs, key=lambda pair: (rank[pair.kind], -max(pair.baseline_ml, pair.followup_ml)))
