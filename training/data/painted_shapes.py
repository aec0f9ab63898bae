"""Shapes of what is painted into heads (`painted.py`): the share of it in each voxel.

Each is a function of the place and of random numbers: float32 (z, y, x), 0..1, or None where there is no room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from .painted_place import Place

MIN_MM, MAX_MM = 1.0, 25.0  # radius of an ellipsoid
SUB = 5  # levels within a slice

Paint = Callable[[Place, np.random.Generator], np.ndarray | None]


def _point(where: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A voxel drawn among those of a mask."""
    flat = np.flatnonzero(where)
    return np.array(np.unravel_index(rng.choice(flat), where.shape)) if len(flat) else None


def ellipsoid_in(place: Place, rng: np.random.Generator, radius_mm: float | None = None) -> np.ndarray | None:
    """A bleed within the brain: a rough ellipsoid, its radius log-uniform when None."""
    radius = float(np.exp(rng.uniform(np.log(MIN_MM), np.log(MAX_MM)))) if radius_mm is None else radius_mm
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
    rough = rng.uniform(0, 0.3) * lumps(r.shape, max(3.0, float(min(radii)) * 0.9), (mm[0] / SUB, mm[1], mm[2]), rng)
    full = (r < 1 + rough).reshape(-1, SUB, *r.shape[1:]).mean(axis=1, dtype=np.float32)
    share = np.zeros(shape, np.float32)
    share[box] = full
    return share


def lumps(shape: tuple[int, ...], mm: float, spacing: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
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
    uneven = 1 + 0.25 * lumps(shape[1:], 14.0, mm[1:], rng)
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


def thick_sheet(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """The same, thicker than dura."""
    return _band(place, rng, (2.0, 6.0))


def _falx(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """The dura itself: thinner."""
    return _band(place, rng, (0.8, 2.2))


def _band(place: Place, rng: np.random.Generator, thick_mm: tuple[float, float]) -> np.ndarray | None:
    """A thin curved band that begins at the skull, near the midline or at a tentorium's slope."""
    if not (slices := _slices(place)):
        return None
    middle, mm, shape = int(rng.choice(slices)), place.mm, place.inside.shape
    tall, thick, long = rng.uniform(4, 45), float(np.exp(rng.uniform(*np.log(thick_mm)))), rng.uniform(12, 70)
    tentorial = rng.random() < 0.4
    side = rng.choice((-1, 1))
    slope = rng.uniform(4, 14) if tentorial else rng.uniform(-0.4, 0.4)  # mm a slice
    turn = side * rng.uniform(0.5, 1.1) if tentorial else 0.0
    end = rng.choice((-1, 1))
    bend = 2.5 * lumps((1, shape[1]), 45.0, (mm[0], mm[1]), rng)[0]
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
    r = r + 0.15 * lumps(r.shape, 18.0, place.mm, rng)
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


def _slices(place: Place) -> list[int]:
    """Slices with so much brain that they have a midline."""
    return [int(z) for z in np.flatnonzero(place.inside.any(axis=(1, 2))) if _midline(place, int(z))]


def _towards_back(
    place: Place, slices: list[int], middle: int, tall: float, beside: float
) -> Iterator[tuple[int, np.ndarray, np.ndarray, float]]:
    """Slices up to ``tall`` mm from the middle one: their number, y and x from the centre of the intracranial space, in
    voxels, and the angle of the back end of its long axis, turned by ``beside``."""
    yy, xx = np.meshgrid(*(np.arange(n) for n in place.inside.shape[1:]), indexing="ij")
    for z in slices:
        if abs(z - middle) * place.mm[0] <= tall:
            center, axis = _midline(place, z)  # type: ignore[misc]
            axis = axis * np.sign(axis[0])
            yield z, yy - center[0], xx - center[1], np.arctan2(axis[0], axis[1]) + beside


def _sinus(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """A dense sagittal or transverse sinus: a triangle at the skull, at the back end of the long axis or beside it."""
    if not (slices := _slices(place)):
        return None
    middle, tall, size = int(rng.choice(slices)), rng.uniform(10, 60), rng.uniform(3, 6)
    beside = rng.uniform(-0.8, 0.8) * (rng.random() < 0.5)
    share = np.zeros(place.inside.shape, np.float32)
    for z, y, x, angle in _towards_back(place, slices, middle, tall, beside):
        ahead = (y * np.sin(angle) + x * np.cos(angle)) * place.mm[1]
        aside = np.abs(y * np.cos(angle) - x * np.sin(angle)) * place.mm[1]
        share[z] = np.clip(size - aside - place.depth[z] + 0.5, 0, 1) * (ahead > 0) * place.inside[z]
    return share


def any_sinus(place: Place, rng: np.random.Generator) -> np.ndarray | None:
    """A dense venous sinus: a triangle at the back end of the long axis or beside it (sagittal, confluence), or a band
    along the skull at the back of one side (transverse, sigmoid)."""
    if not (slices := _slices(place)):
        return None
    band = rng.random() < 0.5
    middle, size = int(rng.choice(slices)), rng.uniform(3, 7)
    tall = rng.uniform(4, 12) if band else rng.uniform(10, 60)
    side, wide = rng.choice((-1, 1)), rng.uniform(0.2, 0.7)
    beside = side * rng.uniform(0.2, 1.3) if band else rng.uniform(-0.8, 0.8) * (rng.random() < 0.5)
    share = np.zeros(place.inside.shape, np.float32)
    for z, y, x, angle in _towards_back(place, slices, middle, tall, beside):
        inward = place.depth[z]
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


PAINTERS: dict[str, Paint] = {
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
