"""Masks of scans as users have them: other windows, shifted HU, artefacts, few slices.

    python -m training robustness --data phe-sich-heads --split test --stripped phe-sich --out docs/results/robustness

The same scans again and again, changed as exports change them: clipped to a window, shifted by some HU, blurred, cut
down to a few slices. Every row is measured through the path that users take.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track
from scipy import ndimage

from hemseg.checks import check_scan
from hemseg.components import boxes, labeled
from hemseg.errors import HemsegError
from hemseg.model import Model
from hemseg.scan import read
from hemseg.segmentation import Segmentation, segment
from hemseg.strip import disc
from hemseg.volume import Volume

from ..console import console
from ..data.anatomy import Options
from ..data.datasets import DataSet
from ..data.phantom import Grid, make_phantom
from ..data.references import read_reference
from .metrics import overlap
from .scan_changes import CHANGES, ScanChange, cut_slices, window_change
from .stripping import intracranial_reference, kept_slices
from .tables import write_table

COUNTS = (1, 2, 3, 5, 8)
OUTSIDE_MM = 2.0  # so far outside the intracranial space a voxel may lie: the reference ends at bone that is half brain
FAR_SLICES = 2  # blanked slices so far from those with brain hold none
DEEP_MM, CSF_HU, CSF_SHARE = 12.0, 18.0, 0.2  # blood in a ventricle lies deep in the brain and touches fluid
ML_PER_SLICE = 1.0
MIN_ML = 0.1  # of a false lesion
HEADS = {
    "straight": Options(),
    "roll 90": Options(roll=90),
    "tilt 25": Options(tilt=25),
    "tilt -25": Options(tilt=-25),
    "craniectomy": Options(craniectomy=True),
    "child": Options(skull="child"),
    "infant": Options(skull="infant"),
    "second head": Options(second_head=True),
}
FULL_WINDOWS = ((-100.0, 300.0), (0.0, 80.0))


def check_and_segment(volume: Volume, model: Model) -> Segmentation:
    """Check and segment, as the command line does."""
    volume, working = check_scan(volume, model.manifest.preprocessing, strip=model.strip)
    return segment(volume, model, working)


def allowed_space(stripped: np.ndarray, kinds: list[str], shape: tuple[int, ...], mm: float) -> np.ndarray:
    """Where blood can be, bool (z, y, x): the intracranial space and 2 mm around it; anywhere near its unknown ends.

    Args:
        stripped: (z, y, x), HU, the scan without what lies outside the skull.
        kinds: of its slices, see `training.evaluation.stripping.kept_slices`.
        shape: (z, y, x) of the scan itself.
        mm: its pixel size.
    """
    allowed = np.ones(shape, bool)
    brain = [z for z, kind in enumerate(kinds) if kind in ("base", "vault", "vertex")]
    for z, kind in enumerate(kinds):
        if z in brain:
            inside = cv2.resize(
                intracranial_reference(stripped[z], kind).astype(np.float32), shape[:0:-1], interpolation=cv2.INTER_AREA
            )
            allowed[z] = cv2.dilate((inside > 0).astype(np.uint8), disc(OUTSIDE_MM, mm)) > 0
        elif min((abs(z - other) for other in brain), default=99) > FAR_SLICES:
            allowed[z] = False
    return allowed


def false_lesions(result: Segmentation, reference: np.ndarray) -> tuple[int, int]:
    """Connected components of 0.1 mL and more that no reference touches: all, and of these those in the ventricles.

    A component counts as intraventricular where it lies deep in the brain and much of its surroundings is fluid.
    """
    labels, _ = labeled(result.mask, corners=True)
    found = ventricular = 0
    mm = result.volume.spacing[0]
    reach = max(1, round(3 / mm))
    for i, box in enumerate(boxes(labels), start=1):
        part = labels[box] == i
        if part.sum() * result.volume.voxel_ml < MIN_ML or (part & (reference[box] > 0)).any():
            continue
        found += 1
        window = (
            box[0],
            *(slice(max(0, s.start - reach), s.stop + reach) for s in box[1:]),
        )
        own = labels[window] == i
        near = ndimage.binary_dilation(own, ndimage.generate_binary_structure(2, 1)[None], iterations=reach) & ~own
        hu = result.volume.hu[window][near]
        lesion = min(result.lesions, key=lambda item: abs(item.volume_ml - part.sum() * result.volume.voxel_ml))
        fluid = ((hu < CSF_HU) & (hu > -15)).mean() if hu.size else 0.0
        ventricular += bool(fluid >= CSF_SHARE and lesion.skull_mm >= DEEP_MM)
    return found, ventricular


def changed_scans(
    dataset: DataSet, split: str, model: Model, stripped: Path | None = None, changes: tuple[ScanChange, ...] = CHANGES
) -> list[dict[str, Any]]:
    """One row per scan and change: Dice, volume, false lesions, mL outside the intracranial space, warnings."""
    kinds = kept_slices(stripped) if stripped else {}
    rows = []
    for case in track(dataset.part(split), f"robustness, {dataset.name} {split}", console=console):
        volume = read(case.image)
        reference = read_reference(case.reference) if case.reference else np.zeros(volume.hu.shape, np.uint8)
        allowed = None
        if stripped:
            own = [kinds[case.name, z] for z in range(len(volume.hu))]
            bare = read(stripped / "images" / case.image.name).hu
            allowed = allowed_space(bare, own, volume.hu.shape, volume.spacing[0])
        rows += [
            {"case": case.name, "split": split, "kind": change.kind, "change": change.name}
            | _measure_scan(
                change.apply(volume),
                change.carry(reference),
                None if allowed is None else change.carry(allowed),
                model,
            )
            for change in changes
        ]
    return rows


def _measure_scan(volume: Volume, reference: np.ndarray, allowed: np.ndarray | None, model: Model) -> dict[str, Any]:
    try:
        result = check_and_segment(volume, model)
    except HemsegError as error:
        return {"refused": str(error)}
    false, ventricular = false_lesions(result, reference)
    outside = result.mask.astype(bool) & ~allowed if allowed is not None else np.zeros(1, bool)
    return {
        "volume_ml": result.volume_ml,
        "reference_ml": float(reference.sum() * volume.voxel_ml),
        "dice": overlap(result.mask, reference)["dice"],
        "false_lesions": false,
        "in_ventricles": ventricular,
        "outside_ml": float(outside.sum() * volume.voxel_ml),
        "warnings": " ".join(result.volume.warnings),
    }


def change_summary(rows: list[dict[str, Any]], good: set[str]) -> list[dict[str, Any]]:
    """One row per change. ``good``: the cases whose reference is good."""
    first = {row["case"]: row for row in rows if row["change"] == CHANGES[0].name}
    result = []
    for key in dict.fromkeys((row["kind"], row["change"]) for row in rows):
        own = [row for row in rows if (row["kind"], row["change"]) == key and "refused" not in row]
        ratio = [
            abs(row["volume_ml"] / first[row["case"]]["volume_ml"] - 1)
            for row in own
            if first.get(row["case"], {}).get("volume_ml", 0) >= 1
        ]
        result.append(
            {
                "kind": key[0],
                "change": key[1],
                "scans": len(own),
                "refused": sum((row["kind"], row["change"]) == key for row in rows) - len(own),
                "dice": float(np.mean([row["dice"] for row in own])),
                "dice_good": float(np.mean([row["dice"] for row in own if row["case"] in good] or [np.nan])),
                "false_lesions_per_scan": float(np.mean([row["false_lesions"] for row in own])),
                "of_these_in_ventricles": float(np.mean([row["in_ventricles"] for row in own])),
                "outside_ml_most": max(row["outside_ml"] for row in own),
                "volume_change_median": float(np.median(ratio or [np.nan])),
                "volume_change_most": max(ratio, default=float("nan")),
            }
        )
    return result


def phantom_heads(model: Model, seeds: tuple[int, ...] = (301, 302, 303)) -> list[dict[str, Any]]:
    """Phantoms in full HU that lie otherwise, lack bone, are small, or are not alone: one row per head and window.

    A phantom with blood and the same head without: mL found, and mL outside the cranial cavity.
    """
    rows = []
    grid = Grid((30, 208, 208), (1.1, 1.1, 5.0), lower_mm=15.0)
    todo = [(name, seed, kinds) for name in HEADS for seed in seeds for kinds in (("intraparenchymal",), ())]
    for name, seed, kinds in track(todo, "robustness, phantoms", console=console):
        wide = replace(grid, shape=(30, 208, 360), left_mm=80.0) if HEADS[name].second_head else grid
        phantom = make_phantom(seed, kinds, wide, options=HEADS[name])
        changes = [ScanChange("window", "full", lambda v: v), *(window_change(*w) for w in FULL_WINDOWS)]
        for change in changes if name == "straight" else changes[:1]:
            result = check_and_segment(change.apply(phantom.volume), model)
            outside = result.mask.astype(bool) & ~phantom.intracranial
            rows.append(
                {
                    "head": name,
                    "window": change.name,
                    "seed": seed,
                    "true_ml": float(phantom.mask.sum() * phantom.volume.voxel_ml),
                    "found_ml": result.volume_ml,
                    "dice": overlap(result.mask, phantom.mask)["dice"],
                    "outside_ml": float(outside.sum() * phantom.volume.voxel_ml),
                    "implausible": " ".join(result.implausible),
                }
            )
    return rows


def phantom_summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per kind of head and window."""
    result = []
    for key in dict.fromkeys((row["head"], row["window"]) for row in rows):
        own = [row for row in rows if (row["head"], row["window"]) == key]
        ill, healthy = ([r for r in own if bool(r["true_ml"]) == has] for has in (True, False))
        result.append(
            {
                "head": key[0],
                "window": key[1],
                "true_ml": float(np.mean([r["true_ml"] for r in ill])),
                "found_ml": float(np.mean([r["found_ml"] for r in ill])),
                "dice": float(np.mean([r["dice"] for r in ill])),
                "healthy_ml_most": max(r["found_ml"] for r in healthy),
                "outside_ml_most": max(r["outside_ml"] for r in own),
                "implausible": sum(bool(r["implausible"]) for r in own),
            }
        )
    return result


