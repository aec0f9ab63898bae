"""Differential prediction by components: which bright ones does the classifier need for its yes? (beyond the paper)

The paper removes one intensity cluster at a time. A cluster holds everything of its intensity, so a small bleed comes
with whatever else is as bright, and two bleeds of different intensity come one without the other. Here the candidates
are the connected bright components of the slice where the activation map is high; they are taken out of the slice, the
one that costs most logit first, until the classifier says no. What had to go is the hemorrhage.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..config import Pseudolabels
from ..data.brain import brain_level
from .differential import Choice, Probe, SliceView

CLIPPED_HU = 97.0  # bone and what saturates the window
JOINT_DROP_SHARE = 0.3  # components whose removal costs this share of the first one's are taken out together with it
MIN_DROP_SHARE = 0.15  # a later one that costs less than this share of the first one's is not blood


def choose_components(view: SliceView, probe: Probe, settings: Pseudolabels) -> Choice:
    """Pseudo-label of one positive slice: the bright components that the classifier needs for its yes.

    ``Choice.candidates`` holds the candidate components, in falling order of their mean activation times the square
    root of their size; ``chosen`` is the first one that was taken. Nothing is chosen when no removal lowers the logit
    by more than ``min_drop``.
    """
    brain = np.float32(brain_level(view.intensities, view.intracranial))
    candidates = rank_candidates(*bright_components(view, float(brain), settings), view.activation, settings)
    n = int(candidates.max(initial=0))
    if not n:
        return Choice(np.zeros(view.hu.shape, bool), candidates)
    footprints = {i: ndimage.binary_dilation(candidates == i) for i in range(1, n + 1)}
    taken, drops = _remove_until_negative(view.hu, footprints, brain, probe, settings)
    return Choice(
        mask=np.isin(candidates, taken) if taken else np.zeros(view.hu.shape, bool),
        candidates=candidates,
        sizes=tuple(int((candidates == i).sum()) for i in footprints),
        means=tuple(float(view.hu[candidates == i].mean()) for i in footprints),
        drops=tuple(drops.values()),
        chosen=taken[0] if taken else 0,
    )


def bright_components(view: SliceView, brain: float, settings: Pseudolabels) -> tuple[np.ndarray, int]:
    """Connected components that are brighter than the slice's brain, int (y, x) from 1, and their number."""
    bright = view.intracranial & (view.intensities >= brain + settings.contrast_hu) & (view.intensities < CLIPPED_HU)
    if steps := round(settings.opening_mm / view.mm):
        bright = ndimage.binary_opening(bright, iterations=steps)
    connected, count = ndimage.label(bright)
    if settings.max_hu and count:
        means = np.asarray(ndimage.mean(view.intensities, connected, np.arange(count + 1)))
        connected, count = ndimage.label(bright & ~(means > settings.max_hu)[connected])
    return connected, count


def _remove_until_negative(
    hu: np.ndarray, footprints: dict[int, np.ndarray], brain: np.float32, probe: Probe, settings: Pseudolabels
) -> tuple[list[int], dict[int, float]]:
    """Numbers of the candidates that had to go, the first ones first; and by how much each one's removal costs."""

    def logits(image: np.ndarray, numbers: list[int]) -> np.ndarray:
        return probe.logits(np.stack([image, *(np.where(footprints[i], brain, image) for i in numbers)]))

    first = logits(hu, list(footprints))
    drops = dict(zip(footprints, (first[0] - first[1:]).tolist(), strict=True))
    most = max(drops.values())
    taken = [i for i, drop in drops.items() if drop >= JOINT_DROP_SHARE * most] if most > settings.min_drop else []
    image = _without(hu, taken, footprints, brain)
    for _ in range(settings.rounds if taken else 0):
        left = [i for i in footprints if i not in taken]
        current = logits(image, left)
        if current[0] <= 0 or not left:
            break
        best = int(np.argmin(current[1:]))
        if current[0] - current[1 + best] < MIN_DROP_SHARE * most:
            break
        taken.append(left[best])
        image = _without(image, taken[-1:], footprints, brain)
    return taken, drops


def _without(image: np.ndarray, numbers: list[int], footprints: dict[int, np.ndarray], brain: np.float32) -> np.ndarray:
    for i in numbers:
        image = np.where(footprints[i], brain, image)
    return image


def rank_candidates(components: np.ndarray, n: int, activation: np.ndarray, settings: Pseudolabels) -> np.ndarray:
    """The candidates among ``n`` bright components, numbered 1.. by rank: int8 (y, x)."""
    result = np.zeros(components.shape, np.int8)
    if not n:
        return result
    every = np.arange(1, n + 1)
    size = np.bincount(components.ravel(), minlength=n + 1)[1:]
    peak, mean = (measure(activation, components, every) for measure in (ndimage.maximum, ndimage.mean))
    order = [i for i in np.argsort(-mean * np.sqrt(size)) if size[i] >= settings.min_pixels]
    order = [i for i in order if peak[i] >= settings.threshold][: settings.candidates]
    for rank, i in enumerate(order, start=1):
        result[components == every[i]] = rank
    return result
