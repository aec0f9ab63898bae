"""Measure weights, or a threshold without learning, on any splits of any data sets, with plots.

    python -m training measure --data A --data B --split val --split test --out docs/results/best
    python -m training measure --data A --data B --threshold --out docs/results/threshold

Bland-Altman of volumes and Dice against lesion volume need reference masks; the ROC of slices needs slice labels.
Pictures of the best, the median and the worst case show scans: give them a folder of their own, outside the project.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_curve

from hemseg.preprocessing import Settings, working_image
from hemseg.scan import read
from hemseg.volume import Volume

from ..data.datasets import Case, DataSet, labels_upwards
from ..data.references import read_reference
from .evaluate import Predictor, evaluate
from .panels import PanelRow, write_panel
from .quality import mask_on_grid, reference_on_grid
from .tables import read_cases


def measure_all(
    dataset: DataSet, predict: Predictor, splits: tuple[str, ...], out: Path, pictures: Path | None
) -> dict[str, Any]:
    """Tables and plots into ``out`` (a folder per data set, where there are several), pictures into ``pictures``."""
    metrics = evaluate(dataset, predict, out, splits)
    folders = [out / source.name for source in dataset.sources() if (out / source.name).is_dir()] or [out]
    write_plots(folders, out)
    if pictures:
        write_pictures(dataset, predict, [row for f in folders for row in _cases(f)], pictures)
    return metrics


def _cases(folder: Path) -> list[dict[str, Any]]:
    return [row | {"dataset": folder.name} for row in read_cases(folder / "per_case.csv")]


def write_plots(folders: list[Path], out: Path) -> None:
    """``volumes.png`` (Bland-Altman), ``dice.png`` (against the lesion's volume), ``roc.png`` (slices)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tables = {folder.name: _cases(folder) for folder in folders}
    outlined = {
        name: [row for row in rows if row.get("reference_ml", float("nan")) > 0] for name, rows in tables.items()
    }
    outlined = {name: rows for name, rows in outlined.items() if rows}
    if outlined:
        figure, axes = plt.subplots(figsize=(5.5, 4))
        for name, rows in outlined.items():
            a, b = (np.array([row[key] for row in rows]) for key in ("predicted_ml", "reference_ml"))
            axes.plot((a + b) / 2, a - b, ".", label=f"{name}: {np.mean(a - b):+.2f} mL")
            for level in np.mean(a - b) + np.array([-1.96, 0, 1.96]) * np.std(a - b, ddof=1) if len(a) > 1 else ():
                axes.axhline(level, color="gray", linewidth=0.8, linestyle="--")
        axes.set_xlabel("mean of predicted and reference volume, mL (nominal)")
        axes.set_ylabel("predicted - reference, mL")
        _finish(figure, axes, out / "volumes.png")
        figure, axes = plt.subplots(figsize=(5.5, 4))
        for name, rows in outlined.items():
            axes.semilogx([row["reference_ml"] for row in rows], [row["dice"] for row in rows], ".", label=name)
        axes.set_xlabel("reference volume, mL (nominal)")
        axes.set_ylabel("Dice")
        axes.set_ylim(0, 1)
        _finish(figure, axes, out / "dice.png")
    figure, axes = plt.subplots(figsize=(4.5, 4))
    for folder in folders:
        with (folder / "slices.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        labels = [int(row["label"]) for row in rows]
        if 0 < sum(labels) < len(labels):
            false, true, _ = roc_curve(labels, [float(row["score"]) for row in rows])
            axes.plot(false, true, label=f"{folder.name}: AUC {np.trapezoid(true, false):.3f}")
    axes.set_xlabel("slices without hemorrhage called positive")
    axes.set_ylabel("slices with hemorrhage found")
    _finish(figure, axes, out / "roc.png")


def _finish(figure: Any, axes: Any, path: Path) -> None:
    from matplotlib import pyplot as plt

    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_pictures(dataset: DataSet, predict: Predictor, rows: list[dict[str, Any]], folder: Path) -> None:
    """Best, median and worst by Dice, and the largest volumes in patients without hemorrhage, as panels."""
    by_name = {case.name: case for case in dataset.cases}
    ranked = sorted((row for row in rows if np.isfinite(row.get("dice", np.nan))), key=lambda row: row["dice"])
    chosen = dict(zip(("worst", "second-worst", "third-worst"), ranked, strict=False))
    if ranked:
        chosen |= {"median": ranked[len(ranked) // 2], "best": ranked[-1]}
    healthy = sorted((r for r in rows if not r["positive_slices"]), key=lambda row: -row["predicted_ml"])
    chosen |= {f"healthy-{i}": row for i, row in enumerate(healthy[:3], start=1) if row["predicted_ml"]}
    missed = [row for row in rows if row["positive_slices"] and not row["slices_found"]]
    chosen |= {f"missed-{i}": row for i, row in enumerate(missed, start=1)}
    settings = Settings()
    for name, row in chosen.items():
        case = by_name[row["case"]]
        volume = read(case.image)
        working = working_image(volume, settings)
        mask = predict(volume).mask
        found = mask_on_grid(volume, mask, settings)
        reference = reference_on_grid(case, settings) if case.reference else np.zeros_like(found)
        slices = shown_slices(case, volume, mask, found | reference, working.grid.slab)
        shown = [PanelRow(working.hu[z], prediction=found[z], reference=reference[z]) for z in slices]
        write_panel(shown, settings.hu_range, folder / f"{name}_{case.name}.png")


def shown_slices(case: Case, volume: Volume, mask: np.ndarray, marked: np.ndarray, slab: int) -> np.ndarray:
    """Which slices of the working grid a picture shows, of a case that evaluation took: those with a marked voxel.

    Masks of a few voxels are gone on that grid: then those slices in which the scan itself has a voxel of the mask or
    of the reference, or a positive label; and all where it has none of them either.

    Args:
        volume: the case's scan.
        mask: (z, y, x), what was found in it.
        marked: bool (z, y, x), what was found and the reference, on the working grid.
        slab: slices of the scan in one of the working grid.
    """
    if marked.any():
        return np.flatnonzero(marked.any(axis=(1, 2)))
    own = mask > 0
    if case.reference:
        own |= read_reference(case.reference) > 0
    in_slices = volume.with_voxels(own).in_lps()[0].any(axis=(1, 2))
    on_scan = np.flatnonzero(in_slices | (labels_upwards(case, volume) == 1))
    return np.unique(on_scan // slab) if len(on_scan) else np.arange(len(marked))
