"""Lesions to learn kinds from: those of pseudo-labels, whose slices say what they may be, and painted ones.

Nobody labelled a lesion. One of a slice whose label names a single kind is of that kind; one of a slice with several
is one of them, and the regression learns no more than that. The kind of a painted bleed is known, and its mask is at
times made a pixel smaller or larger, as a network's may be.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from hemseg.components import numbered_components
from hemseg.kinds import KINDS

from ..data.datasets import Prepared
from ..data.painted import add_bleed
from ..data.painted_place import place_of
from ..data.slice_kinds import allowed_kinds

MIN_ML = 0.05
SMALLER, LARGER = 0.3, 0.6  # of painted masks: up to here a pixel smaller, up to here larger, the others as they are
SINGLE = 0.4  # of the painted bleeds of a scan, seen in one slice
MAX_COMPONENTS = 3  # of a painted bleed


@dataclass(frozen=True, eq=False)
class LesionSample:
    """One lesion.

    Attributes:
        case: name of the scan; ``source`` of its data set, or ``painted``.
        allowed: bool (kind,), what it may be.
        inputs: (input,) of `hemseg.kinds.INPUTS`.
        largest: it is the largest of its scan, or of its painted bleed.
    """

    case: str
    source: str
    allowed: np.ndarray
    inputs: np.ndarray
    largest: bool


Inputs = Callable[[list[np.ndarray], np.ndarray, np.ndarray], np.ndarray]
"""Lesions, each bool (z, y, x), HU and intracranial mask (z, y, x) -> (lesion, input)."""


def lesions_of(mask: np.ndarray, mm: tuple[float, float, float], least_ml: float = MIN_ML) -> list[np.ndarray]:
    """Connected components of a mask (z, y, x) from ``least_ml`` on, largest first, each bool (z, y, x)."""
    numbers, sizes = numbered_components(mask)
    ml = sizes * np.prod(mm) / 1000
    return [numbers == number for number in range(1, np.count_nonzero(ml >= least_ml) + 1)]


def labelled_lesions(
    cases: Iterable[tuple[Prepared, np.ndarray]],
    answers: dict[str, np.ndarray],
    source: str,
    mm: tuple[float, float, float],
    inputs: Inputs,
) -> Iterator[LesionSample]:
    """Lesions of scans with their masks (pseudo-labels) whose slice labels name kinds.

    Args:
        answers: by case, int8 (slice, answer) on the working grid.
    """
    for case, mask in cases:
        lesions = lesions_of(mask, mm)
        allowed = [allowed_kinds(answers[case.name], lesion.sum(axis=(1, 2))) for lesion in lesions]
        chosen = [number for number, kinds in enumerate(allowed) if kinds.any()]
        if not chosen:
            continue
        rows = inputs([lesions[number] for number in chosen], case.hu, case.intracranial)
        for number, row in zip(chosen, rows, strict=True):
            yield LesionSample(case.name, source, allowed[number], row, number == 0)


def painted_lesions(
    cases: Iterable[Prepared],
    kinds: dict[str, str],
    copies: int,
    mm: tuple[float, float, float],
    inputs: Inputs,
    seed: int,
) -> Iterator[LesionSample]:
    """Bleeds painted into scans, one per copy; kinds as they are drawn.

    Args:
        kinds: what `add_bleed` calls a bleed, and the kind that it is.
        copies: of scans of several slices; single slices get one.
    """
    names = list(kinds)
    for case in cases:
        if not case.intracranial.any():
            continue
        place = place_of(case.hu, case.intracranial, mm)
        for copy in range(copies if len(case.hu) > 1 else 1):
            rng = np.random.default_rng([seed, 29, zlib.crc32(case.name.encode()), copy])
            name = str(rng.choice(names))
            hu, label = add_bleed(case.hu, np.zeros(case.hu.shape, np.int8), place, rng, name)
            mask, part = label == 1, slice(None)
            if not mask.any():
                continue
            if rng.random() < SINGLE:
                z = int(rng.choice(np.flatnonzero(mask.any(axis=(1, 2)))))
                part = slice(z, z + 1)
            inside = case.intracranial[part]
            lesions = lesions_of(vary_outline(mask[part], inside, rng), mm)[:MAX_COMPONENTS]
            if not lesions:
                continue
            own = np.array([kind == kinds[name] for kind in KINDS])
            rows = inputs(lesions, hu[part], inside)
            for i, row in enumerate(rows):
                yield LesionSample(case.name, "painted", own, row, i == 0)


def vary_outline(mask: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask (z, y, x) as it is, or a pixel smaller or larger in plane; it never loses more than two thirds."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    drawn = rng.random()
    if drawn < SMALLER:
        smaller = np.stack([cv2.erode(s, cross) for s in mask.astype(np.uint8)]) > 0
        return smaller if smaller.sum() > mask.sum() / 3 else mask
    if drawn < LARGER:
        return np.asarray((np.stack([cv2.dilate(s, cross) for s in mask.astype(np.uint8)]) > 0) & inside)
    return mask
