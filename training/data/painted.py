"""Bleeds painted into real heads, and bright things that are none (beyond the paper; design: `docs/method.md`).

A bleed that we paint ourselves comes with its outline, and nobody labelled a voxel: the supervision stays slice
labels. Everything here is a function of a prepared scan and a generator of random numbers, so a sample of training
is the same in every run with its seed.

Blood is painted by its share of each voxel (`painted_shapes`), averaged over several levels of the slice (the partial
volume), and added as contrast above the scan's own brain; the scan's grain stays, and along the skull what bone shines
into a voxel: blood takes the place of brain and CSF, never of bone. Voxels that are half blood or more are labelled 1;
the thinner rim stays what it was. Where a bleed is so thin that no voxel of a slice is half full, and in the skull's
bright edge, where nobody sees blood, nothing is known.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage

from .painted_place import Place
from .painted_shapes import PAINTERS, any_sinus, ellipsoid_in, lumps, thick_sheet

KINDS = ("intraparenchymal", "subdural", "epidural", "sheet", "subarachnoid", "intraventricular")
ODDS = (0.32, 0.2, 0.08, 0.1, 0.2, 0.1)  # of `KINDS`
DISTRACTORS = ("calcification", "metal", "air", "sinus", "falx", "rim")
CONTRAST_HU = (10.0, 48.0)
# With `dura`: normal dura lies 5-20 HU above the brain, a sinus up to 30; fainter blood of that shape looks the same.
MIN_CONTRAST_HU = {"sheet": 20.0, "epidural": 20.0, "subdural": 15.0, "subarachnoid": 14.0}
FIRST_ODDS, ALL_ODDS = (0.45, 0.25, 0.15, 0.15), (0.24, 0.12, 0.08, 0.26, 0.2, 0.1)  # of `DISTRACTORS`
HALF, TRACE = 0.5, 0.1  # shares of blood in a voxel: labelled, and seen
MAX_GRAIN_HU = 8.0  # beyond is an edge, not noise
EDGE_MM = 5.0  # from the skull: there bone shines into voxels, the more so where it slopes
HIDDEN_HU = 30.0  # above the brain: such an edge hides blood
EDGE_HU = 15.0  # what `denoised` takes for an edge
BLUR_PX = 0.55  # of the scanner, in plane
UNKNOWN = -1  # label of voxels of which nothing is known


def add_bleed(
    hu: np.ndarray,
    label: np.ndarray,
    place: Place,
    rng: np.random.Generator,
    kind: str = "",
    contrast_hu: float | None = None,
    radius_mm: float | None = None,
    dura: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """A scan with one more bleed; the scan as it is where there is no room for one.

    Args:
        hu, label: (z, y, x) on the working grid; ``label``: 1, 0, or -1 where nothing is known.
        place: the same scan's, before anything was painted (`place_of`).
        rng: of all that is drawn.
        kind: of `KINDS`; drawn when empty.
        contrast_hu: above the brain; drawn from `CONTRAST_HU` when None.
        radius_mm: of an intraparenchymal bleed; drawn when None.
        dura: bleeds along dura and skull are drawn from `MIN_CONTRAST_HU` upwards, and sheets thicker than dura.

    Returns:
        HU float32 and the label, both new arrays.
    """
    kind = kind or str(rng.choice(KINDS, p=ODDS))
    painter = thick_sheet if dura and kind == "sheet" else PAINTERS.get(kind)
    share = painter(place, rng) if painter else ellipsoid_in(place, rng, radius_mm)
    if share is None:
        return hu, label
    share = _blurred(share) * place.inside
    bare = _bare(hu, place.smooth)
    hidden = (place.depth <= EDGE_MM) & (bare > place.brain + HIDDEN_HU)  # bone shines into it: nobody sees blood
    if not ((share > HALF) & ~hidden).any():
        return hu, label
    least = MIN_CONTRAST_HU.get(kind, CONTRAST_HU[0]) if dura else CONTRAST_HU[0]
    contrast = float(rng.uniform(least, CONTRAST_HU[1])) if contrast_hu is None else contrast_hu
    return _filled(hu, bare, place, share, contrast, kind, rng), _labelled(label, share, hidden)


def add_distractor(
    hu: np.ndarray, place: Place, rng: np.random.Generator, kind: str = "", dura: bool = False
) -> np.ndarray:
    """A scan with something that is bright, or streaks, and is no blood: float32 (z, y, x). Labels stay as they are.

    Args:
        hu, place, rng: as for `add_bleed`.
        kind: of `DISTRACTORS`; drawn when empty: with ``dura`` from all, else from the first four.
        dura: sinuses are more varied, and falx and bright rims are among what is drawn.
    """
    if not kind:
        kinds, odds = (DISTRACTORS, ALL_ODDS) if dura else (DISTRACTORS[:4], FIRST_ODDS)
        kind = str(rng.choice(kinds, p=odds))
    share = (any_sinus if dura and kind == "sinus" else PAINTERS[kind])(place, rng)
    if share is None:
        return hu
    level = {
        "calcification": rng.uniform(90, 400),
        "metal": rng.uniform(400, 3000),
        "air": -900.0,
        "sinus": place.brain + rng.uniform(*((12, 36) if dura else (15, 32))),
    }.get(kind)
    if level is None:
        level = place.brain + rng.uniform(*((5, 22) if kind == "falx" else (10, 60)))
    share = _blurred(share)
    result = (hu + share * (np.float32(level) - hu)).astype(np.float32)
    if kind != "air":
        result = np.maximum(result, hu)  # beside bone, too
    if kind == "metal" and rng.random() < 0.7:
        result = _streaks(result, share, rng)
    return result


def add_streaks(hu: np.ndarray, rng: np.random.Generator, most_hu: float = 80.0) -> np.ndarray:
    """Beams of noise through a few slices, as motion, dental metal and dense bone leave: float32 (z, y, x)."""
    result = hu.astype(np.float32).copy()
    count = int(rng.integers(1, min(4, len(hu)) + 1))
    first = int(rng.integers(0, len(hu) - count + 1))
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in hu.shape[1:]), indexing="ij")
    for _ in range(int(rng.integers(1, 6))):
        angle, width = rng.uniform(0, np.pi), rng.uniform(1.0, 6.0)
        away = (x - rng.uniform(0.2, 0.8) * hu.shape[2]) * np.sin(angle) - (
            y - rng.uniform(0.2, 0.8) * hu.shape[1]
        ) * np.cos(angle)
        result[first : first + count] += np.exp(-((away / width) ** 2)) * rng.uniform(-1, 1) * most_hu
    return result


def add_noise(hu: np.ndarray, rng: np.random.Generator, most_hu: float = 7.0) -> np.ndarray:
    """More grain, as a low dose or a sharp kernel leaves: float32 (z, y, x), a few pixels' correlation."""
    grain = rng.standard_normal(hu.shape, dtype=np.float32)
    sigma = float(rng.uniform(0.3, 0.9))
    grain = np.stack([cv2.GaussianBlur(s, (0, 0), sigma) for s in grain])
    return np.asarray(hu + grain / grain.std() * rng.uniform(2, most_hu), np.float32)


