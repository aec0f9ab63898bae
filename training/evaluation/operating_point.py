"""Where to put the thresholds: what is found against what is false, on val.

    python -m training operating-point --data A --data B --out OUT --weights runs/best/export

Every scan of val is segmented once; the network's answer is then cut at several thresholds, least peaks and least
volumes. Nothing is trained, and test is left alone; reference masks of val rank the points where there are some.
``froc.png`` shows what is found against what is false as the least peak falls, and the point of the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.manifest import POINT_KEYS, Manifest
from hemseg.model import Model
from hemseg.scan import read
from hemseg.segmentation import opinion_from_output, postprocess
from hemseg.sliding_window import working_probability
from hemseg.volume import Volume

from ..console import console
from ..data.datasets import Case, DataSet
from ..data.references import read_reference
from .evaluate import slice_metrics
from .metrics import lesion_counts, overlap
from .robustness import check_and_segment

Figure = Callable[[dict[str, Any]], float]
THRESHOLDS = (0.3, 0.4, 0.5)
PEAKS = (0.6, 0.7, 0.75, 0.8, 0.9)
SLICES = (0.0, 0.2, 0.3, 0.4)  # of the slice classifier, where the weights have one
MIN_ML = (0.1,)
MUCH_ML, MUCH_MM2 = 0.5, 10.0  # blood in a patient, or in a single slice, without hemorrhage


def points(classifier: bool = False) -> list[dict[str, float]]:
    """All combinations, as settings of a manifest; of the slice classifier's probability, too, if there is one."""
    return [
        {"threshold": t, "min_peak": p, "min_lesion_ml": ml, "min_slice_probability": s}
        for t, p, ml, s in itertools.product(THRESHOLDS, PEAKS, MIN_ML, SLICES if classifier else SLICES[:1])
    ]


def own_points(manifest: Manifest) -> list[dict[str, float]]:
    """The operating points that weights come with."""
    names = ("", *manifest.operating_points)
    return [{key: float(getattr(manifest.at(name), key)) for key in POINT_KEYS} for name in names]


def operating_points(dataset: DataSet, model: Model, split: str = "val") -> list[dict[str, Any]]:
    """One row per point and data set."""
    rows: list[dict[str, Any]] = []
    outline = {"outline_threshold": model.manifest.outline_threshold}
    every = [point | outline for point in points(model.classifier is not None)]
    every += [point for point in own_points(model.manifest) if point not in every]
    lowest = min(point["threshold"] for point in every)
    for case in track(dataset.part(split), f"operating points, {dataset.name}", console=console):
        volume = read(case.image)
        try:
            first = check_and_segment(volume, model)
        except HemsegError:  # refused: what bleeds in it is not found
            nothing = _counts(np.zeros(volume.hu.shape, np.uint8), case, volume)
            rows += [{"dataset": case.source or dataset.name, **point, **nothing} for point in every]
            continue
        probability = working_probability(first.working, model)
        output = None
        if model.classifier:
            settings = model.manifest.preprocessing
            output = model.classifier.classify_marked(probability, lowest, first.working, settings)
        for point in every:
            manifest, opinion = _at(model.manifest, point), None
            if output and model.classifier and manifest.min_slice_probability:
                opinion = opinion_from_output(output, probability, first.working, model.classifier, manifest)
            result = postprocess(volume, first.working, probability, manifest, opinion)
            rows.append({"dataset": case.source or dataset.name, **point, **_counts(result.mask, case, volume)})
    return [_summary(rows, point, name) for name in dict.fromkeys(r["dataset"] for r in rows) for point in every]


def _at(manifest: Manifest, point: dict[str, float]) -> Manifest:
    return replace(manifest, **point)  # type: ignore[arg-type]


def _counts(mask: np.ndarray, case: Case, volume: Volume) -> dict[str, Any]:
    row: dict[str, Any] = slice_metrics(mask, case, volume)
    row["mm2"] = float(mask.sum() * volume.spacing[0] * volume.spacing[1])
    row["single"] = len(mask) == 1
    if case.reference:
        reference = read_reference(case.reference)
        row |= {"dice": overlap(mask, reference)["dice"], **lesion_counts(mask, reference, volume.voxel_ml)}
    return row


def _summary(rows: list[dict[str, Any]], point: dict[str, float], name: str) -> dict[str, Any]:
    own = [r for r in rows if r["dataset"] == name and all(r[key] == value for key, value in point.items())]
    ill, healthy = ([r for r in own if bool(r["positive_slices"]) == has] for has in (True, False))
    outline = [r for r in own if "dice" in r]
    much = [r["mm2"] >= MUCH_MM2 if r["single"] else r["predicted_ml"] >= MUCH_ML for r in healthy]
    return {
        "dataset": name,
        **point,
        "dice": float(np.mean([r["dice"] for r in outline])) if outline else float("nan"),
        "false_lesions_per_scan": float(np.mean([r["lesions_false"] for r in outline])) if outline else float("nan"),
        "lesions": sum(r["lesions"] for r in outline),
        "lesions_found": sum(r["lesions_found"] for r in outline),
        "ill": len(ill),
        "found": sum(r["slices_found"] > 0 for r in ill),
        "slices_found": sum(r["slices_found"] for r in ill) / max(1, sum(r["positive_slices"] for r in ill)),
        "healthy": len(healthy),
        "healthy_with_blood": sum(much),
    }


def write_froc(rows: list[dict[str, Any]], chosen: Manifest, path: Path) -> None:
    """Two plots: lesions found against false lesions a scan, where there are masks; patients or slices with hemorrhage
    found against those without that get blood. A curve per data set, along the least peak at the weights' threshold.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (lesions, patients) = plt.subplots(1, 2, figsize=(9, 4))
    fixed = {
        key: min((row[key] for row in rows), key=lambda value: abs(value - getattr(chosen, key)))
        for key in ("threshold", "min_slice_probability")
    }
    for name in dict.fromkeys(row["dataset"] for row in rows):
        own = sorted(
            (r for r in rows if r["dataset"] == name and all(r[key] == value for key, value in fixed.items())),
            key=lambda r: r["min_peak"],
        )
        here = sorted(own, key=lambda r: abs(r["min_peak"] - chosen.min_peak))[:1]
        if own[0]["lesions"]:
            _curve(
                lesions,
                own,
                here,
                name,
                lambda r: r["false_lesions_per_scan"],
                lambda r: r["lesions_found"] / r["lesions"],
            )
        if own[0]["ill"] and own[0]["healthy"]:
            _curve(
                patients,
                own,
                here,
                name,
                lambda r: r["healthy_with_blood"] / r["healthy"],
                lambda r: r["found"] / r["ill"],
            )
    lesions.set(xlabel="false lesions a scan (val)", ylabel="lesions found", ylim=(0, 1.02))
    patients.set(xlabel="without hemorrhage, blood called (val)", ylabel="with hemorrhage, found", ylim=(0, 1.02))
    for axes in (lesions, patients):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    at = "threshold {threshold:g} and slice classifier {min_slice_probability:g}".format(**fixed)
    figure.suptitle(f"along the least peak, at {at}; square: the weights' point", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curve(axes: Any, rows: list[dict[str, Any]], here: list[dict[str, Any]], name: str, x: Figure, y: Figure) -> None:
    (line,) = axes.plot([x(r) for r in rows], [y(r) for r in rows], ".-", label=name)
    axes.plot([x(r) for r in here], [y(r) for r in here], "s", color=line.get_color())
