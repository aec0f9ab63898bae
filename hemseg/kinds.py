"""Which kind of hemorrhage a lesion is: what a slice network saw in it, and what shape it has and where it lies.

The slice classifier's network gives maps of features; weights per channel and per zone (by the distance to the skull),
learned from slice labels by kind, make a map of each kind of them, whose mean over the slice is the slice's logit: a
class activation map (Zhou et al. 2016), exact by construction. A multinomial logistic regression reads the figures of
`hemseg.lesion_features` and, where there is such a network, the maps within the lesion and the logits of its slices.
Numbers and network lie beside the weights' manifest; weights without them name no kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from hemseg.errors import HemsegError
from hemseg.fields_of_view import cut, fields_of_view
from hemseg.lesion_features import FEATURES, Surroundings, lesion_features, surroundings

KINDS = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
ANSWERS = (*KINDS, "any")  # of a slice
UNSURE = "unsure"
CODES = {kind: code for code, kind in enumerate(KINDS, start=1)}  # in a mask of kinds
UNSURE_CODE = len(KINDS) + 1
FORMAT = 1  # of a head's file; raised when an older hemseg could misread a newer one
MOST_SCALES = 4.0  # figures farther from their mean tell no more
FROM_MAPS = (*(f"map_{name}" for name in ANSWERS), *(f"slice_{name}" for name in ANSWERS))
INPUTS = (*FROM_MAPS, *FEATURES)  # of the regression; without a network, `FEATURES` alone
SLICES_AT_ONCE = 8

Network = Callable[[np.ndarray], np.ndarray]  # HU of fields of view (n, y, x) -> features (n, channel, y', x'), float32


@dataclass(frozen=True)
class View:
    """What the network sees of a slice, and the zones that its features are weighted by.

    Attributes:
        field: (y, x) voxels of the working grid.
        background: HU outside the intracranial mask.
        zones_mm: distances to the skull at which one zone ends and the next begins; ascending.
    """

    field: tuple[int, int]
    background: float
    zones_mm: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Head:
    """The numbers that make kinds of features.

    Attributes:
        field, background, zones_mm: see `View`.
        maps: (answer, zone, channel), weights of the maps; of no size where there is no network.
        bias: (answer,).
        mean, scale: (input,), of the regression's inputs: `INPUTS`, or `FEATURES` where there is no network.
        weight, offset: (kind, input) and (kind,), of the regression.
        unsure_below: a lesion whose most probable kind is less probable than this is called `UNSURE`.
    """

    field: np.ndarray
    background: np.ndarray
    zones_mm: np.ndarray
    maps: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    offset: np.ndarray
    unsure_below: np.ndarray

    @cached_property
    def view(self) -> View:
        """What the network sees."""
        rows, columns = (int(n) for n in self.field)
        return View((rows, columns), float(self.background), tuple(float(mm) for mm in self.zones_mm))

    @property
    def has_maps(self) -> bool:
        """Whether it needs the slice network."""
        return self.maps.size > 0

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the regression's inputs."""
        return INPUTS if self.has_maps else FEATURES

    def write(self, path: Path) -> None:
        """Write the numbers as ``.npz``."""
        arrays = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        np.savez_compressed(path, format=np.array(FORMAT), inputs=np.array(self.inputs), **arrays)  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: Path) -> Head:
        """Raises HemsegError: it cannot be read, is of a newer format, or its numbers do not fit each other."""
        try:
            with np.load(path, allow_pickle=False) as file:
                values = {name: file[name] for name in file.files}
        except Exception:  # zipfile, zlib and numpy raise many types
            raise HemsegError(f"{path}: cannot be read as the numbers that name kinds of hemorrhage.") from None
        if not np.array_equal(values.pop("format", None), FORMAT):  # type: ignore[arg-type]
            raise HemsegError(f"{path}: its format is not {FORMAT}, the one that this hemseg reads; update hemseg.")
        inputs = tuple(values.pop("inputs", np.array(())).tolist())
        if inputs not in (INPUTS, FEATURES) or set(values) != {f.name for f in fields(cls)}:
            raise HemsegError(f"{path}: was made for other figures of lesions; take the weights' own file.")
        head = cls(**values)
        zones, channels = len(head.zones_mm) + 1, head.maps.shape[-1] if head.maps.ndim else 0
        shapes = {
            "field": (2,),
            "background": (),
            "maps": (len(ANSWERS), zones, channels),
            "bias": (len(ANSWERS),),
            "mean": (len(inputs),),
            "scale": (len(inputs),),
            "weight": (len(KINDS), len(inputs)),
            "offset": (len(KINDS),),
            "unsure_below": (),
        }
        fits = head.inputs == inputs
        fits &= all(getattr(head, name).shape == shape for name, shape in shapes.items())
        if not fits or not all(np.isfinite(value).all() for value in values.values()):
            raise HemsegError(f"{path}: its numbers do not fit each other; it is damaged.")
        return head

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Probability of each of `KINDS`, (n, kind), of lesions' inputs, (n, input)."""
        scaled = ((inputs - self.mean) / self.scale).clip(-MOST_SCALES, MOST_SCALES)
        logits = scaled @ self.weight.T + self.offset
        each = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(each / each.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Kind:
    """What a lesion was called: one of `KINDS`, or `UNSURE`, and the probability of the most probable kind."""

    name: str
    probability: float


@dataclass(frozen=True, eq=False)
class KindModel:
    """Head and network, ready to name lesions; no network where the head has no maps."""

    head: Head
    network: Network | None = None

    def kinds(
        self, lesions: list[np.ndarray], hu: np.ndarray, inside: np.ndarray, mm: tuple[float, float, float]
    ) -> list[Kind]:
        """Name lesions.

        Args:
            lesions: each (n, 3), its voxels (z, y, x) on the working grid; of one voxel and more.
            hu: float32 (z, y, x) on the working grid.
            inside: bool (z, y, x), the intracranial mask.
            mm: spacing (z, y, x).
        """
        if not lesions:
            return []
        masks = []
        for voxels in lesions:
            mask = np.zeros(hu.shape, bool)
            mask[tuple(voxels.T)] = True
            masks.append(mask)
        probabilities = self.head.probabilities(lesion_inputs(masks, hu, inside, mm, self.head, self.network))
        return [self._kind(row) for row in probabilities]

    def _kind(self, probabilities: np.ndarray) -> Kind:
        best = int(probabilities.argmax())
        certain = probabilities[best] >= float(self.head.unsure_below)
        return Kind(KINDS[best] if certain else UNSURE, float(probabilities[best]))


def lesion_inputs(
    lesions: list[np.ndarray],
    hu: np.ndarray,
    inside: np.ndarray,
    mm: tuple[float, float, float],
    head: Head,
    network: Network | None,
) -> np.ndarray:
    """The head's inputs of lesions, float64 (lesion, input).

    Args:
        lesions: each bool (z, y, x); of one voxel and more.
        hu, inside, mm: as for `KindModel.kinds`.
    """
    around = surroundings(hu, inside, mm)
    features = np.stack([lesion_features(lesion, around) for lesion in lesions])
    if network is None or not head.has_maps:
        return features
    touched = np.flatnonzero(np.logical_or.reduce([lesion.any(axis=(1, 2)) for lesion in lesions]))
    maps, corner = kind_maps(touched, hu, around, network, head)
    rows = []
    for lesion in lesions:
        seen = np.stack([shrunk(cut(lesion[z], corner, head.view.field, 0.0), maps.shape[2:]) for z in touched])
        rows.append(within(maps, seen))
    return np.concatenate([np.stack(rows), features], axis=1)


def within(maps: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Means of maps in a lesion, then of its slices' logits weighted by its area: float64 (2 * answer,).

    Args:
        maps: (slice, answer, y', x').
        seen: (slice, y', x'), the lesion's share of each cell; where no cell holds any, all count alike.
    """
    weight = seen if seen.sum() > 0 else np.ones_like(seen)
    weight = weight / weight.sum()
    local = np.einsum("syx,sayx->a", weight, maps)
    whole = weight.sum(axis=(1, 2)) @ maps.mean(axis=(2, 3))
    return np.concatenate([local, whole]).astype(np.float64)


def kind_maps(
    slices: np.ndarray, hu: np.ndarray, around: Surroundings, network: Network, head: Head
) -> tuple[np.ndarray, tuple[int, int]]:
    """Maps of `ANSWERS`, float32 (slice, answer, y', x'), whose mean over (y', x') is the slice's logit.

    Args:
        slices: numbers of the slices of the working grid that are wanted.

    Returns:
        The maps, and the corner (y, x) of the field of view on the working grid, possibly negative.
    """
    windows, corner = fields_of_view(slices, hu, around.inside, head.view.field, head.view.background)
    parts = [windows[at : at + SLICES_AT_ONCE] for at in range(0, len(windows), SLICES_AT_ONCE)]
    features = np.concatenate([network(part) for part in parts])
    zones = zone_shares(slices, around, corner, head.view, features.shape[2:])
    maps = np.einsum("szyx,azc,scyx->sayx", zones, head.maps, features, optimize=True)
    return (maps + head.bias[:, None, None]).astype(np.float32), corner


def zone_shares(
    slices: np.ndarray, around: Surroundings, corner: tuple[int, int], view: View, cells: tuple[int, ...]
) -> np.ndarray:
    """How much of each cell of the maps lies in each zone of depth, float32 (slice, zone, y', x')."""
    result = []
    for z in slices:
        zone = np.where(around.inside[z], np.digitize(around.depth[z], view.zones_mm), -1)
        planes = [(zone == number).astype(np.float32) for number in range(len(view.zones_mm) + 1)]
        result.append(np.stack([shrunk(cut(plane, corner, view.field, 0.0), cells) for plane in planes]))
    return np.stack(result)


def shrunk(plane: np.ndarray, cells: tuple[int, ...]) -> np.ndarray:
    """Means of a plane (y, x) over the cells of a coarser grid, float32."""
    return np.asarray(cv2.resize(plane, (cells[1], cells[0]), interpolation=cv2.INTER_AREA), np.float32)
