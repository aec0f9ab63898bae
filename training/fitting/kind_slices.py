"""Kinds of slices from slice labels: linear maps of kinds on the slice classifier's features.

The classifier learned "blood or not"; its backbone stays as it is. For each kind, a logistic regression on the features
pooled within zones of depth (rim, middle, deep), whose weights are a class activation map as they stand: the mean of
the map over the slice is the logit. A slice whose label does not name its kinds counts for "any" alone. Slices with
painted bleeds, whose kind is known, are further positives.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from hemseg.fields_of_view import fields_of_view
from hemseg.kinds import ANSWERS, KINDS, View, zone_shares
from hemseg.lesion_features import surroundings

from ..config import Config
from ..data.datasets import Prepared
from ..data.painted import add_bleed
from ..data.painted_place import place_of
from ..data.slice_kinds import UNKNOWN
from ..networks.kind_network import KindNetwork

ZONES_MM = (8.0, 25.0)
SEEN_MM2 = 25.0  # so much of a slice must be painted for a yes
PAINTED = {  # kinds to paint, and how often: those that are rare or hard
    "intraparenchymal": 0.12,
    "subdural": 0.16,
    "epidural": 0.14,
    "sheet": 0.14,
    "subarachnoid": 0.26,
    "intraventricular": 0.18,
}
KIND_OF = {name: "subdural" if name == "sheet" else name for name in PAINTED}  # along falx and tentorium
COPIES, SINGLES, MOST = 2, 0.2, 4  # painted copies of a scan; share of single slices; slices of a copy
PENALTY, POSITIVE, PAINTED_WEIGHT = 0.001, 2.0, 0.5  # inverse of the L2 penalty; weights of samples
FOLDS = 4


@dataclass(frozen=True, eq=False)
class PooledSlices:
    """Slices as the linear maps see them.

    Attributes:
        features: float32 (slice, zone * channel), means over the slice of features within a zone.
        answers: int8 (slice, answer) of 1, 0, -1 (unknown).
        cases: (slice,) name of the case.
        painted: bool (slice,).
    """

    features: np.ndarray
    answers: np.ndarray
    cases: np.ndarray
    painted: np.ndarray

    def of(self, chosen: np.ndarray) -> PooledSlices:
        """Some of them."""
        return PooledSlices(self.features[chosen], self.answers[chosen], self.cases[chosen], self.painted[chosen])


def view_of(config: Config) -> View:
    """What the slice network of a configuration sees."""
    rows, columns = (round(mm / config.preprocessing.in_plane_mm) for mm in config.classifier.field_mm)
    return View((rows, columns), config.preprocessing.hu_range[0], ZONES_MM)


def pooled_slices(
    cases: Iterable[Prepared], answers: dict[str, np.ndarray], network: KindNetwork, config: Config, paint: bool
) -> PooledSlices:
    """All labelled slices of some scans, and slices with painted bleeds.

    Args:
        answers: by case, int8 (slice, answer) on the working grid.
        paint: bleeds into copies of the scans.
    """
    features, labels, names, drawn = [], [], [], []
    for case in cases:
        own = answers[case.name]
        known = np.flatnonzero((own[:, -1] != UNKNOWN) & case.intracranial.any(axis=(1, 2)))
        parts = [(case, known, own, False)] if len(known) else []
        if paint and len(known):
            rng = np.random.default_rng([config.seed, 23, zlib.crc32(case.name.encode())])
            parts += [(*copy, True) for copy in painted_copies(case, own, config, rng)]
        for scan, slices, its, is_painted in parts:
            features.append(pooled(scan, slices, network, config))
            labels.append(its[slices])
            names += [case.name] * len(slices)
            drawn += [is_painted] * len(slices)
    return PooledSlices(np.concatenate(features), np.concatenate(labels), np.array(names), np.array(drawn))


def painted_copies(
    case: Prepared, answers: np.ndarray, config: Config, rng: np.random.Generator
) -> Iterator[tuple[Prepared, np.ndarray, np.ndarray]]:
    """Copies of a scan with one painted bleed each, the slices that show it, and their answers (slice, answer)."""
    single = len(case.hu) == 1
    if single and rng.random() >= SINGLES:
        return
    mm = config.preprocessing.spacing
    place = place_of(case.hu, case.intracranial, mm)
    for _ in range(1 if single else COPIES):
        name = str(rng.choice(list(PAINTED), p=list(PAINTED.values())))
        hu, blood = add_bleed(case.hu, np.zeros(case.hu.shape, np.int8), place, rng, name)
        slices = rng.permutation(np.flatnonzero(seen_slices(blood, mm) & (answers[:, -1] != UNKNOWN)))[:MOST]
        if len(slices):
            own = answers.copy()
            own[slices, KINDS.index(KIND_OF[name])] = 1
            own[slices, -1] = 1
            yield replace(case, hu=hu), slices, own


def seen_slices(painted: np.ndarray, mm: tuple[float, float, float]) -> np.ndarray:
    """The slices of which `SEEN_MM2` and more were painted (label 1), bool (z,).

    Args:
        painted: label (z, y, x).
        mm: a voxel, (z, y, x).
    """
    return np.asarray((painted == 1).sum(axis=(1, 2)) * mm[1] * mm[2] >= SEEN_MM2)


@torch.no_grad()
def pooled(case: Prepared, slices: np.ndarray, network: KindNetwork, config: Config) -> np.ndarray:
    """Features of slices of a scan, float32 (slice, zone * channel)."""
    view = view_of(config)
    around = surroundings(case.hu, case.intracranial, config.preprocessing.spacing)
    windows, corner = fields_of_view(slices, case.hu, case.intracranial, view.field, view.background)
    features = torch.cat([network(part) for part in torch.from_numpy(windows).split(32)]).numpy()
    zones = zone_shares(slices, around, corner, view, features.shape[2:])
    cells = features.shape[2] * features.shape[3]
    return np.asarray(np.einsum("szyx,scyx->szc", zones, features).reshape(len(slices), -1) / cells, np.float32)


def linear_maps(slices: PooledSlices) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the maps, float64 (answer, zone * channel), and biases (answer,)."""
    mean, scale = slices.features.mean(axis=0), slices.features.std(axis=0) + 1e-4
    scaled = (slices.features - mean) / scale
    weights, biases = [], []
    for answer in range(len(ANSWERS)):
        known = slices.answers[:, answer] != UNKNOWN
        positive = slices.answers[known, answer] == 1
        if not 0 < positive.sum() < len(positive):  # nothing to learn: always no
            weights.append(np.zeros(scaled.shape[1]))
            biases.append(-10.0)
            continue
        weight = np.where(positive, POSITIVE, 1.0) * np.where(slices.painted[known], PAINTED_WEIGHT, 1.0)
        fitted = LogisticRegression(C=PENALTY, max_iter=100, tol=1e-3).fit(
            scaled[known], positive, sample_weight=weight
        )
        weights.append(fitted.coef_[0] / scale)
        biases.append(float(fitted.intercept_[0] - weights[-1] @ mean))
    return np.array(weights), np.array(biases)


def folds(cases: np.ndarray, seed: int) -> dict[str, int]:
    """A fold for each case."""
    names = np.unique(cases)
    return {str(names[i]): place % FOLDS for place, i in enumerate(np.random.default_rng(seed).permutation(len(names)))}


def crossed_maps(slices: PooledSlices, seed: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """By fold, the maps that were fitted without it: what a lesion's perceptron learns from must not be flattered."""
    of = folds(slices.cases, seed)
    fold = np.array([of[str(name)] for name in slices.cases])
    return {number: linear_maps(slices.of(fold != number)) for number in range(FOLDS)}
