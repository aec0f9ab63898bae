"""Piecewise differential prediction: which bright pieces does the classifier need for its yes? (beyond the paper)

The paper removes one intensity cluster at a time. A cluster holds everything of its intensity, so a small bleed comes
with whatever else is as bright, and two bleeds of different intensity come one without the other. Here the candidates
are the connected bright pieces of the slice where the activation map is high; pieces are taken out of the slice, the
one that costs most logit first, until the classifier says no. What had to go is the hemorrhage.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..config import Classifier, Pseudolabels
from ..data.brain import brain_level
from ..fitting.classifier import SliceNetwork
from .clusters import Choice, differential_logits

CLIPPED_HU = 97.0  # bone and what saturates the window
WITH_FIRST = 0.3  # pieces whose removal costs this share of the first one's are taken out together with it
WORTH = 0.15  # a later piece that costs less than this share of the first one's is not blood


def choose_pieces(
    hu: np.ndarray,
    intensities: np.ndarray,
    activation: np.ndarray,
    intracranial: np.ndarray,
    network: SliceNetwork,
    classifier: Classifier,
    settings: Pseudolabels,
    mm: float = 1.0,
) -> Choice:
    """Pseudo-label of one positive slice; arguments and result as for `pseudolabels.choose`; ``mm``: pixel size.

    ``Choice.clusters`` holds the candidate pieces, in falling order of their mean activation times the square root
    of their size; ``chosen`` is the first one that was taken. Nothing is chosen when no removal lowers the logit by
    more than ``min_drop``.
    """
    brain = brain_level(intensities, intracranial)
    bright = intracranial & (intensities >= brain + settings.contrast_hu) & (intensities < CLIPPED_HU)
    if steps := round(settings.opening_mm / mm):
        bright = ndimage.binary_opening(bright, iterations=steps)
    connected, count = ndimage.label(bright)
    if settings.max_hu and count:
        means = np.asarray(ndimage.mean(intensities, connected, np.arange(count + 1)))
        connected, count = ndimage.label(bright & ~(means > settings.max_hu)[connected])
    pieces = _ranked(connected, count, activation, settings)
    n = int(pieces.max(initial=0))
    if not n:
        return Choice(np.zeros(hu.shape, bool), pieces)
    removed = {i: ndimage.binary_dilation(pieces == i) for i in range(1, n + 1)}

    def logits(image: np.ndarray, numbers: list[int]) -> np.ndarray:
        trials = np.stack([image, *(np.where(removed[i], np.float32(brain), image) for i in numbers)])
        return differential_logits(trials.astype(np.float32), network, classifier).numpy()

    first = logits(hu, list(removed))
    drops = dict(zip(removed, (first[0] - first[1:]).tolist(), strict=True))
    most = max(drops.values())
    taken = [i for i, drop in drops.items() if drop >= WITH_FIRST * most] if most > settings.min_drop else []
    image = _without(hu, taken, removed, brain)
    for _ in range(settings.rounds if taken else 0):
        left = [i for i in removed if i not in taken]
        now = logits(image, left)
        if now[0] <= 0 or not left:
            break
        best = int(np.argmin(now[1:]))
        if now[0] - now[1 + best] < WORTH * most:
            break
        taken.append(left[best])
        image = _without(image, taken[-1:], removed, brain)
    return Choice(
        mask=np.isin(pieces, taken) if taken else np.zeros(hu.shape, bool),
        clusters=pieces,
        sizes=tuple(int((pieces == i).sum()) for i in removed),
        means=tuple(float(hu[pieces == i].mean()) for i in removed),
        drops=tuple(drops.values()),
        chosen=taken[0] if taken else 0,
    )


def _without(image: np.ndarray, numbers: list[int], removed: dict[int, np.ndarray], brain: float) -> np.ndarray:
    for i in numbers:
        image = np.where(removed[i], np.float32(brain), image)
    return image


def _ranked(pieces: np.ndarray, n: int, activation: np.ndarray, settings: Pseudolabels) -> np.ndarray:
    """The candidates among bright pieces, numbered 1.. by rank: int8 (y, x)."""
    result = np.zeros(pieces.shape, np.int8)
    if not n:
        return result
    every = np.arange(1, n + 1)
    size = np.bincount(pieces.ravel(), minlength=n + 1)[1:]
    peak, mean = ndimage.maximum(activation, pieces, every), ndimage.mean(activation, pieces, every)
    order = [i for i in np.argsort(-mean * np.sqrt(size)) if size[i] >= settings.min_pixels]
    order = [i for i in order if peak[i] >= settings.threshold][: settings.pieces]
    for rank, i in enumerate(order, start=1):
        result[pieces == every[i]] = rank
    return result