def denoised(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Less grain, down to none, as iterative and learned reconstruction leave: float32 (z, y, x); edges stay."""
    hu = hu.astype(np.float32)
    bare = np.stack([cv2.bilateralFilter(s, 5, EDGE_HU, 1.5) for s in hu])
    return np.asarray(hu + rng.uniform(0, 1) * (bare - hu), np.float32)


def _streaks(hu: np.ndarray, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dark and bright rays around metal, in its slices."""
    for z in np.flatnonzero((share > HALF).any(axis=(1, 2))):
        cy, cx = np.argwhere(share[z] > HALF).mean(axis=0)
        y, x = np.meshgrid(np.arange(hu.shape[1]) - cy, np.arange(hu.shape[2]) - cx, indexing="ij")
        angle, r = np.arctan2(y, x), np.hypot(y, x) + 1
        rays = np.interp(angle, np.linspace(-np.pi, np.pi, 61), rng.standard_normal(61))
        hu[z] += rays * rng.uniform(10, 70) * np.exp(-r / rng.uniform(6, 25)) * (share[z] < HALF)
    return hu


# --- from shares to HU and labels -------------------------------------------------------------------------------------


def _blurred(share: np.ndarray) -> np.ndarray:
    """The scanner's blur in plane; only slices that hold something."""
    result = np.zeros_like(share)
    for z in np.flatnonzero(share.any(axis=(1, 2))):
        result[z] = cv2.GaussianBlur(share[z], (0, 0), BLUR_PX)
    return result


def _filled(
    hu: np.ndarray,
    bare: np.ndarray,
    place: Place,
    share: np.ndarray,
    contrast: float,
    kind: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Blood in its share of each voxel; around some bleeds in the brain, edema. ``bare``: the HU without grain."""
    result = hu.astype(np.float32).copy()
    box = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(_box(share > 0), (0, 12, 12), strict=True))
    part, own = result[box], share[box]
    if kind == "intraparenchymal" and rng.random() < 0.4 and own.sum() > 60:
        reach = float(rng.uniform(2, 4))
        ring = np.stack([cv2.GaussianBlur(s, (0, 0), reach) for s in own])
        part -= np.clip(ring * 2.5, 0, 1) * (own < HALF) * np.float32(rng.uniform(4, 10)) * place.inside[box]
    uneven = 1 + rng.uniform(0, 0.2) * lumps(own.shape, 8.0, place.mm, rng)
    replaced = np.where(place.depth[box] <= EDGE_MM, bare[box].clip(max=place.brain), bare[box])
    blood = np.float32(place.brain) + np.float32(contrast) * uneven.clip(0.7, 1.3)
    result[box] = part + own * (blood - replaced)
    return result


def _bare(hu: np.ndarray, smooth: np.ndarray) -> np.ndarray:
    """HU without grain; edges stay."""
    return np.asarray(hu - (hu - smooth).clip(-MAX_GRAIN_HU, MAX_GRAIN_HU))


def _box(where: np.ndarray) -> tuple[slice, slice, slice]:
    (found,) = ndimage.find_objects(where.astype(np.uint8))
    return found  # type: ignore[no-any-return]


def _labelled(label: np.ndarray, share: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    result = label.copy()
    unseen = hidden & (share >= TRACE)
    share = np.where(hidden, 0, share)
    without_core = np.flatnonzero(share.max(axis=(1, 2)) < HALF)
    thin = np.zeros(share.shape, bool)
    thin[without_core] = (share[without_core] >= TRACE) & (label[without_core] == 0)
    result[thin | (unseen & (label == 0))] = UNKNOWN
    result[share >= HALF] = 1
    return result
