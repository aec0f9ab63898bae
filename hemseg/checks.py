"""Is this a head CT in HU? What must be known of a scan before anyone trusts its mask.

Two kinds of finding: what cannot be segmented is an error; what looks odd gets a mask and a warning, which stands in
the report, the summary and on the terminal (``--strict`` refuses it).
"""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np

from hemseg.components import labeled, labeled_sizes
from hemseg.errors import HemsegError
from hemseg.hounsfield import require_hounsfield_units
from hemseg.preprocessing import Settings, Strip, WorkingImage, skull_hull, working_image
from hemseg.resources import check_working_memory
from hemseg.sanity import INTRACRANIAL_ML, is_infant, reaches_from_base_to_vertex
from hemseg.strip import brain_of, saturation, slices_losing_brain
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid

BRAIN_HU = (10.0, 60.0)  # the median of the inside of the skull: brain has 25-40, with much blood or CSF more or less
LEVEL_HU = (20.0, 45.0)  # of its gray and white matter, without blood and CSF
INSIDE_ML = (400.0, 2500.0)  # of a whole cranial cavity, with room for children and for what stripping lets through
IN_PLANE_MM, SLICE_MM = (0.15, 3.0), (0.2, 12.0)
IN_PLANE_LIMITS_MM, SLICE_LIMITS_MM = (0.1, 5.0), (0.1, 20.0)  # beyond them a header is wrong
FIELD_MM = (120.0, 700.0)
MIN_SLICES = 5
UPSIDE_DOWN, MIN_AIR = 2.0, 300  # ratio; voxels of the working grid
WINDOW_HU = (-200.0, 500.0)  # a scan without anything beyond was stored in a window
CONTRAST_ML, CONTRAST_DEPTH_MM = 15.0, 12.0
MIN_BONE = 0.03  # of the volume inside; heads have 0.15 and more
SECOND_HEAD_CM2 = 40.0  # least area of its brain in a slice
SCALP, SCALP_MM = 0.15, (2.0, 8.0)  # least share of tissue, so far from the skull


def check_scan(
    volume: Volume, settings: Settings, strict: bool = False, strip: Strip | None = None
) -> tuple[Volume, WorkingImage]:
    """Bring a scan to the working grid; the scan comes back with what looks odd about it among its warnings.

    Raises:
        HemsegError: see `require_head_ct`; with ``strict``, also for what looks odd.
    """
    require_head_ct(volume)
    array, spacing = volume.in_lps()
    check_working_memory(volume.path, math.prod(WorkingGrid.of(array.shape, spacing, settings.spacing).shape))
    working = working_image(volume, settings, strip)
    warnings = (*volume.warnings, *scan_warnings(volume, working, settings))
    if strict and warnings:
        raise HemsegError(f"{volume.path or 'the scan'}: is refused, as it looks odd: {' '.join(warnings)}")
    return replace(volume, warnings=warnings), working


def require_head_ct(volume: Volume) -> None:
    """Raise for what no mask could be made of: before any work is done.

    Raises:
        HemsegError: every voxel is the same, the axes are not at right angles, or the values are not HU.
    """
    name = volume.path or "the scan"
    if not np.allclose(volume.cosines @ volume.cosines.T, np.eye(3), atol=0.01):
        raise HemsegError(f"{name}: the axes of its direction matrix are not at right angles; fix the header.")
    _, (depth, *plane) = volume.in_lps()
    limits = [(mm, IN_PLANE_LIMITS_MM) for mm in plane] + [(depth, SLICE_LIMITS_MM)]
    if any(not low <= mm <= high for mm, (low, high) in limits):
        raise HemsegError(
            f"{name}: has voxels of {plane[1]:.3g} x {plane[0]:.3g} x {depth:.3g} mm; a head CT has 0.1 to 5 mm in "
            "plane and 0.1 to 20 mm between slices. Correct the spacing in the header."
        )
    low, high = float(volume.hu.min()), float(volume.hu.max())
    if low == high:
        raise HemsegError(f"{name}: every voxel is {low:g}; it holds no picture.")
    array, spacing = volume.in_lps()
    require_hounsfield_units(array, spacing, str(name))


def scan_warnings(volume: Volume, working: WorkingImage, settings: Settings) -> tuple[str, ...]:
    """What looks odd about a scan, in sentences; empty for a plain whole-head CT."""
    findings = (*_odd_geometry(volume), *_odd_values(volume), *_odd_anatomy(working, settings))
    return tuple(f"It {text}{'' if text.endswith('?') else '.'}" for text in findings)


