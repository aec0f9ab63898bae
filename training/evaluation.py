"""Measure a way of segmenting against reference masks, through the very path that users take (`hemseg.segment`)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from hemseg.errors import HemsegError
from hemseg.model import load
from hemseg.preprocessing import Settings, smoothed, working_image
from hemseg.segmentation import restored, segment
from hemseg.volume import Volume, read
from training.datasets import Case, DataSet, read_reference
from training.metrics import lesion_counts, overlap, summary, surface
from training.stages import console

METRICS_VERSION = 2  # raised when a figure is added or changes its meaning: evaluations are then made again
BLOOD_HU = (48.0, 95.0)


@dataclass(frozen=True, eq=False)
class Prediction:
    """``mask`` uint8 (z, y, x) on the scan's grid; ``slice_score`` (slice,) from inferior to superior."""

    mask: np.ndarray
    slice_score: np.ndarray


Predictor = Callable[[Volume], Prediction]


def network_predictor(weights: Path) -> Predictor:
    """Segment with exported weights."""
    model = load(weights)

    def predict(volume: Volume) -> Prediction:
        result = segment(volume, model)
        return Prediction(result.mask, result.slice_probability)

    return predict


def threshold_predictor(settings: Settings, min_ml: float = 0.5) -> Predictor:
    """Segment without learning (row 0 of a table): strip, smooth, 48-95 HU, opening, pieces of at least 0.5 mL."""

    def predict(volume: Volume) -> Prediction:
        working = working_image(volume, settings)
        smooth = smoothed(working.hu, settings)
        blood = working.intracranial & (smooth >= BLOOD_HU[0]) & (smooth <= BLOOD_HU[1])
        disc = ndimage.generate_binary_structure(2, 1)[None]
        blood = ndimage.binary_opening(blood, disc, iterations=max(1, round(2 / settings.in_plane_mm)))
        labels, n = ndimage.label(blood, np.ones((3, 3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=n + 1) * float(np.prod(working.grid.spacing)) / 1000
        sizes[0] = 0
        kept = (sizes >= min_ml)[labels]
        mask = volume.from_lps(restored(kept.astype(np.float32), working, 0.5))
        area = np.repeat(kept.sum(axis=(1, 2)), working.grid.slab)[: working.grid.scan_shape[0]]
        return Prediction(np.ascontiguousarray(mask), area.astype(np.float32))

    return predict


def evaluate(dataset: DataSet, predict: Predictor, folder: Path, split: str = "test") -> dict[str, Any]:
    """Segment the cases of a split that have a reference; writes ``per_case.csv``, ``slices.csv``, ``summary.json``.

    Raises:
        HemsegError: the split has no case with a reference mask.
    """
    cases = [case for case in dataset.part(split) if case.reference]
    if not cases:
        raise HemsegError(
            f"{dataset.name}: no case of the split {split!r} has a reference mask; there is nothing to measure."
        )
    rows: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    for case in track(cases, f"evaluate {split}", console=console):
        volume = read(case.image)
        prediction = predict(volume)
        rows.append({"case": case.name, "subtypes": " ".join(case.subtypes), **measure(prediction.mask, case, volume)})
        labels = _inferior_to_superior(case, volume)
        scored = zip(labels, prediction.slice_score, strict=True)
        slices += [{"case": case.name, "label": int(y), "score": float(s)} for y, s in scored if y >= 0]
    figures = figures_of(rows, slices)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(rows, folder / "per_case.csv")
    write_table(slices, folder / "slices.csv")
    (folder / "summary.json").write_text(
        json.dumps({"dataset": dataset.name, "split": split, **figures}, indent=2) + "\n"
    )
    return figures


def measure(mask: np.ndarray, case: Case, volume: Volume) -> dict[str, Any]:
    """All figures of one case."""
    assert case.reference is not None
    reference = read_reference(case.reference)
    spacing = volume.spacing[::-1]
    return {
        **overlap(mask, reference),
        **surface(mask, reference, spacing),
        **lesion_counts(mask, reference, volume.voxel_ml),
        "reference_ml": float(reference.sum() * volume.voxel_ml),
        "predicted_ml": float(mask.sum() * volume.voxel_ml),
    }


def figures_of(rows: list[dict[str, Any]], slices: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures over all cases. Infinite Hausdorff distances (empty predictions) are counted, never averaged away."""
    figures: dict[str, Any] = summary(rows, ("dice", "rvd", "tpr", "hd", "surface_dice"))
    figures["hd_infinite"] = sum(bool(np.isinf(row["hd"])) for row in rows)
    figures["lesions"] = sum(row["lesions"] for row in rows)
    figures["lesions_found"] = sum(row["lesions_found"] for row in rows) / max(1, figures["lesions"])
    figures["false_lesions_per_scan"] = float(np.mean([row["lesions_false"] for row in rows]))
    labels, scores = [s["label"] for s in slices], [s["score"] for s in slices]
    figures["slice_auc"] = float(roc_auc_score(labels, scores)) if 0 < sum(labels) < len(labels) else float("nan")
    return figures


def _inferior_to_superior(case: Case, volume: Volume) -> np.ndarray:
    upwards = np.array(volume.direction).reshape(3, 3)[2, 2] > 0
    return np.array(case.labels)[:: 1 if upwards else -1]


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as CSV, four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
