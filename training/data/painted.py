"""Bleeds painted into real heads, and bright things that are none (beyond the paper; design: `docs/method.md`).

A bleed that we paint ourselves comes with its outline, and nobody labelled a voxel: the supervision stays slice
labels. Everything here is a function of a prepared scan and a generator of random numbers, so a sample of training
is the same in every run with its seed.

Blood is painted by its share of each voxel, averaged over `SUB` levels of the slice (the partial volume), and added as
contrast above the scan's own brain; the scan's grain stays. Voxels that are half blood or more are labelled 1; the
thinner rim stays what it was, and where a bleed is so thin that no voxel of a slice is half full, nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy import ndimage

from .brain import brain_level

KINDS = ("intraparenchymal", "subdural", "epidural", "sheet", "subarachnoid", "intraventricular")
DISTRACTORS = ("calcification", "metal", "air", "sinus", "falx", "rim")
CONTRAST_HU = (10.0, 48.0)
# With `dura`: normal dura lies 5-20 HU above the brain, a sinus up to 30; fainter blood of that shape looks the same.
LEAST_CONTRAST_HU = {"sheet": 20.0, "epidural": 20.0, "subdural": 15.0, "subarachnoid": 14.0}
FIRST_ODDS, ALL_ODDS = (0.45, 0.25, 0.15, 0.15), (0.24, 0.12, 0.08, 0.26, 0.2, 0.1)  # of `DISTRACTORS`
LEAST_MM, MOST_MM = 1.0, 25.0  # radius of an ellipsoid
SUB = 5  # levels within a slice
HALF, TRACE = 0.5, 0.1  # shares of blood in a voxel: labelled, and seen
CSF_HU = 14.0  # so far below the brain lies what is CSF
MOST_GRAIN_HU = 8.0  # beyond is an edge, not noise
BLUR_PX = 0.55  # of the scanner, in plane
BONE_HU = 70.0  # at the rim: bone in part
DEEP_MM = 14.0  # so far from the skull a ventricle lies
UNKNOWN = -1  # label of voxels of which nothing is known


@dataclass(frozen=True, eq=False)
class Place:
    """A head to paint into.

    Attributes:
        smooth: HU, smoothed in plane among what is inside (bone does not shine in), float32 (z, y, x).
        inside: bool (z, y, x), the intracranial space without the skull's blurred edge.
        depth: mm from each voxel to its slice's intracranial edge, float32 (z, y, x).
        brain: HU of its brain.
        mm: spacing (z, y, x).
    """

    smooth: np.ndarray
    inside: np.ndarray
    depth: np.ndarray
    brain: float
    mm: tuple[float, float, float]

    @cached_property
    def fluid(self) -> np.ndarray:
        """How much of each voxel is CSF, 0..1, float16 (z, y, x)."""
        share = np.clip((self.brain - 4 - self.smooth) / (CSF_HU - 4), 0, 1) * self.inside
        return share.astype(np.float16)

    @cached_property
    def ventricles(self) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of CSF far from the skull: numbered, int16 (z, y, x), and the numbers of the large ones."""
        labels, _ = ndimage.label((self.fluid > 0.5) & (self.depth > DEEP_MM))
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        return labels.astype(np.int16), np.flatnonzero((sizes >= 60) & (sizes >= 0.2 * sizes.max()))


