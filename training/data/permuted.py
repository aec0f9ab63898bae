"""Slice labels in a wrong order: a control, which has to fail."""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import replace

import numpy as np

from .datasets import DataSet, Prepared


def permuted(case: Prepared, seed: int, singles: dict[str, int]) -> Prepared:
    """The case with the labels of its slices shuffled among them; slices that carry none keep their place.

    Args:
        case: the scan.
        seed: of the order, together with the case's name.
        singles: labels of scans of one slice, by `permuted_singles`: alone they have nothing to be shuffled with.
    """
    labels, known = case.labels.copy(), case.labels >= 0
    if case.name in singles:
        labels[known] = singles[case.name]
    else:
        rng = np.random.default_rng([seed, zlib.crc32(case.name.encode())])
        labels[known] = rng.permutation(labels[known])
    return replace(case, labels=labels)


def permuted_singles(dataset: DataSet, seed: int) -> dict[str, int]:
    """New labels of the scans of one slice, shuffled among those of a data set and split."""
    groups = defaultdict(list)
    for case in dataset.cases:
        if len(case.labels) == 1 and case.labels[0] >= 0:
            groups[case.source, case.split].append(case)
    found: dict[str, int] = {}
    for group, cases in sorted(groups.items()):
        rng = np.random.default_rng([seed, zlib.crc32("/".join(group).encode())])
        labels = rng.permutation([case.labels[0] for case in cases])
        found |= {case.name: int(label) for case, label in zip(cases, labels, strict=True)}
    return found
