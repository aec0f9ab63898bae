"""Measure a way of segmenting against reference masks, through the very path that users take (`hemseg.segment`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from hemseg.components import labeled_sizes
from hemseg.errors import HemsegError
from hemseg.model import load
from hemseg.postprocessing import mask_on_scan
from hemseg.preprocessing import Settings, smoothed, working_image
from hemseg.scan import read
from hemseg.segmentation import segment
from hemseg.volume import Volume

from ..console import console
from ..data.datasets import Case, DataSet, labels_upwards
from ..data.references import labels_of_masks, read_reference
from .metrics import lesion_counts, overlap, summary, surface, wilson
from .tables import write_table

METRICS_VERSION = 5  # raised when a figure is added or changes its meaning: evaluations are then made again
BLOOD_HU = (48.0, 95.0)


@dataclass(frozen=True, eq=False)
class Prediction:
    """``mask`` uint8 (z, y, x) on the scan's grid; ``slice_score`` (slice,) from inferior to superior; ``doubtful``
    slices, see `hemseg.segmentation.Segmentation`.
    """

    mask: np.ndarray
    slice_score: np.ndarray
    doubtful: tuple[int, ...] = ()


Predictor = Callable[[Volume], Prediction]


def network_predictor(weights: Path) -> Predictor:
    """Segment with exported weights."""
    model = load(weights)

    def predict(volume: Volume) -> Prediction:
        result = segment(volume, model)
        return Prediction(result.mask, result.slice_probability, result.doubtful_slices)

    return predict


def threshold_predictor(settings: Settings, min_ml: float = 0.5) -> Predictor:
    """Segment without learning (row 0 of a table): strip, smooth, 48-95 HU, opening, components of at least 0.5 mL."""

    def predict(volume: Volume) -> Prediction:
        working = working_image(volume, settings)
        smooth = smoothed(working.hu, settings)
        blood = working.intracranial & (smooth >= BLOOD_HU[0]) & (smooth <= BLOOD_HU[1])
        disc = ndimage.generate_binary_structure(2, 1)[None]
        blood = ndimage.binary_opening(blood, disc, iterations=max(1, round(2 / settings.in_plane_mm)))
        labels, sizes = labeled_sizes(blood, corners=True)
        ml = sizes * float(np.prod(working.grid.spacing)) / 1000
        kept = (ml >= min_ml)[labels]
        mask = volume.from_lps(mask_on_scan(kept.astype(np.float32), working, 0.5))
        area = np.repeat(kept.sum(axis=(1, 2)), working.grid.slab)[: working.grid.scan_shape[0]]
        return Prediction(np.ascontiguousarray(mask), area.astype(np.float32))

    return predict


def evaluate(
    dataset: DataSet,
    predict: Predictor,
    folder: Path,
    splits: tuple[str, ...] = ("test",),
    classify: Callable[[Case], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Segment the cases of some splits; writes ``per_case.csv``, ``slices.csv``, ``summary.json``.

    Data sets that were put together are measured one by one, each into a folder of its name. Cases without a
    reference mask are measured by their slice labels alone.

    Args:
        classify: the slice classifier's scores of a case, from inferior to superior, to stand beside the U-Net's.

    Raises:
        HemsegError: the splits have no case, masks that cannot be read, or scans that are not axial.
    """
    if not dataset.part(*splits):
        raise HemsegError(
            f"{dataset.name}: no case is in the split {' or '.join(splits)}; there is nothing to measure."
        )
    faults: list[str] = []
    labels_of_masks({c.name: c.reference for c in dataset.part(*splits) if c.reference}, faults)
    if faults:  # before the scans are segmented, which takes a hundred times as long as reading the masks
        raise HemsegError(f"{dataset.name}: {len(faults)} reference masks cannot be read:", faults)
    sources = [source for source in dataset.sources() if source.part(*splits)]
    if len(sources) == 1 and sources[0].name == dataset.name:
        return _evaluate_one(dataset, predict, folder, splits, classify)
    metrics: dict[str, Any] = {}
    for source in sources:
        own = _evaluate_one(source, predict, folder / source.name, splits, classify)
        metrics |= {f"{source.name} {key}": value for key, value in own.items()}
    return metrics


