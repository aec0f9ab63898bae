"""A second opinion on what the U-Net marks: the slice classifier's, which learned from whole slices (beyond the paper).

The U-Net learned where blood is from outlines that nobody checked; the classifier learned from the slice labels
themselves whether a slice holds any. They are wrong about different things: a falx that the one marks, the other has
seen in a thousand healthy slices. So a lesion stands only where the classifier, too, sees hemorrhage in one of the
slices that show most of it. It looks at slices with something to judge alone, which takes some tens of milliseconds
each.

What lies beside a larger lesion would always be confirmed by it. So the classifier is asked about such a lesion with
the others painted over: the paper's differential prediction, with which pseudo-labels are found, once more.

Where the weights name kinds of hemorrhage, the first pass says where it sees which, too (`hemseg.kinds`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from hemseg.components import numbered_components, without_components
from hemseg.fields_of_view import corner_of, cut, fields_of_view
from hemseg.preprocessing import Settings, WorkingImage, brain_level
from hemseg.strip import disc
from hemseg.upright import turned

SLICES_AT_ONCE = 8
JUDGED_SLICES = 2  # of a lesion beside a larger one, in which it is judged
# of its largest area: a rim that reaches into one more slice does not speak for all of a lesion
MAIN_SLICE_SHARE = 0.75
PAINT_MARGIN_MM = 2.0  # around what is painted over: its blurred edge
CONFIRMING_PROBABILITY = 0.9  # of hemorrhage with the other lesions painted over: the lesion stands
MIN_LOGIT_DROP = 0.5  # of the logit as the lesion, too, is painted over; less: it is not what the classifier sees

Network = Callable[[np.ndarray], np.ndarray]  # HU of fields of view (n, y, x) -> probability (n,), float32
KindNetwork = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""The same, and maps of kinds, float32 (n, kind, y', x'), whose means over (y', x') are the slices' logits."""


@dataclass(frozen=True, eq=False)
class ClassifierOutput:
    """The classifier's output for slices of a scan, shown upright.

    Attributes:
        probability: float32 (z,) of hemorrhage in each slice of the working grid; NaN where it was not asked.
        kind_maps: by slice that it was asked about, (kind, y', x') of `KindNetwork`; none where no kinds are named.
        corner: (y, x) of its field of view on the working grid, possibly negative.
        field: (y, x) voxels of it.
    """

    probability: np.ndarray
    kind_maps: dict[int, np.ndarray]
    corner: tuple[int, int] = (0, 0)
    field: tuple[int, int] = (0, 0)


@dataclass(frozen=True, eq=False)
class Opinion:
    """What the classifier says about a scan, on the working grid.

    Attributes:
        slices: float32 (z,), its probability of hemorrhage; NaN where it was not asked.
        unconfirmed: bool (z, y, x), lesions beside larger ones in which it sees no hemorrhage.
        output: what ``slices`` are from; None where kinds are not needed.
    """

    slices: np.ndarray
    unconfirmed: np.ndarray
    output: ClassifierOutput | None = None