def _odd_geometry(volume: Volume) -> list[str]:
    findings = []
    array, (depth, *plane) = volume.in_lps()
    slices = array.shape[0]
    if slices < MIN_SLICES:
        findings.append(f"has only {slices} slice{'s' * (slices != 1)}")
    if not (IN_PLANE_MM[0] <= min(plane) and max(plane) <= IN_PLANE_MM[1] and SLICE_MM[0] <= depth <= SLICE_MM[1]):
        findings.append(f"has voxels of {plane[1]:.3g} x {plane[0]:.3g} x {depth:.3g} mm, unusual for a head CT")
    field = [n * mm for n, mm in zip(array.shape[1:], plane, strict=True)]
    if min(field) < FIELD_MM[0] or max(field) > FIELD_MM[1]:
        findings.append(f"shows {field[1]:.0f} x {field[0]:.0f} mm in plane, unusual for a head CT")
    return findings


def _odd_values(volume: Volume) -> list[str]:
    array, _ = volume.in_lps()
    lows, highs = array.min(axis=(1, 2)), array.max(axis=(1, 2))
    low, high = float(lows.min()), float(highs.max())
    findings = []
    if low > WINDOW_HU[0] and high < WINDOW_HU[1]:
        findings.append(f"is stored in a window of {low:.0f}..{high:.0f} HU; full HU is better")
    if blank := int((lows == highs).sum()):
        findings.append(f"has {blank} blank slice{'s' * (blank != 1)}")
    return findings


def _odd_anatomy(working: WorkingImage, settings: Settings) -> list[str]:
    inside, hu = working.intracranial, working.hu
    shown = [z for z, plane in enumerate(hu) if plane.min() < plane.max()]  # blank slices at the ends show nothing
    if not inside[shown].any():
        return ["shows no skull with a brain in it"]
    voxel_ml = float(np.prod(working.grid.spacing)) / 1000
    findings = []
    ml = float(inside.sum()) * voxel_ml
    if ml < INTRACRANIAL_ML[0] and reaches_from_base_to_vertex(working) and is_infant(working):
        findings.append(f"shows an infant's head ({ml:.0f} mL inside the skull), which the weights do not know")
    elif not INSIDE_ML[0] <= ml <= INSIDE_ML[1]:
        findings.append(f"has {ml:.0f} mL inside the skull: part of a head, or not a head?")
    level = float(np.median(hu[inside]))
    if not BRAIN_HU[0] <= level <= BRAIN_HU[1]:
        findings.append(f"has a median of {level:.0f} HU inside the skull, where brain has 25 to 40: is it in HU?")
    elif not LEVEL_HU[0] <= (tissue := working.brain_hu) <= LEVEL_HU[1]:
        findings.append(f"has a brain of {tissue:.0f} HU, where others have 25 to 40: is the scale off?")
    if _second_head(working):
        findings.append("shows two heads: one of them was left out")
    bone = hu >= saturation(hu)
    if bone[shown].sum() < MIN_BONE * inside[shown].sum():
        findings.append("shows hardly any bone: was the skull taken away?")
    areas = inside.sum(axis=(1, 2))[shown]
    if areas[-1] > 0.5 * areas.max():
        findings.append("is cut off at the top of the head")
    if areas[0] > 0.8 * areas.max():
        findings.append("does not reach down to the base of the skull")
    if inside[:, [0, -1], :].any() or inside[:, :, [0, -1]].any():
        findings.append("is cut off at the edge of the picture")
    hull = skull_hull(_bone_of_head(bone, inside))
    if _scalp(working, hull, settings) < SCALP:
        findings.append("shows hardly any scalp: was the face removed?")
    low, high = _air_below_and_above(working, hull, settings)
    if high > UPSIDE_DOWN * max(low, MIN_AIR):
        findings.append("has the sinuses' air in the upper half of the head: is it upside down?")
    if working.quarters:
        findings.append(
            "shows a head that lies across, with the face to the side: is its direction right? Which side is the "
            "patient's left is not known"
        )
    if losing := slices_losing_brain(hu, inside, working.grid.spacing):
        number = f"{len(losing)} slices" if len(losing) > 1 else "a slice"
        findings.append(f"loses part of the brain to skull stripping in {number}: blood there would be missed")
    findings += _contrast(working, settings, voxel_ml)
    return findings


