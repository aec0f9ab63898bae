"""Reference masks of train cases in place of their pseudo-labels, where there are some: semi-supervised training.

Only ``--masks-train`` asks for it. What is trained so has stages, weights and table rows of its own
(``segment@masks``), and its manifest's ``supervision`` says how many cases had masks. Masks of val and test are never
opened here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.preprocessing import Settings

from ..console import console
from ..data.datasets import Case, DataSet, Prepared
from ..evaluation.quality import reference_on_grid


def train_cases_with_masks(dataset: DataSet) -> list[Case]:
    """The train cases that have a reference mask.

    Raises:
        HemsegError: none has.
    """
    found = [case for case in dataset.part("train") if case.reference]
    if not found:
        raise HemsegError(
            f"{dataset.name}: no train case has a mask (masks/<case>.nii.gz), so --masks-train has nothing to use."
        )
    return found


def describe_mask_supervision(cases_with_masks: list[Case], dataset: DataSet) -> str:
    """How many train cases have masks, by data set, in words."""
    counts = []
    for source in dataset.sources():
        train, names = source.part("train"), {case.name for case in cases_with_masks}
        if have := sum(case.name in names for case in train):
            counts.append(f"{have} of {len(train)} train cases of {source.name}")
    return f"reference masks of {' and '.join(counts)}"


def mask_fingerprints(cases_with_masks: list[Case]) -> list[tuple[str, str]]:
    """Name and SHA-256 of each mask: the data set's own fingerprint does not look at masks."""
    return [(c.name, hashlib.sha256(c.reference.read_bytes()).hexdigest()) for c in cases_with_masks if c.reference]


def write_mask_labels(
    cases_with_masks: list[Case], cases: list[Prepared], settings: Settings, folder: Path
) -> dict[str, Any]:
    """Masks on the working grid as labels of the U-Net; one .npz per case, like the pseudo-labels.

    A slice whose mask and slice label contradict each other is left out of the loss, and counted.
    """
    slice_labels = {case.name: case.labels for case in cases}
    contradictions = 0
    for case in track(cases_with_masks, "masks", console=console):
        mask = reference_on_grid(case, settings)
        left_out = contradicting(mask, slice_labels[case.name])
        contradictions += int(left_out.sum())
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask, left_out=left_out)
    if contradictions:
        console.print(
            f"[yellow]masks: on {contradictions} slices mask and slice label contradict each other; these slices are "
            "left out[/yellow]"
        )
    return {"cases": len(cases_with_masks), "contradictions": contradictions}


def contradicting(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Slices with hemorrhage in the mask (z, y, x) and a label (z,) of 0, or the reverse; bool (z,).

    Slices without a label (-1) contradict nothing. Where the working grid averages slices, a mask may fade away from
    a slice that is positive by a neighbour of it; that is left out, too.
    """
    present = mask.any(axis=(1, 2))
    return np.asarray((present & (labels == 0)) | (~present & (labels == 1)))
