"""Differential prediction: what has to leave a slice for the classifier to take back its yes? (docs/method.md, 4)

A method gets a view of a positive slice and a probe, which asks the classifier about changed copies of it, and returns
a choice. `methods` lists them by the name that a configuration gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..config import Classifier, Pseudolabels
from ..data.field_of_view import to_network_size
from ..fitting.classifier import predict
from ..networks.slice_network import SliceNetwork


@dataclass(frozen=True, eq=False)
class SliceView:
    """One positive slice; all arrays are (y, x), the classifier's field of view on the working grid.

    Attributes:
        hu: the slice.
        intensities: what candidates are found in: ``hu``, or a smoothed version of it.
        activation: its map, 0..1.
        intracranial: bool.
        mm: pixel size.
        background: HU of nothing.
        seed: of whatever is drawn.
    """

    hu: np.ndarray
    intensities: np.ndarray
    activation: np.ndarray
    intracranial: np.ndarray
    mm: float = 1.0
    background: float = -20.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Probe:
    """A trained classifier, to be asked about slices that were changed."""

    network: SliceNetwork
    config: Classifier

    def logits(self, trials: np.ndarray) -> np.ndarray:
        """Logits (n,) of trial images (n, y, x) in HU, of the field of view, all in one batch."""
        images = torch.from_numpy(trials.astype(np.float32, copy=False))
        return predict(self.network, to_network_size(images, self.config)).numpy()


@dataclass(frozen=True, eq=False)
class Choice:
    """How one slice's pseudo-label came about.

    Attributes:
        mask: bool (y, x).
        candidates: int8 (y, x), numbered from 1, 0 where there is none.
        sizes, means, drops: pixels, mean HU and fall of the logit for each candidate.
        chosen: number of the first candidate that was taken, 0 if there was nothing to choose.
    """

    mask: np.ndarray
    candidates: np.ndarray
    sizes: tuple[int, ...] = ()
    means: tuple[float, ...] = ()
    drops: tuple[float, ...] = ()
    chosen: int = 0


Method = Callable[[SliceView, Probe, Pseudolabels], Choice]
