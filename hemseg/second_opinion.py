"""A second opinion on what the U-Net marks: the slice classifier's, which learned from whole slices (beyond the paper).

The U-Net learned where blood is from outlines that nobody checked; the classifier learned from the slice labels
themselves whether a slice holds any. They are wrong about different things: a falx that the one marks, the other has
seen in a thousand healthy slices. So a lesion stands only where the classifier, too, sees hemorrhage in one of its
slices. It looks at slices with something to judge alone, which takes some milliseconds each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hemseg.components import components_above
from hemseg.fields_of_view import fields_of_view
from hemseg.preprocessing import Settings, WorkingImage, leveled

SLICES_AT_ONCE = 8

Network = Callable[[np.ndarray], np.ndarray]  # HU of fields of view (n, y, x) -> probability (n,), float32


@dataclass(frozen=True, eq=False)
class SliceClassifier:
    """The classifier, ready to be asked.

    Attributes:
        field: (y, x) voxels of the working grid that it sees.
        network: see `Network`.
    """

    field: tuple[int, int]
    network: Network

    def opinion(self, probability: np.ndarray, least: float, working: WorkingImage, settings: Settings) -> np.ndarray:
        """Probability of hemorrhage in each slice of the working grid that has something to judge, float32 (z,).

        Args:
            probability: (z, y, x), the U-Net's, on the working grid.
            least: slices in which it stays below this are not looked at; NaN stands for them.
            working: the scan.
            settings: of the preprocessing; the classifier sees HU at the same level as the U-Net does.
        """
        result = np.full(len(probability), np.nan, np.float32)
        slices = np.flatnonzero((probability >= least).any(axis=(1, 2)))
        if not len(slices):
            return result
        hu, inside = working.upright
        hu = leveled(hu, inside, settings)
        windows, _ = fields_of_view(slices, hu, inside, self.field, settings.hu_range[0])
        parts = [windows[at : at + SLICES_AT_ONCE] for at in range(0, len(windows), SLICES_AT_ONCE)]
        result[slices] = np.concatenate([self.network(part) for part in parts])
        return result


def drop_unconfirmed_components(
    probability: np.ndarray, threshold: float, opinion: np.ndarray, least: float
) -> np.ndarray:
    """The U-Net's probability without the components above its threshold that the classifier sees in none of their
    slices; slices that it was not asked about count for nothing, and where it was asked about none, nothing is dropped.

    Args:
        probability: (z, y, x).
        threshold: of the U-Net's probability.
        opinion: (z,), see `SliceClassifier.opinion`.
        least: the classifier's probability that one slice of a component must reach.
    """
    if not least or not (opinion < least).any():
        return probability
    result = probability.copy()
    for where, component in components_above(probability, threshold):
        asked = opinion[where[0]][component.any(axis=(1, 2))]
        asked = asked[~np.isnan(asked)]
        if len(asked) and asked.max() < least:
            result[where][component] = 0
    return result
