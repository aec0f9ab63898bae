"""Calibrate the range of a volume (`hemseg.volume_range`) on val, and write what came of it.

    python -m training range --data phe-sich-heads --weights weights --out docs/results/volume-range

The scans of val that have a reference mask are segmented three times each: as they are, mirrored, shifted. For each
pair of thresholds, the margin is the smallest that holds the reference in as many scans as `COVERAGE` needs by split
conformal prediction: with n scans, the margin of the ceil(0.9 (n + 1))-th. The pair with the narrowest ranges is taken.
Reference masks of val alone are used; test is left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.model import Model
from hemseg.scan import read
from hemseg.volume_range import volumes_at, widened

from ..console import console
from ..data.datasets import DataSet
from ..data.references import read_reference
from .robustness import check_and_segment

COVERAGE = 0.9
PAIRS = ((0.6, 0.8), (0.5, 0.9), (0.4, 0.6), (0.3, 0.7), (0.2, 0.8), (0.1, 0.9), (0.05, 0.95))


@dataclass(frozen=True)
class Scan:
    """What a scan of val contributes.

    Attributes:
        volume_ml: by the weights' own threshold.
        volumes: in mL by threshold: as it is, mirrored, shifted.
    """

    case: str
    reference_ml: float
    volume_ml: float
    volumes: dict[float, list[float]]

    def range(self, pair: tuple[float, float], margin: float) -> tuple[float, float]:
        """The range that users get."""
        low, high = widened(min(self.volumes[pair[1]]), max(self.volumes[pair[0]]), margin)
        return min(low, self.volume_ml), max(high, self.volume_ml)

    def needed(self, pair: tuple[float, float]) -> float:
        """The margin at which the range just holds the reference; infinite where nothing was found."""
        low, high = self.range(pair, 0.0)
        if low <= self.reference_ml <= high:
            return 0.0
        if self.reference_ml < low:
            return min(self.volumes[pair[1]]) / self.reference_ml - 1
        most = max(self.volumes[pair[0]])
        return self.reference_ml / most - 1 if most else math.inf


def scans_of(dataset: DataSet, model: Model, split: str = "val") -> list[Scan]:
    """Segment the scans of a split that have a reference with hemorrhage."""
    thresholds = tuple(sorted({t for pair in PAIRS for t in pair}))
    found = []
    for case in track(dataset.part(split), f"range, {dataset.name}", console=console):
        if case.reference is None or not (reference := read_reference(case.reference)).any():
            continue
        volume = read(case.image)
        result = check_and_segment(volume, model)
        ml = float(reference.sum()) * volume.voxel_ml
        found.append(Scan(case.name, ml, result.volume_ml, volumes_at(result, model, thresholds)))
    if not found:
        raise HemsegError(f"{dataset.name}: has no reference masks in {split}; the range cannot be calibrated.")
    return found


def margin_of(scans: list[Scan], pair: tuple[float, float]) -> float:
    """The margin of a pair of thresholds, by split conformal prediction; infinite where a scan would need it."""
    needed = sorted(scan.needed(pair) for scan in scans)
    rank = min(len(scans), math.ceil(COVERAGE * (len(scans) + 1)))
    return needed[rank - 1]


def width(scan: Scan, pair: tuple[float, float], margin: float) -> float:
    """Of the range, as a share of the volume; infinite where nothing was found."""
    low, high = scan.range(pair, margin)
    return (high - low) / scan.volume_ml if scan.volume_ml else math.inf


def rounded_up(margin: float) -> float:
    """A margin as the manifest holds it, never smaller than it was."""
    return math.ceil(margin * 1e4) / 1e4


def summary(scans: list[Scan], pair: tuple[float, float]) -> dict[str, Any]:
    """A row per pair: its margin, the share of references within the range, the median width.

    ``left_out`` is the share of references that lie within a range whose margin was made of the other scans.
    """
    margin = margin_of(scans, pair)
    held = [s.needed(pair) <= margin for s in scans]
    left_out = [s.needed(pair) <= margin_of([o for o in scans if o is not s] or scans, pair) for s in scans]
    return {
        "low_threshold": pair[0],
        "high_threshold": pair[1],
        "margin": margin,
        "scans": len(scans),
        "held": sum(held) / len(scans),
        "left_out": sum(left_out) / len(scans),
        "median_width": float(np.median([width(s, pair, margin) for s in scans])),
    }


def calibrate(scans: list[Scan]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All rows, and the one with the narrowest ranges.

    Raises:
        HemsegError: no margin holds enough references, as nothing was found in some scans.
    """
    rows = [summary(scans, pair) for pair in PAIRS]
    usable = [row for row in rows if math.isfinite(row["margin"]) and math.isfinite(row["median_width"])]
    if not usable:
        raise HemsegError("no margin holds nine of ten references: too many scans of val have no hemorrhage found.")
    return rows, min(usable, key=lambda row: row["median_width"])


def page(rows: list[dict[str, Any]], chosen: dict[str, Any], scans: list[Scan], weights: str) -> str:
    """``table.md``."""
    pair, margin = (chosen["low_threshold"], chosen["high_threshold"]), chosen["margin"]
    lines = [
        f"| {row['low_threshold']:g}, {row['high_threshold']:g} | {row['margin']:.3f} | {row['held']:.0%} "
        f"| {row['left_out']:.0%} | {row['median_width']:.0%} |"
        for row in rows
    ]
    each = []
    for scan in sorted(scans, key=lambda s: s.reference_ml):
        low, high = scan.range(pair, margin)
        each.append(
            f"| {scan.reference_ml:.1f} | {scan.volume_ml:.1f} | {low:.1f} to {high:.1f} "
            f"| {width(scan, pair, margin):.0%} |"
        )
    return PAGE.format(
        weights=weights,
        scans=len(scans),
        rows="\n".join(lines),
        low=pair[0],
        high=pair[1],
        margin=margin,
        each="\n".join(each),
    )


PAGE = """# The range of a volume

<!-- made by `python -m training range` -->

Weights {weights}, {scans} scans of val with a reference. *Held*: references within the range, with the margin that was made of the same scans; *left
out*: with the margin made of the others. *Width*: of the range, as a share of the volume, median.

| thresholds | margin | held | left out | width |
|---|---|---|---|---|
{rows}

Taken: {low:g} and {high:g} with a margin of {margin:.3f}, the narrowest. With so few scans, nine in ten is a rough promise, and it holds for scans like these.

| reference (mL) | volume (mL) | range (mL) | width |
|---|---|---|---|
{each}
"""  # noqa: E501


def write_page(text: str, folder: Path) -> None:
    """Write ``table.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