def few_slices(dataset: DataSet, split: str, model: Model) -> list[dict[str, Any]]:
    """Slices cut from the middle of the bleed: Dice against the whole scan's result on the same slices.

    No row for more slices than a scan has.
    """
    rows = []
    for case in track(dataset.part(split), f"few slices, {dataset.name} {split}", console=console):
        if not case.reference:
            continue
        volume = read(case.image)
        reference = read_reference(case.reference)
        areas = reference.sum(axis=(1, 2))
        if not areas.any():
            continue
        whole = check_and_segment(volume, model)
        middle = int(areas.argmax())
        for count in (count for count in COUNTS if count <= len(areas)):
            first = int(np.clip(middle - count // 2, 0, len(areas) - count))
            part = slice(first, first + count)
            result = check_and_segment(cut_slices(volume, part), model)
            rows.append(
                {
                    "case": case.name,
                    "slices": count,
                    "reference_ml_middle": float(areas[middle] * volume.voxel_ml),
                    "dice_to_whole": overlap(result.mask, whole.mask[part])["dice"],
                    "dice": overlap(result.mask, reference[part])["dice"],
                    "found": int((result.mask & reference[part]).any()),
                }
            )
    return rows


def few_summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per number of slices; found counts patients whose slice holds 1 mL or more.

    Dice is NaN where no scan has so many slices.
    """
    result = []
    for count in COUNTS:
        own = [row for row in rows if row["slices"] == count]
        large = [row for row in own if row["reference_ml_middle"] >= ML_PER_SLICE]
        result.append(
            {
                "slices": count,
                "scans": len(own),
                "dice_to_whole": float(np.mean([row["dice_to_whole"] for row in own] or [np.nan])),
                "dice": float(np.mean([row["dice"] for row in own] or [np.nan])),
                "found_of_large": f"{sum(row['found'] for row in large)} of {len(large)}",
            }
        )
    return result


def good_references(folder: Path) -> set[str]:
    """The cases whose reference a data set's ``quality.csv`` calls good."""
    path = folder / "quality.csv"
    if not path.exists():
        return set()
    with path.open(newline="") as stream:
        return {row["case"] for row in csv.DictReader(stream) if row["ok"] == "yes"}


def write_all(tables: dict[str, list[dict[str, Any]]], out: Path) -> None:
    """A CSV file per table."""
    for name, rows in tables.items():
        write_table(rows, out / f"{name}.csv")
