"""How much two scans of a hemorrhage that did not change differ, as measured: `python -m training retest` writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from hemseg.compare.change import Band
from hemseg.manifest import POINT_KEYS, Manifest

FILE = "retest_limits.json"
MEASURED_WITH = ("sha256", *POINT_KEYS)


@dataclass(frozen=True)
class RetestLimits:
    """95 % limits of agreement (Bland & Altman, Lancet 327:307, 1986) of the volume of one hemorrhage, measured twice.

    Attributes:
        weights, sha256, threshold, outline_threshold, min_peak, min_lesion_ml, min_slice_probability: what segmented,
            see `hemseg.manifest.Manifest`.
        pairs: how many pairs of scans were measured; hemorrhage of at least ``above_ml`` in ``pairs_above``.
        above_ml: from here on the limits are given in percent, below it in mL.
        mean_percent, low_percent, high_percent: of the mean of both volumes.
        mean_ml, low_ml, high_ml: of the hemorrhages below ``above_ml``; never narrower limits than these.
    """

    weights: str
    sha256: str
    threshold: float
    outline_threshold: float
    min_peak: float
    min_lesion_ml: float
    min_slice_probability: float
    pairs: int
    pairs_above: int
    above_ml: float
    mean_percent: float
    low_percent: float
    high_percent: float
    mean_ml: float
    low_ml: float
    high_ml: float

    def hold_for(self, manifest: Manifest) -> bool:
        """Whether they were measured with these weights, at this operating point."""
        return all(getattr(self, name) == getattr(manifest, name) for name in MEASURED_WITH)

    def band(self, baseline_ml: float, followup_ml: float) -> Band:
        """The limits for two volumes."""
        ml = (baseline_ml + followup_ml) / 2
        if ml < self.above_ml:
            return Band(self.low_ml, self.high_ml)
        low, high = ml * self.low_percent / 100, ml * self.high_percent / 100
        return Band(min(low, self.low_ml), max(high, self.high_ml))


def read_limits() -> RetestLimits | None:
    """The limits that came with hemseg; None where none did."""
    file = files("hemseg.compare").joinpath(FILE)
    if not file.is_file():
        return None
    values: dict[str, Any] = json.loads(file.read_text())
    return RetestLimits(**values)
