"""Painted bleeds in held-out heads: how small, how faint and of which kind may a bleed be and still be found?

    python -m training painted --data phe-sich-heads --split test --out docs/results/painted
    python -m training painted --run RUN --sheet runs/painted.png      samples of what training paints, to look at

Which bleed goes into which head stands in `training/configs/painted.csv` (kind, seed, contrast uniform in 10-48 HU,
radius), made once, before any weights that it measures. Bleeds are painted on the scan's own grid, and the scan then
goes the way that users' scans go. What the weights mark in the scan without the painted bleed does not count.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track
from scipy import ndimage

from hemseg.errors import HemsegError
from hemseg.model import Model
from hemseg.postprocessing import mask_on_scan
from hemseg.scan import read
from hemseg.segmentation import Segmentation
from hemseg.volume import Volume

from ..config import CONFIGS
from ..console import console
from ..data.datasets import DataSet, Prepared
from ..data.painted import CONTRAST_HU, DISTRACTORS, KINDS, UNKNOWN, add_bleed, add_distractor
from ..data.painted_place import place_of
from .metrics import lesion_counts, overlap
from .robustness import check_and_segment

PLAN = CONFIGS / "painted.csv"
VOLUME_CLASSES = ((0.03, 0.1), (0.1, 0.5), (0.5, 2.0), (2.0, float("inf")))  # mL
CONTRAST_CLASSES = ((10.0, 20.0), (20.0, 35.0), (35.0, 48.0))  # HU
MIN_ML = 0.1  # of a false lesion
TILE = (180, 150)  # pixels of a sheet's picture


@dataclass(frozen=True)
class PlannedBleed:
    """One bleed of the plan: the ``head``-th scan of a split gets it."""

    head: int
    kind: str
    seed: int
    contrast_hu: float
    radius_mm: float


def make_plan(heads: int = 20, each: int = 2, seed: int = 2026) -> list[PlannedBleed]:
    """``each`` bleeds of every kind per head."""
    rng = np.random.default_rng(seed)
    return [
        PlannedBleed(
            head,
            kind,
            int(rng.integers(2**31)),
            round(float(rng.uniform(*CONTRAST_HU)), 1),
            round(float(np.exp(rng.uniform(np.log(2.0), np.log(25.0)))), 1),
        )
        for head in range(heads)
        for kind in KINDS
        for _ in range(each)
    ]


def read_plan(path: Path = PLAN) -> list[PlannedBleed]:
    """The plan as committed."""
    with path.open(newline="") as stream:
        return [
            PlannedBleed(int(r["head"]), r["kind"], int(r["seed"]), float(r["contrast_hu"]), float(r["radius_mm"]))
            for r in csv.DictReader(stream)
        ]


def painted_heads(dataset: DataSet, split: str, model: Model, plan: list[PlannedBleed]) -> list[dict[str, Any]]:
    """One row per painted bleed: mL, whether a lesion touches it, or one of its slices has become doubtful,
    Dice, and lesions that came with it elsewhere.
    """
    rows = []
    for number, case in enumerate(track(dataset.part(split), f"painted, {dataset.name} {split}", console=console)):
        planned = [p for p in plan if p.head == number]
        if not planned:
            continue
        volume = read(case.image)
        before = check_and_segment(volume, model)
        for bleed, changed, label in planned_bleeds(volume, before, planned):
            truth = label == 1
            after = check_and_segment(changed, model)
            row = _row(bleed, truth, label == UNKNOWN, after.mask, before.mask, volume)
            named = set(after.doubtful_slices) - set(before.doubtful_slices)
            held = np.flatnonzero(volume.with_voxels(truth).in_lps()[0].any(axis=(1, 2)))
            row["found_or_doubtful"] = int(row["found"] or bool(named & set(held.tolist())))
            rows.append({"case": case.name, "split": split, **row})
    return rows


def planned_bleeds(
    volume: Volume, before: Segmentation, planned: list[PlannedBleed]
) -> Iterator[tuple[PlannedBleed, Volume, np.ndarray]]:
    """Each bleed for which there is room, painted into a scan by itself; with its label on the scan's grid (1, 0,
    `UNKNOWN`), int8.

    Args:
        before: what the scan is without it; its inside of the skull is painted into.
    """
    inside = volume.from_lps(mask_on_scan(before.working.intracranial.astype(np.float32), before.working, 0.5)) > 0
    place = place_of(volume.hu, inside, (volume.spacing[2], volume.spacing[1], volume.spacing[0]))
    for bleed in planned:
        rng = np.random.default_rng(bleed.seed)
        empty = np.zeros(volume.hu.shape, np.int8)
        hu, label = add_bleed(volume.hu, empty, place, rng, bleed.kind, bleed.contrast_hu, bleed.radius_mm)
        if (label == 1).any():
            yield bleed, replace(volume, hu=hu, path=None), label


def _row(
    bleed: PlannedBleed, truth: np.ndarray, unseen: np.ndarray, mask: np.ndarray, before: np.ndarray, volume: Volume
) -> dict[str, Any]:
    known = ndimage.binary_dilation(before > 0, np.ones((3, 3, 3), bool), iterations=2) & ~truth
    new = (mask > 0) & ~known & ~unseen  # what bone's edge hides is neither right nor wrong
    return {
        "kind": bleed.kind,
        "contrast_hu": bleed.contrast_hu,
        "ml": float(truth.sum() * volume.voxel_ml),
        "found": int((new & truth).any()),
        "dice": overlap(new, truth & ~known)["dice"],
        "false_lesions": lesion_counts(new, truth, volume.voxel_ml, MIN_ML)["lesions_false"],
    }


def painted_summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Recall, Dice and false lesions by volume, by contrast and by kind; the latter two from 0.1 mL on."""
    large = [row for row in rows if row["ml"] >= MIN_ML]
    groups = [
        *((f"{a:g}..{b:g} mL", [r for r in rows if a <= r["ml"] < b]) for a, b in VOLUME_CLASSES),
        *((f"{a:g}..{b:g} HU", [r for r in large if a <= r["contrast_hu"] < b]) for a, b in CONTRAST_CLASSES),
        *((kind, [r for r in large if r["kind"] == kind]) for kind in KINDS),
    ]
    return [
        {
            "bleeds": name,
            "number": len(own),
            "found": float(np.mean([r["found"] for r in own])) if own else float("nan"),
            "found_or_doubtful": float(np.mean([r["found_or_doubtful"] for r in own])) if own else float("nan"),
            "dice": float(np.mean([r["dice"] for r in own])) if own else float("nan"),
            "false_lesions": float(np.mean([r["false_lesions"] for r in own])) if own else float("nan"),
        }
        for name, own in groups
    ]


