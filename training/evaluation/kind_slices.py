"""Which kinds of hemorrhage does the slice classifier see in a slice? Areas under the ROC curve by kind.

    python -m training kinds-slices --run RUN --data A --data B --split val --split test --out slices.csv

Slices are those whose kinds are labelled; single slices at brain level alone. Intervals at 95 %, bootstrap over slices.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hemseg.kinds import KINDS, KindHead

from ..fitting.kind_slices import PooledSlices
from .single_slices import area_under_curve, auc_with_interval

COMMON = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural")  # enough slices for a mean
RESAMPLED = 1000


def slice_aucs(slices: PooledSlices, head: KindHead, data: str, split: str) -> list[dict[str, Any]]:
    """A row for each kind, and one for the mean of `COMMON`, if there are slices of all of them.

    Args:
        slices: of one data set and split, with what the classifier sees of them.
        head: the weights', with maps.
        data, split: their names.
    """
    logits = slices.features @ head.maps.T + head.bias
    about = {"data": data, "split": split}
    rows = []
    for i, kind in enumerate(KINDS):
        truth = slices.answers[:, i]
        counts = {"slices": len(truth), "positive": int((truth == 1).sum())}
        rows.append(about | {"kind": kind} | counts | auc_with_interval("auc", truth.tolist(), logits[:, i].tolist()))
    common = [KINDS.index(kind) for kind in COMMON]
    if all(0 < (slices.answers[:, i] == 1).sum() < len(slices.answers) for i in common):
        drawn = resampled_means(slices.answers[:, common], logits[:, common])
        low, high = np.percentile(drawn, (2.5, 97.5))
        mean = float(np.mean([row["auc"] for row in rows if row["kind"] in COMMON]))
        counts = {"slices": len(logits), "positive": int((slices.answers[:, common] == 1).any(axis=1).sum())}
        rows.append(about | {"kind": "mean of four"} | counts | {"auc": mean, "auc_low": low, "auc_high": high})
    return [{key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()} for row in rows]


def resampled_means(truth: np.ndarray, logits: np.ndarray, seed: int = 0) -> list[float]:
    """Means over the kinds of the areas under the ROC curve, each of slices drawn with replacement.

    Args:
        truth: (slice, kind) of 1 and 0.
        logits: (slice, kind).
    """
    rng = np.random.default_rng(seed)
    means: list[float] = []
    while len(means) < RESAMPLED:
        chosen = rng.integers(len(truth), size=len(truth))
        pairs = [(truth[chosen, i], logits[chosen, i]) for i in range(truth.shape[1])]
        if all(0 < own.sum() < len(own) for own, _ in pairs):
            means.append(float(np.mean([area_under_curve(own, score) for own, score in pairs])))
    return means
