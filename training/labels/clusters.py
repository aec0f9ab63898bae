"""From a map to a mask without a mask: threshold, K-means, differential prediction (docs/method.md, 4).

The thresholded map is split into K clusters by intensity; one cluster at a time is taken out of the image; the
cluster without which the classifier's logit falls lowest is the hemorrhage.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from hemseg.components import drop_small_components
from hemseg.errors import HemsegError

from ..config import Pseudolabels
from .differential import Choice, Probe, SliceView


def threshold_map(activation: np.ndarray, intracranial: np.ndarray, settings: Pseudolabels) -> np.ndarray:
    """The thresholded map, bool (y, x), cut to the intracranial mask if so configured."""
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


def choose_cluster(view: SliceView, probe: Probe, settings: Pseudolabels) -> Choice:
    """Pseudo-label of one positive slice: the intensity cluster whose removal lowers the logit most.

    ``Choice.candidates`` holds the clusters of the thresholded map, in order of intensity. With ``min_drop``, nothing
    is chosen in a slice where no cluster's removal lowers the logit by more: what the classifier does not miss is not
    what it saw. A classifier that learned nothing then labels next to nothing.
    """
    region = threshold_map(view.activation, view.intracranial, settings)
    clusters = np.zeros(view.hu.shape, np.int8)
    if not region.any():
        return Choice(region, clusters)
    if settings.clusters == 0:
        return Choice(_drop_small_components(region, settings), region.astype(np.int8))
    clusters[region] = intensity_clusters(view.intensities[region], settings.clusters, view.seed)
    logits = probe.logits(trial_images(view.hu, clusters, view.background, settings.replace))
    drops = (logits[0] - logits[1:]).tolist()
    chosen = int(np.argmax(drops)) + 1 if not settings.min_drop or max(drops) > settings.min_drop else 0
    present = range(1, int(clusters.max()) + 1)
    return Choice(
        mask=_drop_small_components((clusters == chosen) & (chosen > 0), settings),
        candidates=clusters,
        sizes=tuple(int((clusters == i).sum()) for i in present),
        means=tuple(float(view.hu[clusters == i].mean()) for i in present),
        drops=tuple(drops),
        chosen=chosen,
    )


def _drop_small_components(mask: np.ndarray, settings: Pseudolabels) -> np.ndarray:
    """A mask (y, x) without its components below ``min_pixels``; the largest stays in any case."""
    return drop_small_components(mask, settings.min_pixels, corners=True, keep_largest=True)
