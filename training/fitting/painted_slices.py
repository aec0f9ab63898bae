"""Slices with painted bleeds for the classifier: positives of every kind, where slice labels know few."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from rich.progress import track

from hemseg.segmentation import input_box

from ..config import Config
from ..console import console
from ..data.datasets import Prepared
from ..data.field_of_view import network_slices
from ..data.painted import add_bleed, add_distractor
from ..data.painted_place import place_of
from .classifier import Slices

SEEN_MM2 = 25.0  # so much of a slice must be painted for a yes
DISTRACTED = 0.5  # share of the copies with something bright that is no blood, too


def painted_slices(cases: Iterable[Prepared], config: Config) -> Slices:
    """Slices of copies of scans with bleeds painted in, as the classifier sees them (`network_slices`).

    A slice in which `SEEN_MM2` and more were painted is positive. Slices that only got something else that is bright
    keep the label that they have; unchanged slices, and those with a trace of blood, are left out.

    Args:
        cases: of the training split; their slice labels are used, nothing else.
        config: ``classifier.painted`` copies of each scan are made.
    """
    hu, labels = [], []
    for number, case in enumerate(track(list(cases), "painted", console=console)):
        for copy in range(config.classifier.painted):
            rng = np.random.default_rng([config.seed, 17, number, copy])
            changed, known = painted_copy(case, config, rng)
            if known.any():
                part = torch.from_numpy(known)
                hu.append(network_slices(changed, config)[part])
                labels.append(torch.from_numpy(changed.labels)[part].float())
    return Slices(torch.cat(hu), torch.cat(labels))


def painted_copy(case: Prepared, config: Config, rng: np.random.Generator) -> tuple[Prepared, np.ndarray]:
    """A scan with bleeds painted in and the labels of its slices; and which slices are of use, bool (z,)."""
    grid, mm = config.preprocessing, config.preprocessing.spacing
    box = input_box(case.intracranial, grid)
    if box is None:
        return case, np.zeros(len(case.hu), bool)
    hu, inside = case.hu[box], case.intracranial[box]
    place, label, paint = place_of(hu, inside, mm), np.zeros(hu.shape, np.int8), hu
    for _ in range(int(rng.integers(1, 4))):
        paint, label = add_bleed(paint, label, place, rng)
    if rng.random() < DISTRACTED:
        paint = add_distractor(paint, place, rng)
    whole, drawn = case.hu.copy(), np.zeros(case.hu.shape, np.int8)
    whole[box], drawn[box] = paint, label
    seen = (drawn == 1).sum(axis=(1, 2)) * mm[1] * mm[2] >= SEEN_MM2
    trace = (drawn != 0).any(axis=(1, 2)) & ~seen
    changed = (whole != case.hu).any(axis=(1, 2))
    labels = np.where(seen, 1, case.labels).astype(case.labels.dtype)
    return replace(case, hu=whole, labels=labels), changed & ~trace & (labels >= 0)