def place_of(hu: np.ndarray, inside: np.ndarray, mm: tuple[float, float, float]) -> Place:
    """What painting needs to know of a prepared scan, (z, y, x)."""
    within = np.stack([_smooth(s, i, 1.2 / mm[1]) for s, i in zip(hu.astype(np.float32), inside, strict=True)])
    inside = inside & ~_rim_of_bone(within, inside)
    smooth = np.stack([_smooth(s, i, 1.2 / mm[1]) for s, i in zip(hu.astype(np.float32), inside, strict=True)])
    edged = np.pad(inside, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    depth = np.stack([cv2.distanceTransform(s, cv2.DIST_L2, 5)[1:-1, 1:-1] for s in edged]) * mm[1]
    middle = inside & (depth > 8)
    return Place(smooth, inside, depth.astype(np.float32), brain_level(smooth, middle if middle.any() else inside), mm)


def _smooth(hu: np.ndarray, inside: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian mean of a slice (y, x) over the pixels inside; the slice itself elsewhere."""
    weight = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma)
    mean = cv2.GaussianBlur(np.where(inside, hu, 0), (0, 0), sigma) / np.maximum(weight, 1e-3)
    return np.where(inside, mean, hu)


def _rim_of_bone(smooth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The skull's edge that the strip leaves within the mask: bright pixels at most 3 mm from its rim."""
    cross = ndimage.generate_binary_structure(2, 1)[None]
    return np.asarray(inside & (smooth > BONE_HU) & ~ndimage.binary_erosion(inside, cross, iterations=3))


Paint = Callable[[Place, np.random.Generator], np.ndarray | None]


def painted(
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
        dura: bleeds along dura and skull are drawn from `LEAST_CONTRAST_HU` upwards, and sheets thicker than dura.

    Returns:
        HU float32 and the label, both new arrays.
    """
    kind = kind or str(rng.choice(KINDS, p=(0.32, 0.2, 0.08, 0.1, 0.2, 0.1)))
    painter = _thick_sheet if dura and kind == "sheet" else _PAINTERS.get(kind)
    share = painter(place, rng) if painter else _ellipsoid_in(place, rng, radius_mm)
    if share is None:
        return hu, label
    share = _blurred(share) * place.inside
    if not (share > HALF).any():
        return hu, label
    least = LEAST_CONTRAST_HU.get(kind, CONTRAST_HU[0]) if dura else CONTRAST_HU[0]
    contrast = float(rng.uniform(least, CONTRAST_HU[1])) if contrast_hu is None else contrast_hu
    return _filled(hu, place, share, contrast, kind, rng), _labelled(label, share)


def distracted(
    hu: np.ndarray, place: Place, rng: np.random.Generator, kind: str = "", dura: bool = False
) -> np.ndarray:
    """A scan with something that is bright, or streaks, and is no blood: float32 (z, y, x). Labels stay as they are.

    Args:
        hu, place, rng: as for `painted`.
        kind: of `DISTRACTORS`; drawn when empty: with ``dura`` from all, else from the first four.
        dura: sinuses are more varied, and falx and bright rims are among what is drawn.
    """
    if not kind:
        kinds, odds = (DISTRACTORS, ALL_ODDS) if dura else (DISTRACTORS[:4], FIRST_ODDS)
        kind = str(rng.choice(kinds, p=odds))
    share = (_any_sinus if dura and kind == "sinus" else _PAINTERS[kind])(place, rng)
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
    if kind == "metal" and rng.random() < 0.7:
        result = _streaks(result, share, rng)
    return result


def streaked(hu: np.ndarray, rng: np.random.Generator, most_hu: float = 80.0) -> np.ndarray:
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


def noisy(hu: np.ndarray, rng: np.random.Generator, most_hu: float = 7.0) -> np.ndarray:
    """More grain, as a low dose or a sharp kernel leaves: float32 (z, y, x), a few pixels' correlation."""
    grain = rng.standard_normal(hu.shape, dtype=np.float32)
    sigma = float(rng.uniform(0.3, 0.9))
    grain = np.stack([cv2.GaussianBlur(s, (0, 0), sigma) for s in grain])
    return np.asarray(hu + grain / grain.std() * rng.uniform(2, most_hu), np.float32)


# --- shapes: share of blood in each voxel, float32 (z, y, x), or None where there is no room --------------------------


def _point(where: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A voxel drawn among those of a mask."""
    flat = np.flatnonzero(where)
    return np.array(np.unravel_index(rng.choice(flat), where.shape)) if len(flat) else None


def _ellipsoid_in(place: Place, rng: np.random.Generator, radius_mm: float | None = None) -> np.ndarray | None:
    radius = float(np.exp(rng.uniform(np.log(LEAST_MM), np.log(MOST_MM)))) if radius_mm is None else radius_mm
    center = _point(place.inside & (place.depth > min(2 + 0.6 * radius, 18)), rng)
    if center is None:
        return None
    stretch = rng.uniform(0.7, 1.4, 3)
    return _ellipsoid(place, center, radius * stretch / np.prod(stretch) ** (1 / 3), rng)


def _ellipsoid(place: Place, center: np.ndarray, radii: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A rough ellipsoid, turned in plane. ``center``: voxel (z, y, x); ``radii``: mm."""
    mm, shape = place.mm, place.inside.shape
    reach = [int(np.ceil(1.5 * max(radii) / m)) + 1 for m in mm]
    box = tuple(slice(max(0, c - r), min(n, c + r + 1)) for c, r, n in zip(center, reach, shape, strict=True))
    levels = np.concatenate([z + (np.arange(SUB) + 0.5) / SUB - 0.5 for z in range(box[0].start, box[0].stop)])
    z, y, x = np.meshgrid(
        levels, np.arange(box[1].start, box[1].stop), np.arange(box[2].start, box[2].stop), indexing="ij"
    )
    off = [(a - c + rng.uniform(-0.5, 0.5)) * m for a, c, m in zip((z, y, x), center, mm, strict=True)]
    turn = rng.uniform(0, np.pi)
    across = off[1] * np.cos(turn) + off[2] * np.sin(turn), off[2] * np.cos(turn) - off[1] * np.sin(turn)
    r = np.sqrt((off[0] / radii[0]) ** 2 + (across[0] / radii[1]) ** 2 + (across[1] / radii[2]) ** 2)
    rough = rng.uniform(0, 0.3) * _lumps(r.shape, max(3.0, float(min(radii)) * 0.9), (mm[0] / SUB, mm[1], mm[2]), rng)
    full = (r < 1 + rough).reshape(-1, SUB, *r.shape[1:]).mean(axis=1, dtype=np.float32)
    share = np.zeros(shape, np.float32)
    share[box] = full
    return share


def _lumps(shape: tuple[int, ...], mm: float, spacing: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of about unit variance and length ``mm``, float32."""
    coarse = [max(2, int(np.ceil(n * s / mm)) + 1) for n, s in zip(shape, spacing, strict=True)]
    lattice = rng.standard_normal(coarse).astype(np.float32)
    index = [np.linspace(0, c - 1, n) for c, n in zip(coarse, shape, strict=True)]
    for axis, at in enumerate(index):
        low = np.minimum(at.astype(int), coarse[axis] - 2)
        part = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(lattice.ndim)])
        lattice = lattice.take(low, axis) * (1 - part) + lattice.take(low + 1, axis) * part
    return np.asarray(lattice * 1.6)


def _rim(
    place: Place, rng: np.random.Generator, thick: tuple[float, float], wide: tuple[float, float]
) -> np.ndarray | None:
    """Blood along the skull: as thick as drawn at its middle, thinner towards its ends. ``wide``: radians."""
    slices = np.flatnonzero(place.inside.any(axis=(1, 2)))
    if not len(slices):
        return None
    middle = int(rng.choice(slices))
    mm, shape = place.mm, place.inside.shape
    tall = float(rng.uniform(8, 55))
    depth_mm, angle0, half = float(np.exp(rng.uniform(*np.log(thick)))), rng.uniform(-np.pi, np.pi), rng.uniform(*wide)
    _, y, x = np.nonzero(place.inside[middle : middle + 1])
    cy, cx = y.mean(), x.mean()
    yy, xx = np.meshgrid(np.arange(shape[1]) - cy, np.arange(shape[2]) - cx, indexing="ij")
    away = np.abs((np.arctan2(yy, xx) - angle0 + np.pi) % (2 * np.pi) - np.pi) / half
    uneven = 1 + 0.25 * _lumps(shape[1:], 14.0, mm[1:], rng)
    share = np.zeros(shape, np.float32)
    for z in slices:
        up = abs(z - middle) * mm[0] / tall
        if up >= 1:
            continue
        profile = depth_mm * uneven * np.sqrt(np.maximum(1 - away**2 - up**2, 0))
        share[z] = np.clip((profile - place.depth[z]) / mm[1] + 0.5, 0, 1) * (profile > 0.3) * place.inside[z]
    return share


def _subdural(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    return _rim(place, rng, (1.8, 12.0), (0.35, 1.3))


def _epidural(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    return _rim(place, rng, (3.0, 20.0), (0.2, 0.5))


def _midline(place: Place, z: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Centre (y, x) of a slice's intracranial space and the direction of its long axis."""
    at = np.argwhere(place.inside[z])
    if len(at) < 500:
        return None
    center = at.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((at - center).T))
    return center, vectors[:, 1]


def _sheet(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """Blood along the falx, or along a tentorium's slope."""
    return _band(place, rng, (1.2, 6.0))


def _thick_sheet(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """The same, thicker than dura."""
    return _band(place, rng, (2.0, 6.0))


def _falx(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """The dura itself: thinner."""
    return _band(place, rng, (0.8, 2.2))


def _band(place: Place, rng: np.random.Generator, thick_mm: tuple[float, float]) -> np.ndarray | None:
    """A thin curved band that begins at the skull, near the midline or at a tentorium's slope."""
    slices = [z for z in np.flatnonzero(place.inside.any(axis=(1, 2))) if _midline(place, int(z))]
    if not slices:
        return None
    middle, mm, shape = int(rng.choice(slices)), place.mm, place.inside.shape
    tall, thick, long = rng.uniform(4, 45), float(np.exp(rng.uniform(*np.log(thick_mm)))), rng.uniform(12, 70)
    tentorial = rng.random() < 0.4
    side = rng.choice((-1, 1))
    slope = rng.uniform(4, 14) if tentorial else rng.uniform(-0.4, 0.4)  # mm a slice
    turn = side * rng.uniform(0.5, 1.1) if tentorial else 0.0
    end = rng.choice((-1, 1))
    bend = 2.5 * _lumps((1, shape[1]), 45.0, (mm[0], mm[1]), rng)[0]
    share = np.zeros(shape, np.float32)
    yy, xx = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    for z in slices:
        up = abs(z - middle) * mm[0] / tall
        if up >= 1:
            continue
        center, axis = _midline(place, int(z))  # type: ignore[misc]
        axis = axis * np.sign(axis[0]) * end
        cos, sin = np.cos(turn), np.sin(turn)
        axis = np.array([axis[0] * cos - axis[1] * sin, axis[0] * sin + axis[1] * cos])
        along = ((yy - center[0]) * axis[0] + (xx - center[1]) * axis[1]) * mm[1]
        across = (
            ((yy - center[0]) * axis[1] - (xx - center[1]) * axis[0]) * mm[1] + bend[:, None] + slope * (z - middle)
        )
        reach = along[place.inside[z]].max()
        away = (reach - along) / long
        half = thick / 2 * np.sqrt(np.maximum(1 - away**2 - up**2, 0))
        share[z] = np.clip((half - np.abs(across)) / mm[1] + 0.5, 0, 1) * (half > 0.2) * place.inside[z]
    return share


def _subarachnoid(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """Sulci and cisterns of a region filled."""
    deepest = rng.uniform(10, 45)
    center = _point((place.fluid > 0.5) & (place.depth > 0.5) & (place.depth < deepest), rng)
    if center is None:
        return None
    radius = rng.uniform(8, 45)
    reach = [int(1.4 * radius / m / f) + 1 for m, f in zip(place.mm, (1.5, 1, 1), strict=True)]
    spans = zip(center, reach, place.inside.shape, strict=True)
    box = tuple(slice(max(0, c - r), min(n, c + r + 1)) for c, r, n in spans)
    z, y, x = ((np.arange(s.start, s.stop) - c) * m for s, c, m in zip(box, center, place.mm, strict=True))
    r = np.sqrt((z * 1.5)[:, None, None] ** 2 + y[:, None] ** 2 + x**2) / radius
    r = r + 0.15 * _lumps(r.shape, 18.0, place.mm, rng)
    fluid = place.fluid[box].astype(np.float32)
    if rng.random() < 0.5:
        fluid = np.maximum(fluid, 0.8 * np.stack([cv2.dilate(s, np.ones((3, 3), np.uint8)) for s in fluid]))
    allowed = (place.depth[box] > 0.5) & (place.depth[box] < deepest)
    share = np.zeros(place.inside.shape, np.float32)
    share[box] = np.clip((1 - r) * 4, 0, 1) * np.clip(fluid * 1.4, 0, 1) * allowed
    return share


def _intraventricular(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """The dependent part of CSF-dark ventricles filled."""
    labels, large = place.ventricles
    if not len(large):
        return None
    which = labels == rng.choice(large) if rng.random() < 0.5 else np.isin(labels, large)
    rows = np.nonzero(which)[1]
    level = np.quantile(rows, rng.choice((0.0, 0.3, 0.6, 0.85, 0.95)))
    near = np.stack([cv2.dilate(s, np.ones((5, 5), np.uint8)) for s in which.astype(np.uint8)])
    below = np.clip(np.arange(place.inside.shape[1]) - level + 0.5, 0, 1)[None, :, None]
    return np.asarray(np.clip(place.fluid.astype(np.float32) * 1.3, 0, 1) * near * below, np.float32)


def _calcification(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    share = None
    for _ in range(int(rng.integers(1, 4))):
        center = _point(place.inside & (place.depth > 3), rng)
        if center is None:
            return None
        one = _ellipsoid(place, center, rng.uniform(0.7, 1.3, 3) * np.exp(rng.uniform(0, np.log(5))), rng)
        share = one if share is None else np.maximum(share, one)
    return share


def _metal(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """A clip, or a shunt's tube across a few slices."""
    center = _point(place.inside, rng)
    if center is None:
        return None
    tall = rng.uniform(2, 25) if rng.random() < 0.6 else rng.uniform(1, 3)
    return _ellipsoid(place, center, np.array([tall, rng.uniform(0.8, 2.5), rng.uniform(0.8, 2.5)]), rng)


def _air(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    center = _point(place.inside & (place.depth < 12), rng)
    return None if center is None else _ellipsoid(place, center, np.exp(rng.uniform(0, np.log(9), 3)), rng)


def _sinus(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """A dense sagittal or transverse sinus: a triangle at the skull, at the back end of the long axis or beside it."""
    slices = [z for z in np.flatnonzero(place.inside.any(axis=(1, 2))) if _midline(place, int(z))]
    if not slices:
        return None
    middle, tall, size = int(rng.choice(slices)), rng.uniform(10, 60), rng.uniform(3, 6)
    beside = rng.uniform(-0.8, 0.8) * (rng.random() < 0.5)
    share = np.zeros(place.inside.shape, np.float32)
    yy, xx = np.meshgrid(*(np.arange(n) for n in place.inside.shape[1:]), indexing="ij")
    for z in slices:
        if abs(z - middle) * place.mm[0] > tall:
            continue
        center, axis = _midline(place, int(z))  # type: ignore[misc]
        axis = axis * np.sign(axis[0])
        angle = np.arctan2(axis[0], axis[1]) + beside
        ahead = ((yy - center[0]) * np.sin(angle) + (xx - center[1]) * np.cos(angle)) * place.mm[1]
        aside = np.abs((yy - center[0]) * np.cos(angle) - (xx - center[1]) * np.sin(angle)) * place.mm[1]
        share[z] = np.clip(size - aside - place.depth[z] + 0.5, 0, 1) * (ahead > 0) * place.inside[z]
    return share


def _any_sinus(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """A dense venous sinus: a triangle at the back end of the long axis or beside it (sagittal, confluence), or a band
    along the skull at the back of one side (transverse, sigmoid)."""
    slices = [z for z in np.flatnonzero(place.inside.any(axis=(1, 2))) if _midline(place, int(z))]
    if not slices:
        return None
    band = rng.random() < 0.5
    middle, size = int(rng.choice(slices)), rng.uniform(3, 7)
    tall = rng.uniform(4, 12) if band else rng.uniform(10, 60)
    side, wide = rng.choice((-1, 1)), rng.uniform(0.2, 0.7)
    beside = side * rng.uniform(0.2, 1.3) if band else rng.uniform(-0.8, 0.8) * (rng.random() < 0.5)
    share = np.zeros(place.inside.shape, np.float32)
    yy, xx = np.meshgrid(*(np.arange(n) for n in place.inside.shape[1:]), indexing="ij")
    for z in slices:
        if abs(z - middle) * place.mm[0] > tall:
            continue
        center, axis = _midline(place, int(z))  # type: ignore[misc]
        axis = axis * np.sign(axis[0])
        angle = np.arctan2(axis[0], axis[1]) + beside
        y, x, inward = yy - center[0], xx - center[1], place.depth[z]
        if band:
            away = np.abs((np.arctan2(y, x) - angle + np.pi) % (2 * np.pi) - np.pi) / wide
            full = size * np.sqrt(np.maximum(1 - away**2, 0)) - inward
        else:
            aside = np.abs(y * np.cos(angle) - x * np.sin(angle)) * place.mm[1]
            full = np.where(y * np.sin(angle) + x * np.cos(angle) > 0, size - aside - inward, -1)
        share[z] = np.clip(full / place.mm[1] + 0.5, 0, 1) * place.inside[z]
    return share


def _bright_rim(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """The skull's blurred edge, thinner than any blood that can be seen there."""
    return _rim(place, rng, (0.5, 1.4), (0.3, 1.5))


_PAINTERS: dict[str, Paint] = {
    "subdural": _subdural,
    "epidural": _epidural,
    "sheet": _sheet,
    "subarachnoid": _subarachnoid,
    "intraventricular": _intraventricular,
    "calcification": _calcification,
    "metal": _metal,
    "air": _air,
    "sinus": _sinus,
    "falx": _falx,
    "rim": _bright_rim,
}


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
    hu: np.ndarray, place: Place, share: np.ndarray, contrast: float, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """Blood in its share of each voxel; around some bleeds in the brain, edema."""
    result = hu.astype(np.float32).copy()
    box = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(_box(share > 0), (0, 12, 12), strict=True))
    part, own = result[box], share[box]
    if kind == "intraparenchymal" and rng.random() < 0.4 and own.sum() > 60:
        reach = float(rng.uniform(2, 4))
        ring = np.stack([cv2.GaussianBlur(s, (0, 0), reach) for s in own])
        part -= np.clip(ring * 2.5, 0, 1) * (own < HALF) * np.float32(rng.uniform(4, 10)) * place.inside[box]
    uneven = 1 + rng.uniform(0, 0.2) * _lumps(own.shape, 8.0, place.mm, rng)
    grain = (hu[box] - place.smooth[box]).clip(-MOST_GRAIN_HU, MOST_GRAIN_HU)
    blood = np.float32(place.brain) + np.float32(contrast) * uneven.clip(0.7, 1.3) + grain
    result[box] = part + own * (blood - part)
    return result


def _box(where: np.ndarray) -> tuple[slice, slice, slice]:
    (found,) = ndimage.find_objects(where.astype(np.uint8))
    return found  # type: ignore[no-any-return]


def _labelled(label: np.ndarray, share: np.ndarray) -> np.ndarray:
    result = label.copy()
    without_core = np.flatnonzero(share.max(axis=(1, 2)) < HALF)
    thin = np.zeros(share.shape, bool)
    thin[without_core] = (share[without_core] >= TRACE) & (label[without_core] == 0)
    result[thin] = UNKNOWN
    result[share >= HALF] = 1
    return result
