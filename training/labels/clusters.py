"""From a map to a mask without a mask: threshold, K-means, differential prediction (method.md 3).

The thresholded map is split into K clusters by intensity; one cluster at a time is taken out of the image; the
cluster without which the classifier's logit falls lowest is the hemorrhage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from sklearn.cluster import KMeans
from torch import Tensor

from hemseg.errors import HemsegError

from ..config import Classifier, Pseudolabels
from ..fitting.classifier import SliceNetwork, predicted, to_network_size

METHODS = ("clusters", "pieces")


@dataclass(frozen=True, eq=False)
class Choice:
    """How one slice's pseudo-label came about.

    Attributes:
        mask: bool (y, x).
        clusters: int8 (y, x), 0 outside the thresholded map, clusters from 1 in order of intensity.
        sizes, means, drops: pixels, mean HU and fall of the logit for each cluster.
        chosen: number of the cluster, 0 if there was nothing to choose.
    """

    mask: np.ndarray
    clusters: np.ndarray
    sizes: tuple[int, ...] = ()
    means: tuple[float, ...] = ()
    drops: tuple[float, ...] = ()
    chosen: int = 0


def region_of(activation: np.ndarray, intracranial: np.ndarray, settings: Pseudolabels) -> np.ndarray:
    """The thresholded map, bool (y, x), cut to the skull's inside if so configured."""
    region = activation >= settings.threshold
    return region & intracranial if settings.intracranial else region


def intensity_clusters(values: np.ndarray, k: int, seed: int = 0) -> np.ndarray:
    """K-means on intensities: labels 1..k' (int8, n) in rising order of intensity.

    With fewer distinct intensities than ``k``, each is its own cluster.
    """
    distinct, inverse = np.unique(values, return_inverse=True)
    if len(distinct) <= k:
        return (inverse + 1).astype(np.int8)
    fitted = KMeans(k, n_init=3, random_state=seed).fit(values[:, None])
    rank = np.argsort(np.argsort(fitted.cluster_centers_[:, 0]))
    return (rank[fitted.labels_] + 1).astype(np.int8)


def trial_images(hu: np.ndarray, clusters: np.ndarray, background: float, replace: str) -> np.ndarray:
    """The slice itself and the slice without each cluster in turn, float32 (1 + k, y, x).

    ``lowest`` puts ``background`` in a cluster's place (the paper's subtraction); ``mean`` the mean of the tissue
    outside the thresholded region, so that a cluster is not missed merely for its size.
    """
    if replace not in ("lowest", "mean"):
        raise HemsegError(f"pseudolabels.replace {replace!r} is not known; known: lowest, mean.")
    filling = background
    if replace == "mean":
        outside = hu[(clusters == 0) & (hu > background) & (hu < 60)]
        filling = float(outside.mean()) if outside.size else background
    k = int(clusters.max(initial=0))
    return np.stack([hu, *(np.where(clusters == i, filling, hu) for i in range(1, k + 1))]).astype(np.float32)


def choose(
    hu: np.ndarray,
    intensities: np.ndarray,
    activation: np.ndarray,
    intracranial: np.ndarray,
    network: SliceNetwork,
    classifier: Classifier,
    settings: Pseudolabels,
    background: float,
    seed: int,
) -> Choice:
    """Pseudo-label of one positive slice.

    Args:
        hu: (y, x), the classifier's field of view on the working grid.
        intensities: (y, x), what K-means clusters: ``hu``, or a smoothed version of it.
        activation, intracranial: (y, x), map in 0..1 and the skull's inside.
        background: HU of nothing.

    With ``min_drop``, nothing is chosen in a slice where no cluster's removal lowers the logit by more: what the
    classifier does not miss is not what it saw. A classifier that learned nothing then labels next to nothing.
    """
    region = region_of(activation, intracranial, settings)
    clusters = np.zeros(hu.shape, np.int8)
    if not region.any():
        return Choice(region, clusters)
    if settings.clusters == 0:
        return Choice(_without_specks(region, settings), region.astype(np.int8))
    clusters[region] = intensity_clusters(intensities[region], settings.clusters, seed)
    logits = differential_logits(trial_images(hu, clusters, background, settings.replace), network, classifier)
    drops = (logits[0] - logits[1:]).tolist()
    chosen = int(np.argmax(drops)) + 1 if not settings.min_drop or max(drops) > settings.min_drop else 0
    present = range(1, int(clusters.max()) + 1)
    return Choice(
        mask=_without_specks((clusters == chosen) & (chosen > 0), settings),
        clusters=clusters,
        sizes=tuple(int((clusters == i).sum()) for i in present),
        means=tuple(float(hu[clusters == i].mean()) for i in present),
        drops=tuple(drops),
        chosen=chosen,
    )


def differential_logits(trials: np.ndarray, network: SliceNetwork, classifier: Classifier) -> Tensor:
    """Logits of the trial images, all in one batch."""
    return predicted(network, to_network_size(torch.from_numpy(trials), classifier))


def _without_specks(mask: np.ndarray, settings: Pseudolabels) -> np.ndarray:
    """Drop in-plane pieces below ``min_pixels``; the largest stays in any case."""
    if settings.min_pixels <= 1 or not mask.any():
        return mask
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return ((sizes >= settings.min_pixels) | ((sizes == sizes.max()) & (sizes > 0)))[labels]
