"""The connected components of a mask in figures: place, size, HU, ABC/2, what they touch. Arrays in, figures out.

Whoever made the mask, the network or a person who corrected it, its lesions are measured here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from hemseg.components import bounding_box, drop_small_components, numbered_components
from hemseg.preprocessing import WorkingImage, brain_level
from hemseg.volume import Volume

MIDLINE_MM = 5.0
FULL_SLICE, HALF_SLICE = 0.75, 0.25  # of the largest area: from where a slice counts whole, and half, for ABC/2
STEPS_PER_PIXEL = 4  # of the lines along which B is measured
SMOOTHING_PIXELS = 0.8  # of the outline whose diameters are measured; standard deviation
MARGIN = 4  # pixels around a shape that is smoothed
SKULL_TOUCH_MM = 2.0  # dura and arachnoid lie between
CSF_TOUCH_MM = 3.0  # between blood and CSF lie voxels that are half of either, as bright as brain
CSF_BELOW_BRAIN_HU = (15.0, 45.0)  # CSF is so much darker than the brain; edema less, fat and air more
CSF_DEEP_MM, CSF_LEAST_CM2 = 20.0, 0.5  # so far from the skull, and so large: ventricles, not sulci, not noise
Point = tuple[float, float]


@dataclass(frozen=True)
class Lesion:
    """One connected component of hemorrhage.

    Attributes:
        centroid: (x, y, z) in mm, LPS, as the scan's header has it.
        slices: first and last, 0-based, in the order of the file.
        mean_hu: of its voxels, as stored.
        side: ``left`` or ``right`` (the patient's) where its centroid lies more than 5 mm from the middle of the
            skull's inside, else ``midline``; ``unknown`` where the scan does not say how the patient lies in it.
        skull_mm: in-plane distance of its outermost voxel to the edge of the skull's inside.
    """

    volume_ml: float
    centroid: tuple[float, float, float]
    slices: tuple[int, int]
    mean_hu: float
    side: str
    skull_mm: float


@dataclass(frozen=True)
class Abc2:
    """ABC/2 of a lesion, the bedside estimate of its volume (Kothari et al., Stroke 1996;27:1304-1305).

    Attributes:
        a_cm: largest diameter on the axial slice where the lesion's area is largest.
        b_cm: longest line at right angles to it that runs within the lesion's outline, on the same slice.
        c_cm: thickness of the slices, each weighted by its area: 1 above 75 % of the largest, 0.5 from 25 to 75 %,
            0 below 25 %.
        slice: that slice, 0-based, from inferior to superior.
        a_line, b_line: both ends of either line, (y, x) in pixels of that slice in LPS order; the middle of pixel 0 is
            at 0.
    """

    a_cm: float
    b_cm: float
    c_cm: float
    slice: int
    a_line: tuple[Point, Point]
    b_line: tuple[Point, Point]

    @property
    def volume_ml(self) -> float:
        """A times B times C, halved."""
        return self.a_cm * self.b_cm * self.c_cm / 2


@dataclass(frozen=True)
class MeasuredLesion:
    """A lesion with all that tables, pages and structured reports say about it.

    Attributes:
        abc2: its ABC/2.
        median_hu: of its voxels, as stored.
        touches_skull: it comes within 2 mm of the edge of the skull's inside, in plane.
        touches_ventricle: it comes within 3 mm of CSF deep in the brain, in plane. A ventricle that is full of blood
            has none, and basal cisterns count, too: a rule of thumb.
        probability_mean, probability_max: of the network, over its voxels; None where no network made the mask.
    """

    lesion: Lesion
    abc2: Abc2
    median_hu: float
    touches_skull: bool
    touches_ventricle: bool
    probability_mean: float | None = None
    probability_max: float | None = None


def components(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The voxels (n, 3) of each 26-connected component of a mask (z, y, x), the largest first."""
    mask = np.ascontiguousarray(mask) != 0
    box = bounding_box(mask)
    if box is None:
        return
    numbers, _ = numbered_components(mask[box])
    for number, where in enumerate(ndimage.find_objects(numbers), start=1):
        yield np.argwhere(numbers[where] == number) + [w.start + b.start for w, b in zip(where, box, strict=True)]


def lesions_of(mask: np.ndarray, volume: Volume, working: WorkingImage) -> tuple[Lesion, ...]:
    """The lesions of a mask, largest first.

    Args:
        mask: (z, y, x) on the scan's grid; what is not 0 is hemorrhage.
        working: the scan on the working grid, whose intracranial mask says where the skull is.
    """
    return tuple(_lesion(voxels, volume, working) for voxels in components(mask))


def measured_lesions(
    mask: np.ndarray, volume: Volume, working: WorkingImage, working_probability: np.ndarray | None = None
) -> tuple[MeasuredLesion, ...]:
    """The lesions of a mask with all their figures, in the order of `lesions_of`.

    Args:
        mask, volume, working: see `lesions_of`.
        working_probability: the network's answer (z, y, x) on the working grid, if one made the mask.
    """
    if not mask.any():
        return ()
    found = list(components(mask))
    shown = np.unique(working.grid.nearest(volume.indices_in_lps(np.concatenate(found)))[:, 0])
    csf_mm = _mm_to_csf(shown, working)
    spacing = volume.in_lps()[1]
    result = []
    for voxels in found:
        lesion = _lesion(voxels, volume, working)
        in_lps = volume.indices_in_lps(voxels)
        first = in_lps.min(axis=0)
        alone = np.zeros(in_lps.max(axis=0) - first + 1, bool)
        alone[tuple((in_lps - first).T)] = True
        chances = None if working_probability is None else _probability(in_lps, working, working_probability)
        result.append(
            MeasuredLesion(
                lesion=lesion,
                abc2=_moved(abc2(alone, spacing), first),
                median_hu=float(np.median(volume.hu[tuple(voxels.T)])),
                touches_skull=lesion.skull_mm <= SKULL_TOUCH_MM,
                touches_ventricle=bool(csf_mm[tuple(working.grid.nearest(in_lps).T)].min() <= CSF_TOUCH_MM),
                probability_mean=None if chances is None else float(chances.mean()),
                probability_max=None if chances is None else float(chances.max()),
            )
        )
    return tuple(result)


def _lesion(voxels: np.ndarray, volume: Volume, working: WorkingImage) -> Lesion:
    at = np.array(volume.origin) + volume.cosines @ (voxels.mean(axis=0)[::-1] * volume.spacing)
    side, skull_mm = _place(working.grid.nearest(volume.indices_in_lps(voxels)), working)
    return Lesion(
        volume_ml=len(voxels) * volume.voxel_ml,
        centroid=(float(at[0]), float(at[1]), float(at[2])),
        slices=(int(voxels[:, 0].min()), int(voxels[:, 0].max())),
        mean_hu=float(volume.hu[tuple(voxels.T)].mean()),
        side=side if volume.oriented else "unknown",
        skull_mm=skull_mm,
    )


def _place(voxels: np.ndarray, working: WorkingImage) -> tuple[str, float]:
    """Side of the head and in-plane distance to the skull of voxels (n, 3) of the working grid, (z, y, x)."""
    distances, middles = [], []
    mm = working.grid.spacing[2]
    for z in np.unique(voxels[:, 0]):
        inside = working.intracranial[z]
        if not inside.any():
            continue
        y, x = voxels[voxels[:, 0] == z, 1:].T
        padded = np.pad(inside.astype(np.uint8), 1)  # where the picture ends, the inside ends
        distances.append(float(cv2.distanceTransform(padded, cv2.DIST_L2, 5)[y + 1, x + 1].min()))
        middles.append(np.flatnonzero(inside.any(axis=0))[[0, -1]].mean())
    if not middles:
        return "midline", 0.0
    offset = (voxels[:, 2].mean() - np.mean(middles)) * mm
    side = "midline" if abs(offset) <= MIDLINE_MM else ("left" if offset > 0 else "right")
    return side, max(0.0, min(distances) - 1) * mm


def abc2(lesion: np.ndarray, spacing: tuple[float, float, float]) -> Abc2:
    """ABC/2 of one lesion.

    Diameters run from edge to edge of the pixels, not between their middles. The outline is smoothed by less than a
    pixel: the largest of many diameters of a staircase would always be one from corner to corner.

    Args:
        lesion: bool (z, y, x) in LPS order, not empty.
        spacing: (z, y, x) mm.
    """
    mm_z, *mm = spacing
    areas = lesion.sum(axis=(1, 2), dtype=np.int64)
    z = int(areas.argmax())
    shares = areas / areas[z]
    c = mm_z * float((shares > FULL_SLICE).sum() + 0.5 * ((shares >= HALF_SLICE) & (shares <= FULL_SLICE)).sum())
    pixels = np.array(mm)
    shape = _smoothed_shape(lesion[z])
    a_line = _longest_diameter((_outline(shape) - MARGIN) * pixels)
    b_line = _longest_line_across(shape, pixels, a_line)
    a, b = (float(np.linalg.norm(line[1] - line[0])) for line in (a_line, b_line))
    ends = [tuple((float(y), float(x)) for y, x in line / pixels) for line in (a_line, b_line)]
    return Abc2(a / 10, b / 10, c / 10, z, ends[0], ends[1])  # type: ignore[arg-type]


def _smoothed_shape(plane: np.ndarray) -> np.ndarray:
    """A shape bool (y, x) as a field that is positive inside its outline, with a margin around it; holes are filled."""
    field = ndimage.gaussian_filter(
        np.pad(ndimage.binary_fill_holes(plane), MARGIN).astype(np.float32), SMOOTHING_PIXELS, mode="constant"
    )
    return np.asarray(field - 0.5 * field.max())  # of what is thinner than a pixel, something is left


def _outline(field: np.ndarray) -> np.ndarray:
    """Where a field (y, x) changes its sign between neighbouring pixels: float (n, 2), in pixels, (y, x)."""
    points = []
    for axis in (0, 1):
        ends = np.moveaxis(field, axis, 0)
        low, high = ends[:-1], ends[1:]
        index = np.argwhere((low > 0) != (high > 0))
        at = tuple(index.T)
        index = index.astype(float)
        index[:, 0] += low[at] / (low[at] - high[at])
        points.append(index[:, ::-1] if axis else index)
    return np.concatenate(points)


def _longest_diameter(points: np.ndarray) -> np.ndarray:
    """The two of points (n, 2) that lie farthest apart, (2, 2)."""
    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(float)
    apart = np.linalg.norm(hull[:, None] - hull, axis=2)
    return hull[list(np.unravel_index(int(apart.argmax()), apart.shape))]


def _longest_line_across(field: np.ndarray, mm: np.ndarray, a_line: np.ndarray) -> np.ndarray:
    """The longest line at right angles to A along which a field (y, x; with margin) is positive; (2, 2) in mm."""
    along = a_line[1] - a_line[0]
    length = float(np.linalg.norm(along))
    along /= length
    across = np.array([-along[1], along[0]])
    step = float(mm.min()) / STEPS_PER_PIXEL
    inner = (np.argwhere(field > 0) - MARGIN) * mm
    reach = np.ceil(np.abs((inner - a_line[0]) @ across).max() / step) + 2 * STEPS_PER_PIXEL * mm.max() / mm.min()
    offsets = np.arange(-int(reach), int(reach) + 1) * step
    starts = np.linspace(0.0, length, max(3, int(length / step)) | 1)  # their middle is A's
    at = a_line[0] + starts[:, None, None] * along + offsets[None, :, None] * across
    outside = float(field.min())
    values = ndimage.map_coordinates(field, np.moveaxis(at / mm + MARGIN, -1, 0), order=1, cval=outside)
    change = np.diff((values > 0).astype(np.int8), axis=1)
    row, first = np.nonzero(change == 1)  # steps into the shape, and out of it, in pairs
    last = np.nonzero(change == -1)[1]
    longest = int((last - first).argmax())
    line = values[row[longest]]
    middle = a_line[0] + starts[row[longest]] * along
    ends = [offsets[i] + line[i] / (line[i] - line[i + 1]) * step for i in (first[longest], last[longest])]
    return np.array([middle + end * across for end in ends])


def _moved(measured: Abc2, first: np.ndarray) -> Abc2:
    """An ABC/2 in a box, in the coordinates of the scan in which the box begins at ``first`` (z, y, x)."""

    def move(line: tuple[Point, Point]) -> tuple[Point, Point]:
        (ya, xa), (yb, xb) = line
        y, x = float(first[1]), float(first[2])
        return (ya + y, xa + x), (yb + y, xb + x)

    z = measured.slice + int(first[0])
    return Abc2(measured.a_cm, measured.b_cm, measured.c_cm, z, move(measured.a_line), move(measured.b_line))


def ventricular_csf(plane: np.ndarray, inside: np.ndarray, brain_hu: float, mm: float) -> np.ndarray:
    """CSF deep in the brain, bool (y, x): of ventricles, and of basal cisterns where they are deep.

    Args:
        plane: HU (y, x) of a slice of the working grid.
        inside: its intracranial mask.
        brain_hu: `hemseg.preprocessing.brain_level` of the scan: so shifted HU do not matter.
        mm: size of a pixel.
    """
    padded = np.pad(inside.astype(np.uint8), 1)  # where the picture ends, the inside ends
    deep = cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1] * mm >= CSF_DEEP_MM
    smooth = cv2.medianBlur(np.ascontiguousarray(plane, np.float32), 5)
    least, most = CSF_BELOW_BRAIN_HU
    found = deep & (smooth < brain_hu - least) & (smooth > brain_hu - most)
    return drop_small_components(found, CSF_LEAST_CM2 * 100 / mm**2)


def _mm_to_csf(slices: np.ndarray, working: WorkingImage) -> np.ndarray:
    """In-plane distance of each voxel of some slices of the working grid to deep CSF, in mm; infinite elsewhere."""
    result = np.full(working.hu.shape, np.inf, np.float32)
    brain_hu, mm = brain_level(working.hu, working.intracranial), working.grid.spacing[2]
    for z in slices if np.isfinite(brain_hu) else []:
        found = ventricular_csf(working.hu[z], working.intracranial[z], brain_hu, mm)
        if found.any():
            result[z] = cv2.distanceTransform((~found).astype(np.uint8), cv2.DIST_L2, 5) * mm
    return result


def _probability(voxels: np.ndarray, working: WorkingImage, probability: np.ndarray) -> np.ndarray:
    """Probability of voxels (n, 3) of the scan in LPS order, as the probability image has it."""
    first, last = voxels.min(axis=0), voxels.max(axis=0) + 1
    part = working.grid.to_scan(probability, slice(first[1], last[1]), slice(first[2], last[2]))
    return np.asarray(part[tuple((voxels - [0, first[1], first[2]]).T)])
