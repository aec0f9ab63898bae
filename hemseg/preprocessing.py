"""From a scan to what the network sees: window, working grid, skull strip, histogram equalisation.

The paper's test-time steps (section 2, "CAM-guided weakly supervised segmentation"): smooth with a bilateral
filter, call everything at or above the 95th percentile of intensity skull, discard the skull and all that lies
outside its convex hull, equalise the histogram. `Settings` holds every number; it is part of the weights'
manifest, and training calls these very functions, so that training and inference cannot drift apart.

Everything happens on the working grid (`hemseg.working_grid`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from hemseg.components import boxes, drop_small_components, labeled, largest_component, without_holes
from hemseg.upright import quarters_to_upright, turned
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid

PREPROCESSING_VERSION = 3  # raised when the same settings give other voxels: training then prepares anew
CHANNELS = ("hu", "equalized")
BORDER_MM = 3.0  # how far from tissue its bone may begin: thin bone is dimmed by partial volume
AIR_HU = 1e-3  # so far above the lowest value averages of air can come out: 32-bit weights add up to 1 but for rounding
BELOW_SHARE, OPEN_SHARE = 0.5, 0.3  # see `_drop_below_base`
TISSUE_HU, TISSUE_SPREAD_HU = (0.0, 65.0), 15.0  # of brain, wherever the scale is off by ten HU; see `brain_level`
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))  # a pixel and its neighbours
MAX_SHIFT_HU = 15.0  # a brain that is farther off is not corrected: `hemseg.checks` warns

Strip = Callable[[np.ndarray, tuple[float, float, float]], np.ndarray]
"""(z, y, x) HU on the working grid, its spacing (z, y, x) in mm -> bool (z, y, x): the intracranial mask."""


@dataclass(frozen=True)
class Settings:
    """What `working_image` and `network_input` need to know. HU and mm."""

    hu_range: tuple[float, float] = (-20.0, 100.0)  # all that the training data hold; clipped to it first
    in_plane_mm: float = 1.0  # working grid, x and y
    slice_mm: float = 5.0  # working grid, z: thinner slices are averaged to about this
    bilateral_diameter: int = 5  # working-grid pixels
    bilateral_sigma_hu: float = 15.0
    bilateral_sigma_mm: float = 2.0
    skull_percentile: float = 95.0  # the paper's, over the head's voxels of the whole volume ...
    bone_floor_hu: float = 92.0  # ... but never below this: clotted blood reaches 90 HU
    head_floor_hu: float = -15.0  # tissue, against air and fat
    channels: tuple[str, ...] = CHANNELS
    level_hu: float = 0.0  # the brain's median is brought here before the network; 0: HU as they are
    edge_slices: bool = False  # a stack that is shorter than a patch goes on with its outermost slices, not with zeros

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the working grid, (z, y, x) mm; that of a scan's own grid (`WorkingGrid.spacing`) comes close to it."""
        return self.slice_mm, self.in_plane_mm, self.in_plane_mm

    def __post_init__(self) -> None:
        low, high = self.hu_range
        if not (low < self.head_floor_hu < self.bone_floor_hu < high):
            raise ValueError("needs hu_range[0] < head_floor_hu < bone_floor_hu < hu_range[1]")
        if unknown := set(self.channels) - set(CHANNELS):
            raise ValueError(f"unknown channels {sorted(unknown)}; known: {', '.join(CHANNELS)}")