def sheet(cases: Iterator[Prepared], mm: tuple[float, float, float], seed: int = 0, columns: int = 10) -> np.ndarray:
    """A contact sheet of what training paints, uint8 BGR: a row per kind; in the right half with its outline.

    Raises:
        HemsegError: there is no case to paint into.
    """
    heads = [case for case in cases if case.intracranial.any()]
    if not heads:
        raise HemsegError("there is no prepared scan to paint into; run the stage `pseudolabel` first.")
    rows = []
    for number, kind in enumerate((*KINDS, *DISTRACTORS)):
        tiles = []
        for column in range(columns):
            rng = np.random.default_rng([seed, number, column])
            case = heads[int(rng.integers(len(heads)))]
            place, label = place_of(case.hu, case.intracranial, mm), np.zeros(case.hu.shape, np.int8)
            if kind in KINDS:
                hu, label = add_bleed(case.hu, label, place, rng, kind)
            else:
                hu = add_distractor(case.hu, place, rng, kind)
            z = int(np.abs(hu - case.hu).sum(axis=(1, 2)).argmax())
            tiles.append(_tile(hu[z], case.intracranial[z], label[z] == 1, 2 * column >= columns))
        rows.append(np.hstack(tiles))
    return np.vstack(rows)


def _tile(hu: np.ndarray, inside: np.ndarray, blood: np.ndarray, outline: bool) -> np.ndarray:
    gray = np.where(inside, hu, 0).clip(0, 80) / 80 * 255
    picture = cv2.cvtColor(gray.astype(np.uint8), cv2.COLOR_GRAY2BGR)
    if outline:
        found, _ = cv2.findContours(blood.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, found, -1, (0, 0, 255), 1)
    at = np.argwhere(inside)
    cy, cx = at.mean(axis=0).astype(int) if len(at) else (hu.shape[0] // 2, hu.shape[1] // 2)
    rows, columns = TILE
    wide = np.pad(picture, ((rows, rows), (columns, columns), (0, 0)))
    return wide[
        cy + rows - rows // 2 : cy + rows + rows // 2, cx + columns - columns // 2 : cx + columns + columns // 2
    ]