def _bone_of_head(bone: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The connected components of bone at the edge of the cranial cavity: no table, no headrest; bool (z, y, x)."""
    labels, n = labeled(bone, corners=True)
    near = np.stack([cv2.dilate(plane, np.ones((9, 9), np.uint8)) for plane in inside.astype(np.uint8)]).astype(bool)
    touching = np.bincount(labels[near], minlength=n + 1) > 0
    touching[0] = False
    return touching[labels]


def _second_head(working: WorkingImage) -> bool:
    """Whether the skull of another head lies beside the one that was found, in most of the slices looked at."""
    inside, mm = working.intracranial, working.grid.spacing[1]
    areas = inside.sum(axis=(1, 2))
    shown = np.flatnonzero(areas > 0.5 * areas.max())
    looked_at = np.unique(shown[np.linspace(0, len(shown) - 1, 5).round().astype(int)])
    top = saturation(working.hu)
    found = 0
    for z in looked_at:
        labels, sizes = labeled_sizes(brain_of(working.hu[z], top, mm))
        own = np.bincount(labels[inside[z]], minlength=len(sizes))
        beside = (sizes * mm * mm / 100 >= SECOND_HEAD_CM2) & (own < 0.05 * sizes)
        found += bool(beside[1:].any())
    return found > 0.5 * len(looked_at)


def _scalp(working: WorkingImage, hull: np.ndarray, settings: Settings) -> float:
    """Share of tissue among what lies around the skull, in slices that show much of the head.

    Not in those where the skull leans so much that a thick slice shows it where the scalp is.
    Whole heads have 0.17 and more (one scan, and phantoms in slices of up to 10 mm), six defaced ones 0.06 to 0.27;
    when slanting slices still counted, 110 of 151 defaced ones had less than 0.15, and phantoms of 10 mm, too.
    """
    areas = hull.sum(axis=(1, 2))
    bottom = max(settings.hu_range[0], float(working.hu.min()))
    discs = [
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * n + 1, 2 * n + 1))
        for n in (max(1, round(mm / working.grid.spacing[1])) for mm in SCALP_MM)
    ]
    radii = np.sqrt(areas / np.pi) * working.grid.spacing[1]
    steps = np.abs(np.diff(radii, prepend=radii[0], append=radii[-1]))
    large = areas > 0.5 * areas.max()
    upright = large & (np.maximum(steps[:-1], steps[1:]) <= SCALP_MM[0])
    tissue = around = 0
    for z in np.flatnonzero(upright if upright.any() else large):
        near, far = (cv2.dilate(hull[z].astype(np.uint8), disc).astype(bool) for disc in discs)
        around += int((far & ~near).sum())
        tissue += int((far & ~near & (working.hu[z] > bottom + 5)).sum())
    return tissue / max(1, around)


def _air_below_and_above(working: WorkingImage, hull: np.ndarray, settings: Settings) -> tuple[int, int]:
    """Voxels of air (and fat) within the skull's hull, in the lower and in the upper half of the head.

    Sinuses, mastoid cells and orbits lie low: in 46 scans of four sources the lower half had 2 to 1000 times as much.
    """
    bottom = max(settings.hu_range[0], float(working.hu.min()))
    areas = hull.sum(axis=(1, 2))
    head = np.flatnonzero(areas > 0.1 * areas.max()) if areas.any() else np.zeros(1, int)
    middle = (head[0] + head[-1] + 1) // 2
    air = (hull & (working.hu <= bottom + 1)).sum(axis=(1, 2))
    return int(air[head[0] : middle].sum()), int(air[middle : head[-1] + 1].sum())


def _contrast(working: WorkingImage, settings: Settings, voxel_ml: float) -> list[str]:
    """Much that is brighter than blood, far from the skull: vessels full of contrast agent, or metal."""
    bright = working.intracranial & (working.hu >= settings.bone_floor_hu)
    mm = working.grid.spacing[1]
    if bright.sum() * voxel_ml <= CONTRAST_ML:
        return []
    inside = working.intracranial.astype(np.uint8)
    deep = np.stack([cv2.distanceTransform(s, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for s in inside])
    ml = float((bright & (deep * mm > CONTRAST_DEPTH_MM)).sum()) * voxel_ml
    return (
        [f"has {ml:.0f} mL brighter than blood within the brain: contrast agent, or metal?"] if ml > CONTRAST_ML else []
    )
