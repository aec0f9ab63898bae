"""Which kind of hemorrhage a lesion is: what the slice classifier saw in it, and what shape it has and where it lies.

The slice classifier (`hemseg.second_opinion`) gives maps of features; weights per channel, learned from slice labels by
kind, make a map of each kind of them, whose mean over the slice is the slice's logit: a class activation map (Zhou et
al. 2016), exact by construction. A multinomial logistic regression reads the features of `hemseg.lesion_features` and,
where the weights have a classifier, the maps within the lesion and the logits of its slices. The numbers lie beside the
weights' manifest; weights without them name no kinds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import cv2
import numpy as np

from hemseg.errors import HemsegError
from hemseg.fields_of_view import cut
from hemseg.lesion_features import FEATURES, lesion_features, surroundings
from hemseg.second_opinion import ClassifierOutput

KINDS = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
ANSWERS = (*KINDS, "any")  # of a slice
UNSURE = "unsure"
CODES = {kind: code for code, kind in enumerate(KINDS, start=1)}  # in a mask of kinds
UNSURE_CODE = len(KINDS) + 1
FORMAT = 2  # of a head's file; raised when an older hemseg could misread a newer one
MAX_DEVIATIONS = 4.0  # standard deviations from the mean at which inputs are clipped
FROM_MAPS = (*(f"map_{name}" for name in KINDS), *(f"slice_{name}" for name in KINDS))
INPUTS = (*FROM_MAPS, *FEATURES)  # of the regression; without a classifier, `FEATURES` alone


@dataclass(frozen=True, eq=False)
class KindHead:
    """The numbers by which a lesion's kind is classified.

    Attributes:
        classifier: sha256 of the slice classifier whose features the maps read; '' for none.
        maps: (kind, channel), weights of the maps; of no size where there is no classifier.
        bias: (kind,), of the maps.
        mean, scale: (input,), of the regression's inputs: `INPUTS`, or `FEATURES` where there is no classifier.
        weight, offset: (kind, input) and (kind,), of the regression.
        unsure_below: a lesion whose most probable kind is less probable than this is called `UNSURE`.
        right: of how many lesions of unseen scans the kind was right, and of how many in all; `UNSURE` is wrong, and 0
            of 0 was not measured.
    """

    classifier: np.ndarray
    maps: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    offset: np.ndarray
    unsure_below: np.ndarray
    right: np.ndarray

    @property
    def has_maps(self) -> bool:
        """Whether it needs the slice classifier."""
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
    def read(cls, path: Path) -> KindHead:
        """Raises HemsegError: it cannot be read, is of another format, or its numbers do not fit each other."""
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
        shapes = {
            "classifier": (),
            "maps": (len(KINDS), head.maps.shape[-1] if head.maps.ndim else 0),
            "bias": (len(KINDS),),
            "mean": (len(inputs),),
            "scale": (len(inputs),),
            "weight": (len(KINDS), len(inputs)),
            "offset": (len(KINDS),),
            "unsure_below": (),
            "right": (2,),
        }
        fits = head.inputs == inputs and bool(str(head.classifier)) == head.has_maps
        fits &= all(getattr(head, name).shape == shape for name, shape in shapes.items())
        numbers = (value for name, value in values.items() if name != "classifier")
        if not fits or not all(value.dtype.kind in "fi" and np.isfinite(value).all() for value in numbers):
            raise HemsegError(f"{path}: its numbers do not fit each other; it is damaged.")
        return head

    def kind_maps(self, features: np.ndarray) -> np.ndarray:
        """Maps of `KINDS`, float32 (slice, kind, y', x'), of the classifier's features (slice, channel, y', x').

        The mean of a map over (y', x') is the slice's logit.
        """
        maps = np.einsum("kc,scyx->skyx", self.maps, features, optimize=True) + self.bias[:, None, None]
        return np.asarray(maps, np.float32)

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Probability of each of `KINDS`, (n, kind), of lesions' inputs, (n, input)."""
        scaled = ((inputs - self.mean) / self.scale).clip(-MAX_DEVIATIONS, MAX_DEVIATIONS)
        logits = scaled @ self.weight.T + self.offset
        each = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(each / each.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Kind:
    """What a lesion was called: one of `KINDS`, or `UNSURE`, and the probability of the most probable kind."""

    name: str
    probability: float


def classify_lesions(
    lesions: list[np.ndarray],
    hu: np.ndarray,
    inside: np.ndarray,
    mm: tuple[float, float, float],
    head: KindHead,
    output: ClassifierOutput | None = None,
) -> list[Kind]:
    """Name lesions by the weights' head; the other arguments are those of `lesion_inputs`."""
    if not lesions:
        return []
    probabilities = head.probabilities(lesion_inputs(lesions, hu, inside, mm, output if head.has_maps else None))
    return [_kind(row, float(head.unsure_below)) for row in probabilities]


def _kind(probabilities: np.ndarray, unsure_below: float) -> Kind:
    best = int(probabilities.argmax())
    highest = float(probabilities[best])
    return Kind(KINDS[best] if highest >= unsure_below else UNSURE, highest)


def lesion_inputs(
    lesions: list[np.ndarray],
    hu: np.ndarray,
    inside: np.ndarray,
    mm: tuple[float, float, float],
    output: ClassifierOutput | None = None,
) -> np.ndarray:
    """A head's inputs of lesions, float64 (lesion, input).

    Args:
        lesions: each bool (z, y, x); of one voxel and more.
        hu: float32 (z, y, x) on the working grid, at the brain's level; the head upright, as everywhere here.
        inside: bool (z, y, x), the intracranial mask.
        mm: spacing (z, y, x).
        output: the slice classifier's, for all slices of the lesions; None for a head without maps.
    """
    around = surroundings(hu, inside, mm)
    features = np.stack([lesion_features(lesion, around) for lesion in lesions])
    if output is None:
        return features
    return np.concatenate([np.stack([lesion_map_inputs(lesion, output) for lesion in lesions]), features], axis=1)


def lesion_map_inputs(lesion: np.ndarray, output: ClassifierOutput) -> np.ndarray:
    """Means of the maps in a lesion, bool (z, y, x), then of its slices' logits weighted by its area: `FROM_MAPS`."""
    slices = np.flatnonzero(lesion.any(axis=(1, 2)))
    maps = np.stack([output.kind_maps[z] for z in slices.tolist()])
    shown = cut(lesion[slices].astype(np.float32), output.corner, output.field, 0.0)
    seen = np.stack([downsampled(plane, maps.shape[2:]) for plane in shown])
    return weighted_map_means(maps, seen)


def weighted_map_means(maps: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Means of maps in a lesion, then of its slices' logits weighted by its area: float64 (2 * kind,).

    Args:
        maps: (slice, kind, y', x').
        seen: (slice, y', x'), the lesion's share of each cell; where no cell holds any, all count alike.
    """
    weight = seen if seen.sum() > 0 else np.ones_like(seen)
    weight = weight / weight.sum()
    local = np.einsum("syx,skyx->k", weight, maps)
    whole = weight.sum(axis=(1, 2)) @ maps.mean(axis=(2, 3))
    return np.concatenate([local, whole]).astype(np.float64)


def downsampled(plane: np.ndarray, cells: tuple[int, ...]) -> np.ndarray:
    """Means of a plane (y, x) over the cells of a coarser grid, float32."""
    return np.asarray(cv2.resize(plane, (cells[1], cells[0]), interpolation=cv2.INTER_AREA), np.float32)