@dataclass(frozen=True, eq=False)
class WorkingImage:
    """A scan on the working grid, in LPS order.

    Attributes:
        hu: float32 (z, y, x), clipped to ``hu_range``, not stripped.
        intracranial: bool (z, y, x), what skull stripping leaves.
        grid: how to get back.
        learned: the learned strip made the mask, not the paper's steps.
        quarters: turns that bring a head upright which lies across (`hemseg.upright`); networks are shown it turned.
    """

    hu: np.ndarray
    intracranial: np.ndarray
    grid: WorkingGrid
    learned: bool = False
    quarters: int = 0

    @property
    def upright(self) -> tuple[np.ndarray, np.ndarray]:
        """``hu`` and ``intracranial`` as networks are shown them; `from_upright` is the way back."""
        return turned(self.hu, self.quarters), turned(self.intracranial, self.quarters)

    @cached_property
    def brain_hu(self) -> float:
        """`brain_level` of the scan."""
        return brain_level(self.hu, self.intracranial)

    def leveled_upright(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """`upright`, with ``hu`` at the brain's level as in `leveled`."""
        hu, inside = self.upright
        return shifted_to_level(hu, self.brain_hu, settings), inside

    def from_upright(self, array: np.ndarray) -> np.ndarray:
        """An array (z, y, x) of what a network answered, as the scan lies."""
        return turned(array, -self.quarters)


def working_image(volume: Volume, settings: Settings, strip: Strip | None = None) -> WorkingImage:
    """Clip to ``hu_range``, go to the working grid, strip the skull.

    Args:
        strip: the learned strip; where there is none, or it finds nothing, the paper's steps (`intracranial_mask`).

    In plane the clipping comes first, at the scan's own resolution: so a scan in full HU and the same scan stored in a
    window give the same numbers, unless its slices are so thin that several are averaged.
    """
    hu, spacing = volume.in_lps()
    grid = WorkingGrid.of(hu.shape, spacing, settings.spacing)
    hu = grid.from_scan(hu, settings.hu_range)
    inside = strip(hu, grid.spacing) if strip is not None else None
    learned = inside is not None and bool(inside.any())
    if inside is None or not learned:
        inside = intracranial_mask(hu, settings)
    quarters = quarters_to_upright(hu, inside, grid.spacing[1])
    if quarters and learned and strip is not None:  # it, too, knows upright heads better
        again = strip(turned(hu, quarters), grid.spacing)
        inside = turned(again, -quarters) if again.any() else inside
    return WorkingImage(hu, inside, grid, learned, quarters)


def smoothed(hu: np.ndarray, settings: Settings) -> np.ndarray:
    """Bilateral filter (Tomasi & Manduchi 1998) slice by slice; (z, y, x), HU."""
    sigma_px = settings.bilateral_sigma_mm / settings.in_plane_mm
    return np.stack(
        [
            cv2.bilateralFilter(
                np.ascontiguousarray(s), settings.bilateral_diameter, settings.bilateral_sigma_hu, sigma_px
            )
            for s in np.asarray(hu, dtype=np.float32)
        ]
    )


def skull_threshold(smooth: np.ndarray, head: np.ndarray, settings: Settings) -> float:
    """The percentile of the head's voxels in HU, held between the bone floor and just below the clip value.

    The paper's bare percentile fails both ways on windowed data: it is the clip value itself in most slices,
    which nothing exceeds, and falls into brain and blood where there is little bone.
    """
    floor, ceiling = settings.bone_floor_hu, settings.hu_range[1] - 1.0
    if not head.any():
        return ceiling
    return float(np.clip(np.percentile(smooth[head], settings.skull_percentile), floor, ceiling))


def intracranial_mask(hu: np.ndarray, settings: Settings) -> np.ndarray:
    """Strip the skull: inside the convex hull of the bone of each slice, not bone, joined to the brain.

    It survives what is met in practice: a headrest (only the largest piece of tissue is the head), a face (its
    muscles and orbits lie within the hull, too, but open to fat and air), bone away from the skull such as
    calcifications (they stay inside), craniectomy (the hull bridges it), slices without skull (nothing is kept), a
    scan without any skull (already stripped: the head is kept).

    Args:
        hu: (z, y, x) on the working grid, clipped to ``hu_range``.

    Returns:
        bool (z, y, x).
    """
    head = _largest_component_opened(hu > settings.head_floor_hu, settings, opening_mm=2.0)
    smooth = smoothed(hu, settings)
    # not every clipped voxel is skull: a few percent of bone in a voxel clip it, and thin blood lies there
    skull = _skull(head & (smooth >= skull_threshold(smooth, head, settings)))
    if skull.sum() < 0.01 * max(1, head.sum()):
        return np.stack([without_holes(s) for s in head]) if head.any() else head
    inside = _hull(skull) & ~skull
    tissue = inside & (hu > settings.hu_range[0] + AIR_HU)
    brain = _drop_below_base(_largest_component_opened(tissue, settings, opening_mm=3.0), skull, settings)
    # give back what the opening took: thin blood along the skull belongs to the inside
    grown = _grow(brain, tissue, steps=round(5.0 / settings.in_plane_mm))
    return np.stack([without_holes(s) for s in grown]) & inside


def _grow(brain: np.ndarray, tissue: np.ndarray, steps: int) -> np.ndarray:
    """Dilate in plane, a pixel a step, without leaving the tissue; all bool (z, y, x)."""
    planes = brain.astype(np.uint8)
    for plane, allowed in zip(planes, tissue.astype(np.uint8), strict=True):
        for _ in range(steps):
            plane[:] = cv2.dilate(plane, CROSS) & allowed
    return planes.astype(bool)


def _skull(bone: np.ndarray) -> np.ndarray:
    """The components of bone at least a twentieth as large as the largest: vault, flap, face; not calcifications."""
    return drop_small_components(bone, share=0.05, corners=True)


def skull_hull(bone: np.ndarray) -> np.ndarray:
    """Filled convex hull of the skull among bone, slice by slice; both bool (z, y, x)."""
    return _hull(_skull(bone))


def _hull(skull: np.ndarray) -> np.ndarray:
    """Filled convex hull of each slice's skull; a slice with fewer than three points has none."""
    filled = np.zeros(skull.shape, np.uint8)
    for plane, slice_ in zip(filled, skull, strict=True):
        points = np.argwhere(slice_)[:, ::-1].astype(np.int32)
        if len(points) > 2:
            cv2.fillConvexPoly(plane, cv2.convexHull(points), 1)
    return filled.astype(bool)


def _largest_component_opened(mask: np.ndarray, settings: Settings, opening_mm: float) -> np.ndarray:
    """The largest connected component after an in-plane opening that cuts thin bridges."""
    side = 2 * round(opening_mm / settings.in_plane_mm) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    opened = np.stack([cv2.morphologyEx(s, cv2.MORPH_OPEN, disc) for s in mask.astype(np.uint8)])
    return largest_component(opened)


def _drop_below_base(brain: np.ndarray, skull: np.ndarray, settings: Settings) -> np.ndarray:
    """The brain without what hangs on to it below the skull's base: muscles, orbits, the nose.

    From the widest slice downwards, an in-plane piece goes when most of it does not lie below what was kept and
    much of its border is not bone. What the skull encloses stays wherever it is; so does what merely lacks its bone
    (a flap taken out, a slanting slice), as it lies below more of the brain.
    """
    kept = brain.copy()
    reach = max(1, round(BORDER_MM / settings.in_plane_mm))
    for z in range(int(brain.sum(axis=(1, 2)).argmax()) - 1, -1, -1):
        components, _ = labeled(brain[z])
        for i, box in enumerate(boxes(components), start=1):
            component = components[box] == i
            if (component & kept[z + 1][box]).sum() >= BELOW_SHARE * component.sum():
                continue
            window = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
            wide = components[window] == i
            border = cv2.dilate(wide.astype(np.uint8), CROSS, iterations=reach).astype(bool) & ~wide
            if (border & ~skull[z][window]).sum() > OPEN_SHARE * border.sum():
                kept[z][box][component] = False
    return kept


def equalized(hu: np.ndarray, mask: np.ndarray, settings: Settings) -> np.ndarray:
    """Histogram equalisation (OpenCV) of the voxels inside the mask, over the whole volume; 0..1, 0 outside."""
    low, high = settings.hu_range
    result = np.zeros(hu.shape, np.float32)
    if mask.any():
        gray = np.round((hu[mask] - low) * (255.0 / (high - low))).astype(np.uint8)
        result[mask] = cv2.equalizeHist(gray[:, None])[:, 0] / np.float32(255)
    return result


def brain_level(hu: np.ndarray, intracranial: np.ndarray) -> float:
    """Median HU of the brain: of what is tissue inside the mask, blood, fluid and bone left out; NaN where none is.

    Args:
        hu, intracranial: (z, y, x) on the working grid.
    """
    values = hu[intracranial]
    values = values[(values > TISSUE_HU[0]) & (values < TISSUE_HU[1])]
    if not values.size:
        return float("nan")
    return float(np.median(values[np.abs(values - np.median(values)) < TISSUE_SPREAD_HU]))


def leveled(hu: np.ndarray, intracranial: np.ndarray, settings: Settings) -> np.ndarray:
    """HU shifted so that the brain's median is ``level_hu``, within ``hu_range``; by at most 15 HU. 0: as they are.

    Scanners differ by some HU, and exports by more: blood differs from the brain beside it.
    """
    return shifted_to_level(hu, brain_level(hu, intracranial), settings) if settings.level_hu else hu


def shifted_to_level(hu: np.ndarray, brain_hu: float, settings: Settings) -> np.ndarray:
    """`leveled`, where the brain's level ``brain_hu`` is known; NaN leaves HU as they are."""
    shift = settings.level_hu - brain_hu
    if not settings.level_hu or not np.isfinite(shift):
        return hu
    return (hu + np.clip(shift, -MAX_SHIFT_HU, MAX_SHIFT_HU)).clip(*settings.hu_range).astype(np.float32)


def network_input(hu: np.ndarray, intracranial: np.ndarray, settings: Settings) -> np.ndarray:
    """The network's channels, float32 (channel, z, y, x) in 0..1, 0 outside the skull's inside.

    ``hu`` is the window ``hu_range`` (absolute: blood is 50-90 HU in every scan), ``equalized`` the paper's
    contrast enhancement (relative: what is bright in this scan).
    """
    hu = leveled(hu, intracranial, settings)
    low, high = settings.hu_range
    made = {
        "hu": lambda: np.where(intracranial, ((hu - low) / (high - low)).clip(0, 1), 0).astype(np.float32),
        "equalized": lambda: equalized(hu, intracranial, settings),
    }
    return np.stack([made[name]() for name in settings.channels])
