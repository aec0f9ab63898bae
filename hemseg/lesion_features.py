"""Features of a lesion and its surroundings that distinguish kinds of hemorrhage.

Kinds differ in where blood lies and what shape it has: within the brain, in CSF-dark ventricles, in sulci and cisterns,
or as a crescent or a lens along the skull. None of the features needs a mask that a human drew: they come from the scan
on the working grid, its intracranial mask, and the lesion itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from hemseg.components import bounding_box, labeled_sizes
from hemseg.preprocessing import brain_level

LEVEL_HU = 32.0  # of a brain, where the scan has none
SMOOTH_MM = 1.2
FLUID_HU = (4.0, 14.0)  # so far below the brain CSF begins, and is pure
VENTRICLE_MM, VENTRICLE_PX = 14.0, 60  # so far from the skull a ventricle lies, so large is its largest piece at least
FAR_MM = 40.0  # distances are cut off here
RING_MM = 4.0  # what surrounds a lesion
RIM_MM, NEAR_MM, MIDDLE_MM = 3.0, 6.0, 5.0  # along the skull, near it, along the midline
FEATURES = (
    "log_ml",
    "log_area",
    "depth_min",
    "depth_mean",
    "depth_high",
    "at_rim",
    "near_rim",
    "rim_contact",
    "rim_length",
    "thick_max",
    "thick_mean",
    "elongation",
    "flatness",
    "solidity",
    "pieces",
    "fluid_around",
    "fluid_gradient",
    "ventricle_mm",
    "ventricle_around",
    "midline_mm",
    "at_midline",
    "mirror_fluid",
    "mirror_own",
    "along_axis",
    "radial",
    "slice_area",
    "contrast",
    "contrast_high",
    "contrast_spread",
)


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What is known about a scan before any lesion is looked at; arrays (z, y, x) of the working grid.

    Attributes:
        smooth: HU, smoothed in plane among what is inside (bone does not shine in), float32.
        inside: the intracranial mask, bool.
        depth: mm from each voxel to its slice's intracranial edge, float32.
        brain: HU of the brain.
        mm: spacing (z, y, x).
    """

    smooth: np.ndarray
    inside: np.ndarray
    depth: np.ndarray
    brain: float
    mm: tuple[float, float, float]

    @cached_property
    def fluid(self) -> np.ndarray:
        """How much of each voxel is CSF, 0..1, float32."""
        begins, pure = FLUID_HU
        share = np.clip((self.brain - begins - self.smooth) / (pure - begins), 0, 1)
        return np.asarray(share * self.inside, np.float32)

    @cached_property
    def ventricles(self) -> tuple[np.ndarray, np.ndarray]:
        """Connected components of CSF far from the skull, numbered (z, y, x), and the numbers of the large ones."""
        labels, sizes = labeled_sizes((self.fluid > 0.5) & (self.depth > VENTRICLE_MM))
        return labels, np.flatnonzero((sizes >= VENTRICLE_PX) & (sizes >= 0.2 * sizes.max()))

    @cached_property
    def ventricle_mm(self) -> np.ndarray:
        """In-plane distance to CSF far from the skull, at most `FAR_MM`, float32."""
        labels, large = self.ventricles
        elsewhere = (~np.isin(labels, large)).astype(np.uint8)
        result = np.full(self.inside.shape, FAR_MM, np.float32)
        for z, plane in enumerate(elsewhere):
            if not plane.all():
                result[z] = np.minimum(cv2.distanceTransform(plane, cv2.DIST_L2, 5) * self.mm[1], FAR_MM)
        return result

    @cached_property
    def midline(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre (y, x) in voxels of the intracranial space, seen from above, and the direction of its long axis,
        which points to the back."""
        at = np.argwhere(self.inside.any(axis=0))
        if len(at) < 3:
            return np.array(self.inside.shape[1:]) / 2, np.array([1.0, 0.0])
        _, vectors = np.linalg.eigh(np.cov((at - at.mean(axis=0)).T))
        axis = vectors[:, 1]
        return at.mean(axis=0), axis * (1 if axis[0] >= 0 else -1)


def surroundings(hu: np.ndarray, inside: np.ndarray, mm: tuple[float, float, float]) -> Surroundings:
    """What naming lesions needs to know about a scan.

    Args:
        hu: float32 (z, y, x) on the working grid.
        inside: bool (z, y, x), the intracranial mask.
        mm: spacing (z, y, x).
    """
    smooth = smoothed_inside(hu, inside, mm[1])
    level = brain_level(smooth, inside)
    return Surroundings(smooth, inside, depth_mm(inside, mm[1]), level if np.isfinite(level) else LEVEL_HU, mm)


def smoothed_inside(hu: np.ndarray, inside: np.ndarray, in_plane_mm: float) -> np.ndarray:
    """Gaussian mean in plane over what is inside, so that bone does not shine in; HU elsewhere. float32 (z, y, x)."""
    sigma = SMOOTH_MM / in_plane_mm
    weight = np.stack([cv2.GaussianBlur(s.astype(np.float32), (0, 0), sigma) for s in inside])
    total = np.stack([cv2.GaussianBlur(s, (0, 0), sigma) for s in np.where(inside, hu, 0).astype(np.float32)])
    return np.where(inside, total / np.maximum(weight, 1e-3), hu).astype(np.float32)


def depth_mm(inside: np.ndarray, in_plane_mm: float) -> np.ndarray:
    """From each voxel to its slice's intracranial edge, mm, float32 (z, y, x); the picture's border is an edge, too."""
    edged = np.pad(inside, ((0, 0), (1, 1), (1, 1))).astype(np.uint8)
    depth = np.stack([cv2.distanceTransform(s, cv2.DIST_L2, 5)[1:-1, 1:-1] for s in edged])
    return np.asarray(depth * np.float32(in_plane_mm))


def lesion_features(lesion: np.ndarray, around: Surroundings) -> np.ndarray:
    """The features of one lesion, float64 (len(FEATURES),): mm, HU above the brain, shares, logarithms of mL and mm².

    All but the volume are means over the lesion or in-plane features, so that a single slice of a lesion has nearly
    those of the whole.

    Args:
        lesion: bool (z, y, x) on the working grid; of one voxel and more.
    """
    reach = int(np.ceil(RING_MM / around.mm[1])) + 1
    found = bounding_box(lesion)
    assert found is not None
    plane = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in found[1:])
    box = (found[0], *plane)
    own, inside, depth = lesion[box], around.inside[box], around.depth[box]
    area_mm2 = around.mm[1] * around.mm[2]
    d = depth[own]
    contrast = around.smooth[box][own] - around.brain
    values: dict[str, float] = {
        "log_ml": float(np.log(own.sum() * np.prod(around.mm) / 1000)),
        "log_area": float(np.log(own.sum(axis=(1, 2)).max() * area_mm2)),
        "depth_min": float(d.min()),
        "depth_mean": float(d.mean()),
        "depth_high": float(np.quantile(d, 0.9)),
        "at_rim": float((d <= RIM_MM).mean()),
        "near_rim": float((d <= NEAR_MM).mean()),
        "contrast": float(np.median(contrast)),
        "contrast_high": float(np.quantile(contrast, 0.9)),
        "contrast_spread": float(contrast.std()),
    }
    values |= _shape(own, depth, around.mm[1])
    values |= _neighbourhood(own, inside, around.fluid[box], around.ventricle_mm[box], around.mm[1])
    values |= _position(lesion, around)
    return np.array([values[name] for name in FEATURES])


def _shape(own: np.ndarray, depth: np.ndarray, mm: float) -> dict[str, float]:
    """Thickness, length and contact with the skull in plane; means over the slices, weighted by area."""
    rows = []
    for plane, deep in zip(own.astype(np.uint8), depth, strict=True):
        if not plane.any():
            continue
        inner = cv2.distanceTransform(np.pad(plane, 1), cv2.DIST_L2, 5)[1:-1, 1:-1][plane > 0] * mm
        outlines, _ = cv2.findContours(plane, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        points = np.argwhere(plane)
        spread = points - points.mean(axis=0)
        pixels = len(points)
        long = 4 * np.sqrt(max(0.0, np.linalg.eigvalsh(spread.T @ spread / pixels)[-1])) * mm + mm
        perimeter = sum(max(1.0, cv2.arcLength(outline, True)) for outline in outlines) * mm
        along = ((plane > 0) & (deep <= 2.5 * mm)).sum() * mm / 2
        hull = cv2.contourArea(cv2.convexHull(np.concatenate(outlines)))
        thick = 2 * inner.max() - mm
        rows.append(
            (
                pixels,
                thick,
                2 * inner.mean(),
                long,
                pixels / max(pixels, hull),
                len(outlines),
                min(1.0, 2 * along / perimeter),
                along,
            )
        )
    table = np.array(rows, float)
    area, thick, mean, long, solid, pieces, contact, along = table[:, 0] @ table / table[:, 0].sum()
    return {
        "thick_max": float(thick),
        "thick_mean": float(mean),
        "elongation": float(np.log(long / max(mm, thick))),
        "flatness": float(np.log(area * mm**2 / max(mm, thick) ** 2)),
        "solidity": float(solid),
        "pieces": float(np.log(pieces)),
        "rim_contact": float(contact),
        "rim_length": float(np.log1p(along)),
    }


def _neighbourhood(
    own: np.ndarray, inside: np.ndarray, fluid: np.ndarray, ventricle_mm: np.ndarray, mm: float
) -> dict[str, float]:
    """CSF and ventricles in the ring around a lesion."""

    def ring(reach_mm: float) -> np.ndarray:
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * max(1, round(reach_mm / mm)) + 1,) * 2)
        grown = np.stack([cv2.dilate(s, disc) for s in own.astype(np.uint8)])
        return np.asarray((grown > 0) & ~own & inside)

    far, near = ring(RING_MM), ring(RING_MM / 2)
    around, close = (float(fluid[where].mean()) if where.any() else 0.0 for where in (far, near))
    return {
        "fluid_around": around,
        "fluid_gradient": close - around,
        "ventricle_mm": float(ventricle_mm[own].mean()),
        "ventricle_around": float((ventricle_mm[far] <= 1.5 * mm).mean()) if far.any() else 0.0,
    }


def _position(lesion: np.ndarray, around: Surroundings) -> dict[str, float]:
    """Where a lesion lies with respect to the midline, its mirror image and the middle of the head."""
    center, axis = around.midline
    mm, sideways = around.mm[1], np.array([-axis[1], axis[0]])
    z, y, x = np.nonzero(lesion)
    off = np.stack([y, x], axis=1) - center
    along, across = off @ axis, off @ sideways
    mirrored = np.round(np.stack([y, x], axis=1) - 2 * across[:, None] * sideways).astype(int)
    valid = ((mirrored >= 0) & (mirrored < around.inside.shape[1:])).all(axis=1)
    there = (z[valid], mirrored[valid, 0], mirrored[valid, 1])
    distance = np.hypot(*off.T) * mm
    head = np.argwhere(around.inside.any(axis=0))
    half = max(1.0, np.ptp(head @ axis) / 2) if len(head) else 1.0
    return {
        "midline_mm": float(np.abs(across).mean() * mm),
        "at_midline": float((np.abs(across) * mm <= MIDDLE_MM).mean()),
        "mirror_fluid": float(around.fluid[there].mean()) if valid.any() else 0.0,
        "mirror_own": float(lesion[there].mean()) if valid.any() else 0.0,
        "along_axis": float((along / half).mean()),
        "radial": float((distance / (distance + around.depth[z, y, x] + mm)).mean()),
        "slice_area": float(np.sqrt(around.inside.sum(axis=(1, 2))[z].mean()) * mm),
    }
