"""A second round of labels: what the first U-Net says of its own positive slices (beyond the paper).

The classifier's pseudo-labels are made slice by slice, and errors that are not the same from slice to slice average
out in the 3D U-Net. So on positive slices the U-Net may add components of which it is sure and take out those in
which it sees nothing; negative slices stay empty, and the outline is again put at half maximum. No mask is looked at.
A U-Net that misses a kind of bleed would take it out of its own labels for good: with `keep_emptied` a positive slice
never loses its last component.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from hemseg.preprocessing import Settings, smoothed
from hemseg.sliding_window import network_probability

from ..config import Config, SelfTraining
from ..data.datasets import Prepared
from .outline import half_maximum

REPEATED = 8  # a multiple of the strides along z
_IN_PLANE = np.ones((3, 3), bool)


def teacher_probability(network: nn.Module, case: Prepared, config: Config) -> np.ndarray:
    """Probability of the first U-Net on a prepared scan, float32 (z, y, x)."""

    def run(patches: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(np.ascontiguousarray(patches, np.float32))).sigmoid().numpy()

    return network_probability(case.hu, case.intracranial, config.preprocessing, run, config.segmenter.patch)


def false_peak(network: nn.Module, case: Prepared, config: Config) -> float:
    """The highest probability that a U-Net gives a scan of one slice, 0..1: how wrong it is if the slice is healthy.

    The slice is repeated `REPEATED` times, not as often as in inference: it serves to draw samples, nothing else.
    """
    patch = (REPEATED, *config.segmenter.patch[1:])
    thin = replace(config, segmenter=replace(config.segmenter, patch=patch))
    return float(teacher_probability(network, case, thin).max())


def relabel_case(
    case: Prepared, label: np.ndarray, probability: np.ndarray, settings: SelfTraining, grid: Settings, reach_mm: float
) -> np.ndarray:
    """The new label, bool (z, y, x); empty on all slices that are not labelled positive.

    Args:
        label: bool (z, y, x), the pseudo-label of the first round.
        probability: (z, y, x), the first U-Net's.
        reach_mm: how far outside its component an outline may lie; 0 leaves it as it is.
    """
    result = np.zeros_like(label)
    intensities = smoothed(case.hu, grid)
    for z in np.flatnonzero(case.labels == 1):
        kept = _components_where(label[z], probability[z], lambda p: p.mean() >= settings.doubt)
        added = _components_where(probability[z] >= settings.core, probability[z], lambda p: p.max() >= settings.sure)
        result[z] = kept | added
        if settings.keep_emptied and not result[z].any():
            result[z] = label[z]  # with the outline that it has
        elif reach_mm:
            reach = round(reach_mm / grid.in_plane_mm)
            result[z] = half_maximum(result[z], intensities[z], case.intracranial[z], reach, grid.in_plane_mm)
    return result


def _components_where(mask: np.ndarray, probability: np.ndarray, criterion: Callable[[np.ndarray], bool]) -> np.ndarray:
    components, n = ndimage.label(mask, _IN_PLANE)
    keep = [False] + [bool(criterion(probability[components == i])) for i in range(1, n + 1)]
    return np.array(keep)[components]
