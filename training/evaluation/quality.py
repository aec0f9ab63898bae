"""How good are the pseudo-labels? Their Dice against the references of **val**, on the working grid.

    python -m training quality --config best --data FOLDER --run RUN

It takes seconds where a U-Net takes many minutes, so it may rank recipes; nothing trains on what it reads, and a table
that used it says so in its column `selection`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hemseg.preprocessing import Settings
from hemseg.scan import read
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid

from ..data.datasets import Case, DataSet
from ..data.references import read_reference


def reference_on_grid(case: Case, settings: Settings) -> np.ndarray:
    """A case's reference mask on the working grid, bool (z, y, x)."""
    assert case.reference is not None
    return mask_on_grid(read(case.image), read_reference(case.reference), settings)


def mask_on_grid(volume: Volume, mask: np.ndarray, settings: Settings) -> np.ndarray:
    """A mask (z, y, x) of a scan, brought to the scan's working grid; bool (z, y, x), LPS order."""
    array, spacing = volume.with_voxels(mask.astype(np.float32)).in_lps()
    return WorkingGrid.of(array.shape, spacing, settings.spacing).from_scan(array) >= 0.5


def label_quality(dataset: DataSet, settings: Settings, labels: Path, split: str = "val") -> list[dict[str, Any]]:
    """One row per case that has a reference: Dice, share of it that is found, and volume ratio of its pseudo-label."""
    rows = []
    for case in dataset.part(split):
        if case.reference is None:
            continue
        reference = reference_on_grid(case, settings)
        with np.load(labels / f"{case.name}.npz") as file:
            label = file["mask"]
        both, size = int((label & reference).sum()), int(reference.sum())
        rows.append(
            {
                "case": case.name,
                "subtypes": " ".join(case.subtypes),
                "dice": 2 * both / (label.sum() + size) if label.any() or size else 1.0,
                "found": both / size if size else float("nan"),
                "volume_ratio": float(label.sum() / size) if size else float("nan"),
            }
        )
    return rows


def mean_dice(dataset: DataSet, settings: Settings, labels: Path) -> dict[str, float]:
    """Mean Dice of the pseudo-labels on val, by data set; those without reference masks are left out."""
    rows = {source.name: label_quality(source, settings, labels) for source in dataset.sources()}
    return {name: round(float(np.mean([row["dice"] for row in r])), 4) for name, r in rows.items() if r}
