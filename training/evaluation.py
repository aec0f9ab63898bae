"""Measure exported weights against reference masks, through the very path that users take (`hemseg.segment`)."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.model import load
from hemseg.segmentation import segment
from hemseg.volume import mask_name, read, write_mask
from training.datasets import DataSet, read_reference
from training.metrics import lesion_counts, overlap, summary
from training.stages import console


def evaluate(dataset: DataSet, weights: Path, folder: Path, split: str = "test", masks: bool = False) -> dict[str, Any]:
    """Segment the cases of a split that have a reference; writes ``per_case.csv`` and ``summary.json``.

    Args:
        masks: also write the masks, to ``folder/masks``.

    Raises:
        HemsegError: the split has no case with a reference mask.
    """
    model = load(weights, "auto")
    cases = [case for case in dataset.part(split) if case.reference]
    if not cases:
        raise HemsegError(
            f"{dataset.name}: no case of the split {split!r} has a reference mask; there is nothing to measure."
        )
    rows: list[dict[str, Any]] = []
    for case in track(cases, f"evaluate {split}", console=console):
        volume = read(case.image)
        result = segment(volume, model)
        assert case.reference is not None
        reference = read_reference(case.reference)
        rows.append(
            {
                "case": case.name,
                **overlap(result.mask, reference),
                **lesion_counts(result.mask, reference, volume.voxel_ml),
            }
            | {"reference_ml": float(reference.sum() * volume.voxel_ml), "predicted_ml": result.volume_ml}
            | {"seconds": round(result.seconds, 2)}
        )
        if masks:
            write_mask(result.mask, volume, folder / "masks" / mask_name(case.image))
    folder.mkdir(parents=True, exist_ok=True)
    write_table(rows, folder / "per_case.csv")
    figures = summary(rows)
    figures["lesions_found"] = sum(r["lesions_found"] for r in rows) / max(1, sum(r["lesions"] for r in rows))
    figures["false_lesions_per_scan"] = float(np.mean([r["lesions_false"] for r in rows]))
    report = {"dataset": dataset.name, "split": split, "weights": model.manifest.sha256, **figures}
    (folder / "summary.json").write_text(json.dumps(report, indent=2) + "\n")
    return figures


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as CSV, four significant digits."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