@dataclass(frozen=True, eq=False)
class SliceClassifier:
    """The classifier as inference calls it.

    Attributes:
        field: (y, x) voxels of the working grid that it sees.
        network: see `Network`.
        kind_network: see `KindNetwork`; None where the weights name no kinds.
    """

    field: tuple[int, int]
    network: Network
    kind_network: KindNetwork | None = None

    def classify_marked(
        self, probability: np.ndarray, least: float, working: WorkingImage, settings: Settings
    ) -> ClassifierOutput:
        """Classify the slices of the working grid in which the U-Net marks something.

        Args:
            probability: (z, y, x), the U-Net's, on the working grid.
            least: slices in which it stays below this are not classified.
            working: the scan.
            settings: of the preprocessing; the classifier sees HU at the same level as the U-Net does.
        """
        slices = np.flatnonzero((probability >= least).any(axis=(1, 2)))
        return self.classify(slices, *working.leveled_upright(settings), settings.hu_range[0])

    def classify(self, slices: np.ndarray, hu: np.ndarray, inside: np.ndarray, background: float) -> ClassifierOutput:
        """Classify some slices; ``hu`` is at the brain's level, all as in `fields_of_view`."""
        probability = np.full(len(hu), np.nan, np.float32)
        if not len(slices):
            return ClassifierOutput(probability, {})
        windows, corner = fields_of_view(slices, hu, inside, self.field, background)
        if self.kind_network is None:
            probability[slices] = self._predict(windows)
            return ClassifierOutput(probability, {}, corner, self.field)
        parts = [self.kind_network(part) for part in _batches(windows)]
        probability[slices] = np.concatenate([answer for answer, _ in parts])
        maps = [of_slice for _, of_slices in parts for of_slice in of_slices]
        return ClassifierOutput(probability, dict(zip(slices.tolist(), maps, strict=True)), corner, self.field)

    def unconfirmed_components(
        self,
        confirmed: np.ndarray,
        threshold: float,
        least: float,
        least_ml: float,
        working: WorkingImage,
        settings: Settings,
    ) -> np.ndarray:
        """The components beside larger ones in which the classifier, the others painted over, sees no hemorrhage.

        It sees one where it is sure of hemorrhage, or sees some that it sees less of when the component is gone, too;
        asked in the two slices that show most of it.

        Args:
            confirmed: (z, y, x), the U-Net's probability without the components of which it sees nothing anyway.
            threshold: of that probability.
            least: its probability from which it sees hemorrhage.
            least_ml: smaller components are not judged.
            working, settings: as for `classify_marked`.

        Returns:
            bool (z, y, x).
        """
        number, _ = numbered_components(confirmed >= threshold)
        beside = _components_beside_larger(number, least_ml * 1000 / float(np.prod(working.grid.spacing)))
        if not beside or not np.isfinite(working.brain_hu):
            return np.zeros(confirmed.shape, bool)
        number = turned(number, working.quarters)
        hu, inside = working.leveled_upright(settings)
        level, background = brain_level(hu, inside), settings.hu_range[0]
        corner = corner_of(inside, self.field)
        around = disc(PAINT_MARGIN_MM, working.grid.spacing[1])

        def without(z: int, gone: np.ndarray, kept: np.ndarray) -> np.ndarray:
            painted = cv2.dilate(gone.astype(np.uint8), around).astype(bool) & ~kept
            plane = np.where(painted, np.float32(level), hu[z])
            return cut(np.where(inside[z], plane, background), corner, self.field, background)

        asked = {(i, z): without(z, (number[z] > 0) & (number[z] != i), number[z] == i) for i, z in beside}
        alone = dict(zip(asked, self._predict(np.stack(list(asked.values()))), strict=True))
        seen = {i for (i, _), found in alone.items() if found >= CONFIRMING_PROBABILITY}
        doubtful = [(i, z) for (i, z), found in alone.items() if found >= least and i not in seen]
        bare = {z: without(z, number[z] > 0, np.zeros(inside[z].shape, bool)) for _, z in doubtful}
        nothing = dict(zip(bare, self._predict(np.stack(list(bare.values()))), strict=True)) if bare else {}
        seen |= {i for i, z in doubtful if _logit(alone[i, z]) - _logit(nothing[z]) >= MIN_LOGIT_DROP}
        unconfirmed = np.isin(number, sorted({i for i, _ in beside} - seen))
        return turned(unconfirmed, -working.quarters)

    def _predict(self, windows: np.ndarray) -> np.ndarray:
        """Probabilities (n,) of fields of view (n, y, x), in batches."""
        return np.concatenate([self.network(part) for part in _batches(windows)])


def _batches(windows: np.ndarray) -> list[np.ndarray]:
    return [windows[at : at + SLICES_AT_ONCE] for at in range(0, len(windows), SLICES_AT_ONCE)]


def _components_beside_larger(number: np.ndarray, least: float) -> list[tuple[int, int]]:
    """Components that share a slice with a larger one, each with its slices of largest area: (number, z).

    Args:
        number: int (z, y, x), see `numbered_components`.
        least: voxels; smaller ones are left out.
    """
    last = int(number.max())
    if last < 2:
        return []
    areas = np.stack([np.bincount(plane.ravel(), minlength=last + 1)[1:] for plane in number])  # (z, component)
    result = []
    for i in np.flatnonzero(areas.sum(axis=0) >= least):
        own = np.flatnonzero(areas[:, i])
        if areas[own, :i].any():
            best = own[np.argsort(-areas[own, i], kind="stable")[:JUDGED_SLICES]]
            result += [(int(i) + 1, int(z)) for z in best]
    return result


def _logit(probability: float) -> float:
    p = min(max(float(probability), 1e-5), 1 - 1e-5)
    return float(np.log(p / (1 - p)))


def drop_unconfirmed_components(
    probability: np.ndarray, threshold: float, slice_probability: np.ndarray, least: float
) -> np.ndarray:
    """The U-Net's probability without the components above its threshold that the classifier sees in none of their
    main slices, of areas near the largest (`MAIN_SLICE_SHARE`); slices that it was not asked about do not count, and
    where it was asked about none of them, a component stays.

    Args:
        probability: (z, y, x).
        threshold: of the U-Net's probability.
        slice_probability: (z,), see `SliceClassifier.classify_marked`.
        least: the classifier's probability that one of a component's main slices must reach.
    """
    if not least or not (slice_probability < least).any():
        return probability

    def unconfirmed(where: tuple[slice, ...], component: np.ndarray) -> bool:
        areas = component.sum(axis=(1, 2))
        asked = slice_probability[where[0]][areas >= MAIN_SLICE_SHARE * areas.max()]
        asked = asked[~np.isnan(asked)]
        return len(asked) > 0 and asked.max() < least

    return without_components(probability, threshold, unconfirmed)


def drop_components_within(probability: np.ndarray, threshold: float, region: np.ndarray) -> np.ndarray:
    """A probability (z, y, x) without the components above a threshold of which most lies within a region, bool."""
    if not region.any():
        return probability
    return without_components(probability, threshold, lambda where, component: region[where][component].mean() > 0.5)
