"""Slices with painted bleeds for the classifier: positives of every kind, where slice labels know few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from hemseg.kinds import KINDS
from hemseg.sliding_window import input_box

from ..config import Config
from ..console import console
from ..data.datasets import Prepared
from ..data.field_of_view import network_slices
from ..data.painted import KINDS as PAINTED
from ..data.painted import ODDS, add_bleed, add_distractor
from ..data.painted_place import place_of
from ..data.slice_kinds import KIND_OF
from .classifier import Slices, slice_kind_labels
from .trainer import use_one_thread

MIN_VISIBLE_MM2 = 25.0  # so much of a slice must be painted for a yes
DISTRACTOR_SHARE = 0.5  # share of the copies with something bright that is no blood, too


def painted_slices(
    cases: Iterable[Prepared], config: Config, answers: Mapping[str, np.ndarray] | None = None, workers: int = 0
) -> Slices:
    """Slices of copies of scans with bleeds painted in, as the classifier sees them (`network_slices`).

    A slice in which `MIN_VISIBLE_MM2` and more were painted is positive. Slices that only got something else that is
    bright keep the label that they have; unchanged slices, and those with a trace of blood, are left out.

    Args:
        cases: of the training split; their slice labels are used, nothing else.
        config: ``classifier.painted`` copies of each scan are made.
        answers: kinds of the slices by case, as for `Volumes`.
        workers: processes that paint; 0: this one does. The slices are the same.
    """
    copies = range(config.classifier.painted)
    tasks = [(n, copy, case, slice_kind_labels(case, answers or {})) for n, case in enumerate(cases) for copy in copies]
    one = partial(_slices_of_copy, config=config)
    if workers:
        with ProcessPoolExecutor(workers, get_context("fork"), use_one_thread) as pool:
            results = list(track(pool.map(one, tasks, chunksize=16), "painted", len(tasks), console=console))
    else:
        results = [one(task) for task in track(tasks, "painted", console=console)]
    hu, labels, kinds = (torch.cat(parts) for parts in zip(*(m for m in results if m), strict=True))
    return Slices(hu, labels, kinds if answers else None)


def _slices_of_copy(
    task: tuple[int, int, Prepared, np.ndarray], config: Config
) -> tuple[Tensor, Tensor, Tensor] | None:
    number, copy, case, own = task
    rng = np.random.default_rng([config.seed, 17, number, copy])
    changed, known, kinds = paint_copy(case, own, config, rng)
    if not known.any():
        return None
    part = torch.from_numpy(known)
    labels, of_kinds = torch.from_numpy(changed.labels)[part], torch.from_numpy(kinds)[part]
    return network_slices(changed, config)[part], labels.float(), of_kinds.float()


def paint_copy(
    case: Prepared, kinds: np.ndarray, config: Config, rng: np.random.Generator
) -> tuple[Prepared, np.ndarray, np.ndarray]:
    """A scan with bleeds painted in and the labels of its slices; which slices are of use, bool (z,); and their kinds,
    int8 (z, kind) of 1, 0 and -1 (unknown)."""
    grid, mm = config.preprocessing, config.preprocessing.spacing
    box, kinds = input_box(case.intracranial, grid), kinds.copy()
    if box is None:
        return case, np.zeros(len(case.hu), bool), kinds
    hu, inside = case.hu[box], case.intracranial[box]
    place, label, paint = place_of(hu, inside, mm), np.zeros(hu.shape, np.int8), hu
    for _ in range(int(rng.integers(1, 4))):
        kind = str(rng.choice(PAINTED, p=ODDS))
        paint, one = add_bleed(paint, np.zeros_like(label), place, rng, kind)
        where = np.flatnonzero(visibly_painted_slices(one, mm)) + box[0].start
        kinds[where, KINDS.index(KIND_OF[kind])] = 1
        label = np.where(one != 0, one, label)
    if rng.random() < DISTRACTOR_SHARE:
        paint = add_distractor(paint, place, rng)
    whole, drawn = case.hu.copy(), np.zeros(case.hu.shape, np.int8)
    whole[box], drawn[box] = paint, label
    seen = visibly_painted_slices(drawn, mm)
    trace = (drawn != 0).any(axis=(1, 2)) & ~seen
    changed = (whole != case.hu).any(axis=(1, 2))
    labels = np.where(seen, 1, case.labels).astype(case.labels.dtype)
    return replace(case, hu=whole, labels=labels), changed & ~trace & (labels >= 0), kinds


def visibly_painted_slices(painted: np.ndarray, mm: tuple[float, float, float]) -> np.ndarray:
    """The slices of which `MIN_VISIBLE_MM2` and more were painted (label 1), bool (z,).

    Args:
        painted: label (z, y, x).
        mm: a voxel, (z, y, x).
    """
    return np.asarray((painted == 1).sum(axis=(1, 2)) * mm[1] * mm[2] >= MIN_VISIBLE_MM2)
