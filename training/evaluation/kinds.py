"""Kinds of hemorrhage, measured: is a lesion called what the slice labels, or the painter, say it is?

    python -m training kinds-measure --data rsna-slices --data ct-ich --split val --split test --out docs/results/kinds

A lesion counts where the truth is one kind: all of its labelled slices have it, and no other that all have. What is
called "unsure" counts as wrong. What lies on slices without hemorrhage is no hemorrhage and has no kind: it is counted,
not judged. Intervals are Wilson's at 95 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.progress import track
from scipy import ndimage

from hemseg.errors import HemsegError
from hemseg.kinds import KINDS, UNSURE
from hemseg.lesions import components
from hemseg.model import Model
from hemseg.scan import read
from hemseg.segmentation import Segmentation

from ..console import console
from ..data.datasets import Case, DataSet
from ..data.phantom import Grid, make_phantom
from ..data.slice_kinds import allowed_kinds
from .metrics import wilson
from .painted_heads import PlannedBleed, planned_bleeds
from .robustness import check_and_segment

PHANTOM_GRID = Grid((28, 184, 184), (1.25, 1.25, 5.0))
PHANTOM_SEED = 9100
NAMES = (*KINDS, UNSURE)
Row = dict[str, Any]


def labelled_scans(
    dataset: DataSet, split: str, answers: dict[str, np.ndarray], model: Model, brain_level: set[str] | None = None
) -> list[Row]:
    """One row per lesion of the scans with hemorrhage of a split; and one, without a lesion, per scan without any.

    Args:
        answers: by case, int8 (slice, answer), in the file's order of slices.
        brain_level: cases of single slices through the brain; the others are left out. None: all count.
    """
    rows = []
    for case in track(dataset.part(split), f"kinds, {dataset.name} {split}", console=console):
        own = answers[case.name]
        if not (own[:, 0] >= 0).any() or not (own[:, -1] == 1).any():
            continue
        if brain_level is not None and case.name not in brain_level:
            continue
        rows += _scan_rows({"data": dataset.name, "split": split, "case": case.name}, case, own, model)
    return rows


def _scan_rows(about: Row, case: Case, answers: np.ndarray, model: Model) -> list[Row]:
    truth = " ".join(kind for i, kind in enumerate(KINDS) if (answers[:, i] == 1).any())
    nothing = about | {"kinds": truth, "lesion": 0, "ml": 0.0, "truth": "", "called": "", "probability": float("nan")}
    try:
        result = check_and_segment(read(case.image), model)
    except HemsegError:  # users get no mask of it either: nothing is found
        return [nothing]
    rows = []
    for number, (voxels, kind) in enumerate(zip(components(result.mask), result.kinds, strict=True), start=1):
        area = np.bincount(voxels[:, 0], minlength=len(answers))
        allowed = [KINDS[i] for i in np.flatnonzero(allowed_kinds(answers, area))]
        rows.append(
            nothing
            | {
                "lesion": number,
                "ml": round(len(voxels) * result.volume.voxel_ml, 3),
                "truth": " ".join(allowed),
                "called": kind.name,
                "probability": round(kind.probability, 3),
            }
        )
    return rows or [nothing]


def phantoms(model: Model, each: int) -> list[Row]:
    """Phantoms with one kind each: the largest lesion that touches it."""
    drawn = [(kind, PHANTOM_SEED + 10 * i + n) for i, kind in enumerate(KINDS) for n in range(each)]
    rows = []
    for kind, seed in track(drawn, "kinds, phantoms", console=console):
        phantom = make_phantom(seed, (kind,), PHANTOM_GRID)
        if phantom.mask.any():
            about = {"data": "phantoms", "split": "", "case": f"phantom-{seed}", "kinds": kind}
            rows.append(about | _matching_lesion(check_and_segment(phantom.volume, model), phantom.mask > 0, kind))
    return rows


def painted_bleeds(dataset: DataSet, split: str, model: Model, plan: list[PlannedBleed], least_ml: float) -> list[Row]:
    """Bleeds of the plan painted into scans of a split: the lesion that holds most of each."""
    rows = []
    for number, case in enumerate(track(dataset.part(split), f"kinds, painted, {split}", console=console)):
        planned = [bleed for bleed in plan if bleed.head == number]
        if not planned:
            continue
        volume = read(case.image)
        before = check_and_segment(volume, model)
        for bleed, changed, label in planned_bleeds(volume, before, planned):
            truth = label == 1
            if truth.sum() * volume.voxel_ml < least_ml:
                continue
            kind = "subdural" if bleed.kind == "sheet" else bleed.kind
            about = {"data": "painted", "split": split, "case": case.name, "kinds": kind}
            rows.append(about | _matching_lesion(check_and_segment(changed, model), truth, kind, before.mask > 0))
    return rows


def _matching_lesion(result: Segmentation, truth: np.ndarray, kind: str, before: np.ndarray | None = None) -> Row:
    """The lesion that holds most of a bleed; a lesion most of which was there before the bleed is not it."""
    best: Row = {"lesion": 0, "ml": 0.0, "truth": kind, "called": "", "probability": float("nan")}
    most = 0
    known = ndimage.binary_dilation(before, iterations=2) if before is not None else np.zeros(truth.shape, bool)
    for number, (voxels, named) in enumerate(zip(components(result.mask), result.kinds, strict=True), start=1):
        at = tuple(voxels.T)
        held = int(truth[at].sum())
        if held > most and (known & ~truth)[at].mean() < 0.5:
            most = held
            best |= {
                "lesion": number,
                "ml": round(len(voxels) * result.volume.voxel_ml, 3),
                "called": named.name,
                "probability": round(named.probability, 3),
            }
    return best


def lesions_of_known_kind(rows: list[Row]) -> list[Row]:
    """The lesions whose truth is one kind, only the largest of each scan: metrics are computed from these."""
    seen: set[tuple[str, ...]] = set()
    result = []
    for row in rows:  # in falling order of size within a scan
        scan = (row["data"], row["split"], row["case"])
        painted_or_phantom = row["data"] in ("painted", "phantoms")
        if not row["lesion"] or not row["truth"] or len(row["truth"].split()) > 1:
            continue
        if scan in seen and not painted_or_phantom:
            continue
        seen.add(scan)
        result.append(row)
    return result


def summary(rows: list[Row]) -> list[Row]:
    """Per data set and split, per kind and for all: scans with that kind alone, found, and called right, with 95 %
    intervals; and lesions where the labels have no hemorrhage."""
    result = []
    groups = list(dict.fromkeys((row["data"], row["split"]) for row in rows))
    for data, split in groups:
        own = [row for row in rows if (row["data"], row["split"]) == (data, split)]
        largest = lesions_of_known_kind(own)
        elsewhere = sum(1 for row in own if row["lesion"] and not row["truth"])
        for kind in (*KINDS, "all"):
            alone = {row["case"] for row in own if row["kinds"] == kind or (kind == "all" and " " not in row["kinds"])}
            these = [row for row in largest if kind in ("all", row["truth"])]
            hits = [row["called"] == row["truth"] for row in these]
            result.append(
                {"data": data, "split": split, "kind": kind, "scans_of_one_kind": len(alone)}
                | {"judged": len(these), "right": sum(hits)}
                | _share(hits)
                | {
                    "unsure": sum(row["called"] == UNSURE for row in these),
                    "lesions_elsewhere": elsewhere if kind == "all" else "",
                }
            )
    return result


def _share(hits: list[bool]) -> Row:
    """A share with its 95 % interval; NaN of none."""
    if not hits:
        return dict.fromkeys(("share", "low", "high"), float("nan"))
    low, high = wilson(hits)
    return {"share": round(float(np.mean(hits)), 3), "low": round(low, 3), "high": round(high, 3)}


def by_patient(rows: list[Row]) -> list[Row]:
    """Per data set and split, and of all splits together, per kind: of the patients with that kind, and of those with
    hemorrhage of other kinds alone, in how many a lesion is called so; with 95 % intervals.

    A scan counts as a patient (in rsna-slices, it is a single slice; a few patients are there twice). Phantoms and
    painted bleeds are left out: they have one kind each, and `summary` has them.
    """
    real = [row for row in rows if row["data"] not in ("painted", "phantoms")]
    result = []
    for data in dict.fromkeys(row["data"] for row in real):
        own = [row for row in real if row["data"] == data]
        splits = list(dict.fromkeys(row["split"] for row in own))
        for split, of_split in (
            *((split, [row for row in own if row["split"] == split]) for split in splits),
            *([(" + ".join(splits), own)] if len(splits) > 1 else []),
        ):
            patients = {row["case"]: row["kinds"].split() for row in of_split}
            for kind in KINDS:
                called = {row["case"] for row in of_split if row["called"] == kind}
                hits = [case in called for case, kinds in patients.items() if kind in kinds]
                wrong = [case in called for case, kinds in patients.items() if kind not in kinds]
                result.append(
                    {"data": data, "split": split, "kind": kind}
                    | {"patients": len(hits), "called_so": sum(hits)}
                    | _share(hits)
                    | {"others": len(wrong), "others_called_so": sum(wrong)}
                    | {f"others_{name}": value for name, value in _share(wrong).items()}
                )
    return result


def confusion(rows: list[Row]) -> np.ndarray:
    """Judged lesions, int (truth, called): `KINDS` by `NAMES`."""
    table = np.zeros((len(KINDS), len(NAMES)), int)
    for row in lesions_of_known_kind(rows):
        table[KINDS.index(row["truth"]), NAMES.index(row["called"])] += 1
    return table
