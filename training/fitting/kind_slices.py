"""Kinds of slices from slice labels: linear maps of kinds on the slice classifier's features.

The classifier learned kinds as a second answer, whose layer is not kept. For each kind, a logistic regression on its
pooled features, whose weights are a class activation map as they stand: the mean of the map over the slice is the
logit. A slice whose label does not name its kinds is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from hemseg.errors import HemsegError
from hemseg.fields_of_view import fields_of_view
from hemseg.kinds import KINDS, KindHead
from hemseg.manifest import Manifest
from hemseg.onnx_session import check_file, session
from hemseg.resources import cores

from ..data.datasets import Prepared
from ..data.slice_kinds import UNKNOWN

PENALTY = 0.001  # inverse of the L2 penalty
SLICES_AT_ONCE = 8

Features = Callable[
    [np.ndarray], np.ndarray
]  # HU of fields of view (n, y, x) -> features (n, channel, y', x'), float32


@dataclass(frozen=True, eq=False)
class PooledSlices:
    """Slices as the linear maps see them.

    Attributes:
        features: float32 (slice, channel), means over the slice.
        answers: int8 (slice, answer) of 1, 0, -1 (unknown).
        cases: (slice,) name of the case.
    """

    features: np.ndarray
    answers: np.ndarray
    cases: np.ndarray

    @classmethod
    def merge(cls, parts: list[PooledSlices]) -> PooledSlices:
        """All slices of several."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


def classifier_features(weights: Path) -> Features:
    """What the slice classifier of weights makes of slices.

    Raises:
        HemsegError: they have none, or one that was exported without its features.
    """
    manifest = Manifest.read(weights)
    if not manifest.classifier_file:
        raise HemsegError(f"{weights}: these weights have no slice classifier to read kinds off.")
    path = weights / manifest.classifier_file
    check_file(path, manifest.classifier_sha256)
    network = session(path, "cpu", cores())
    if "features" not in [output.name for output in network.get_outputs()]:
        raise HemsegError(f"{path}: was exported without its features; export the weights anew.")
    return lambda slices: np.asarray(network.run(["features"], {"slices": slices})[0])


def pooled_slices(
    cases: Iterable[Prepared],
    answers: dict[str, np.ndarray],
    features: Features,
    field: tuple[int, int],
    background: float,
) -> PooledSlices:
    """All slices of some scans whose kinds are known.

    Args:
        cases: at the brain's level.
        answers: by case, int8 (slice, answer) on the working grid.
        features: the classifier's.
        field: (y, x) voxels of the working grid that it sees.
        background: HU outside the intracranial mask.
    """
    pooled, labels, names = [], [], []
    for case in cases:
        own = answers[case.name]
        known = np.flatnonzero((own[:, 0] != UNKNOWN) & case.intracranial.any(axis=(1, 2)))
        for at in range(0, len(known), SLICES_AT_ONCE):
            part = known[at : at + SLICES_AT_ONCE]
            windows, _ = fields_of_view(part, case.hu, case.intracranial, field, background)
            pooled.append(features(windows).mean(axis=(2, 3)))
            labels.append(own[part])
            names += [case.name] * len(part)
    if not pooled:
        raise HemsegError("no slice is labelled with kinds of hemorrhage.")
    return PooledSlices(np.concatenate(pooled), np.concatenate(labels), np.array(names))


def fit_linear_maps(slices: PooledSlices, classifier: str) -> KindHead:
    """A head that makes maps, and names nothing yet.

    Args:
        slices: of train.
        classifier: sha256 of the classifier whose features they are.
    """
    mean, scale = slices.features.mean(axis=0), slices.features.std(axis=0) + 1e-4
    scaled = (slices.features - mean) / scale
    weights, biases = [], []
    for kind in range(len(KINDS)):
        positive = slices.answers[:, kind] == 1
        if not 0 < positive.sum() < len(positive):  # nothing to learn: always no
            weights.append(np.zeros(scaled.shape[1]))
            biases.append(-10.0)
            continue
        fitted = LogisticRegression(C=PENALTY, max_iter=100, tol=1e-3).fit(scaled, positive)
        weights.append(fitted.coef_[0] / scale)
        biases.append(float(fitted.intercept_[0] - weights[-1] @ mean))
    return head_without_regression(classifier, np.array(weights, np.float32), np.array(biases, np.float32))


def head_without_regression(
    classifier: str = "", maps: np.ndarray | None = None, bias: np.ndarray | None = None
) -> KindHead:
    """A head with maps alone, (kind, channel) and (kind,), or with none: its regression is yet to be fitted."""
    kinds, inputs = len(KINDS), 0
    return KindHead(
        classifier=np.array(classifier),
        maps=np.zeros((kinds, 0), np.float32) if maps is None else maps,
        bias=np.zeros(kinds, np.float32) if bias is None else bias,
        mean=np.zeros(inputs),
        scale=np.ones(inputs),
        weight=np.zeros((kinds, inputs)),
        offset=np.zeros(kinds),
        unsure_below=np.array(0.0),
        right=np.array([0, 0]),
    )
