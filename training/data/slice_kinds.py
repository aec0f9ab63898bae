"""Slice labels by kind of hemorrhage, and what they allow a lesion to be.

A data set's ``slice_labels.csv`` may have a column for each kind (`hemseg.kinds.KINDS`). A slice without hemorrhage has
none of them; of one with hemorrhage but no kind named, or no such columns, the kinds are unknown.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hemseg.errors import HemsegError
from hemseg.kinds import ANSWERS, KINDS

from .dataset_tables import case_name
from .datasets import DataSet
from .painted import KINDS as PAINTED
from .tables import Row, parse_boolean, parse_integer, read_table

UNKNOWN = -1
KIND_OF = {name: "subdural" if name == "sheet" else name for name in PAINTED}  # along falx and tentorium


def read_slice_kinds(folder: Path, dataset: DataSet) -> dict[str, np.ndarray]:
    """By case of a data set, int8 (slice, answer) of 1, 0 and -1 (unknown), in the file's order of slices.

    Args:
        folder: of the data set.
        dataset: what `training.data.datasets.load_dataset` made of it: it checked the table.

    Raises:
        HemsegError: there is no table of slice labels.
    """
    faults: list[str] = []
    rows = read_table(folder / "slice_labels.csv", ("case", "slice", "hemorrhage"), faults)
    if faults:
        raise HemsegError(f"{folder}: has no slice labels to learn kinds from:", faults)
    answers = {case.name: np.full((len(case.labels), len(ANSWERS)), UNKNOWN, np.int8) for case in dataset.cases}
    for row in rows:
        name, z = case_name(row.get("case"), answers), parse_integer(row.get("slice"))
        if name in answers and z is not None:
            answers[name][z] = slice_answers(row)
    for case in dataset.cases:  # slices to leave out
        answers[case.name][np.array(case.labels) < 0] = UNKNOWN
    return answers


def kinds_of_data_sets(dataset: DataSet) -> dict[str, np.ndarray]:
    """As `read_slice_kinds`, of all the data sets that were put together in one; nothing of those without a table."""
    answers: dict[str, np.ndarray] = {}
    for source in dataset.sources():
        folder, prefix = source.cases[0].image.parent.parent, f"{source.cases[0].source}_"
        if not (folder / "slice_labels.csv").exists():
            continue
        alone = replace(source, cases=tuple(replace(c, name=c.name.removeprefix(prefix)) for c in source.cases))
        whole = dict(zip((c.name for c in alone.cases), (c.name for c in source.cases), strict=True))
        answers |= {whole[name]: rows for name, rows in read_slice_kinds(folder, alone).items()}
    return answers


def slice_answers(row: Row) -> list[int]:
    """The labels of one slice, by `ANSWERS`."""
    blood = parse_boolean(row.get("hemorrhage"))
    if not blood:
        return [UNKNOWN if blood is None else 0] * len(ANSWERS)
    named = [int(bool(parse_boolean(row.get(kind)))) for kind in KINDS]
    return [*(named if any(named) else [UNKNOWN] * len(KINDS)), 1]


def allowed_kinds(answers: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Which kinds a lesion may be by the labels of its slices, bool (kind,); all False where they say nothing.

    It is one of the kinds that all of its positive slices have; where there is none, of those that any of them has.

    Args:
        answers: int8 (slice, answer).
        area: (slice,) voxels of the lesion in each.
    """
    known = answers[(area > 0) & (answers[:, -1] == 1) & (answers[:, 0] != UNKNOWN), : len(KINDS)] == 1
    if not len(known):
        return np.zeros(len(KINDS), bool)
    common = known.all(axis=0)
    return np.asarray(common if common.any() else known.any(axis=0))