def _evaluate_one(
    dataset: DataSet,
    predict: Predictor,
    folder: Path,
    splits: tuple[str, ...],
    classify: Callable[[Case], np.ndarray] | None,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    for case in track(dataset.part(*splits), f"evaluate {dataset.name} {'+'.join(splits)}", console=console):
        volume = read(case.image)
        labels = labels_upwards(case, volume)
        prediction = predict(volume)
        row: dict[str, Any] = {"case": case.name, "split": case.split, "subtypes": " ".join(case.subtypes)}
        doubtful = labels[list(prediction.doubtful)]
        row |= slice_metrics(prediction.mask, case, volume)
        row |= {"slices_doubtful": int((doubtful == 1).sum()), "doubtful_false": int((doubtful == 0).sum())}
        rows.append(row | (case_metrics(prediction.mask, case, volume) if case.reference else {}))
        scores = {"score": prediction.slice_score} | ({"classifier": classify(case)} if classify else {})
        for z in np.flatnonzero(labels >= 0):
            slices.append(
                {"case": case.name, "label": int(labels[z]), **{name: float(s[z]) for name, s in scores.items()}}
            )
    metrics = metrics_over_cases(rows, slices)
    write_table(rows, folder / "per_case.csv")
    write_table(slices, folder / "slices.csv")
    (folder / "summary.json").write_text(
        json.dumps({"dataset": dataset.name, "split": "+".join(splits), **metrics}, indent=2) + "\n"
    )
    return metrics


def slice_metrics(mask: np.ndarray, case: Case, volume: Volume) -> dict[str, Any]:
    """What slice labels say about a mask (z, y, x): blood in mL, labelled slices with and without blood in the mask."""
    labels, found = np.array(case.labels), mask.any(axis=(1, 2))
    return {
        "positive_slices": int((labels == 1).sum()),
        "slices_found": int((found & (labels == 1)).sum()),
        "slices_false": int((found & (labels == 0)).sum()),
        "predicted_ml": float(mask.sum() * volume.voxel_ml),
    }


def case_metrics(mask: np.ndarray, case: Case, volume: Volume) -> dict[str, Any]:
    """All metrics of one case against its reference mask."""
    assert case.reference is not None
    reference = read_reference(case.reference)
    spacing = volume.spacing[::-1]
    return {
        **overlap(mask, reference),
        **surface(mask, reference, spacing),
        **lesion_counts(mask, reference, volume.voxel_ml),
        "reference_ml": float(reference.sum() * volume.voxel_ml),
    }


def metrics_over_cases(rows: list[dict[str, Any]], slices: list[dict[str, Any]]) -> dict[str, Any]:
    """Metrics over all cases. Infinite Hausdorff distances (empty predictions) are counted, never averaged away.

    A patient with hemorrhage is found when the mask has blood in one of the positive slices. Shares of patients come
    with their count and a 95 % interval (Wilson).
    """
    metrics: dict[str, Any] = {"cases": len(rows)}
    outlined = [row for row in rows if "dice" in row]
    if outlined:
        metrics |= summary(outlined, ("dice", "rvd", "tpr", "hd", "surface_dice")) | {"outlined": len(outlined)}
        metrics["cases"] = len(rows)
        metrics["hd_infinite"] = sum(bool(np.isinf(row["hd"])) for row in outlined)
        metrics["lesions"] = sum(row["lesions"] for row in outlined)
        metrics["lesions_found"] = sum(row["lesions_found"] for row in outlined) / max(1, metrics["lesions"])
        metrics["false_lesions_per_scan"] = float(np.mean([row["lesions_false"] for row in outlined]))
    healthy = [row for row in rows if not row["positive_slices"]]
    ill = [row for row in rows if row["positive_slices"]]
    if ill:
        metrics |= share_with_interval("patients_found", [row["slices_found"] > 0 for row in ill])
        for kind in dict.fromkeys(kind for row in ill for kind in row["subtypes"].split()):
            of_kind = [row["slices_found"] > 0 for row in ill if kind in row["subtypes"].split()]
            metrics[f"found_{kind}"] = f"{sum(of_kind)} of {len(of_kind)}"
    if healthy:
        metrics["healthy_median_ml"] = float(np.median([row["predicted_ml"] for row in healthy]))
        metrics |= share_with_interval("healthy_with_half_ml", [row["predicted_ml"] >= 0.5 for row in healthy])
    labels = [s["label"] for s in slices]
    for column, name in (("score", "slice_auc"), ("classifier", "classifier_slice_auc")):
        if slices and column in slices[0]:
            both = 0 < sum(labels) < len(labels)
            metrics[name] = float(roc_auc_score(labels, [s[column] for s in slices])) if both else float("nan")
    return metrics


def share_with_interval(name: str, values: list[bool]) -> dict[str, Any]:
    """A share with its count and its 95 % interval (Wilson 1927)."""
    n, k = len(values), sum(values)
    low, high = wilson(values)
    return {name: k / n, f"{name}_count": f"{k} of {n}", f"{name}_95": f"{low:.2f}..{high:.2f}"}
