"""The connected components of a mask, measured: place, size, HU, ABC/2, what they touch. Arrays in, measurements out.

Whoever made the mask, the network or a person who corrected it, its lesions are measured here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from hemseg.abc2 import Abc2, abc2
from hemseg.components import bounding_box, boxes, drop_small_components, numbered_components
from hemseg.preprocessing import WorkingImage
from hemseg.volume import Volume

MIDLINE_MM = 5.0
SKULL_TOUCH_MM = 2.0  # dura and arachnoid lie between
CSF_TOUCH_MM = 3.0  # between blood and CSF lie voxels that are half of either, as bright as brain
CSF_BELOW_BRAIN_HU = (15.0, 45.0)  # CSF is so much darker than the brain; edema less, fat and air more
CSF_DEEP_MM, CSF_LEAST_CM2 = 20.0, 0.5  # so far from the skull, and so large: ventricles, not sulci, not noise


@dataclass(frozen=True)
class Lesion:
    """One connected component of hemorrhage.

    Attributes:
        centroid: (x, y, z) in mm, LPS, as the scan's header has it.
        slices: first and last, 0-based, in the order of the file.
        mean_hu: of its voxels, as stored.
        side: ``left`` or ``right`` (the patient's) where its centroid lies more than 5 mm from the middle of the
            skull's inside, else ``midline``; ``unknown`` where the scan does not say how the patient lies in it, or
            the head lies across.
        skull_mm: in-plane distance of its outermost voxel to the edge of the skull's inside.
    """

    volume_ml: float
    centroid: tuple[float, float, float]
    slices: tuple[int, int]
    mean_hu: float
    side: str
    skull_mm: float


@dataclass(frozen=True)
class MeasuredLesion:
    """A lesion with all that tables, pages and structured reports say about it.

    Attributes:
        abc2: its ABC/2.
        axial_slices: first and last, 0-based, from inferior to superior, as pictures count them (`Lesion.slices`
            counts in the order of the file).
        median_hu: of its voxels, as stored.
        touches_skull: it comes within 2 mm of the edge of the skull's inside, in plane.
        touches_ventricle: it comes within 3 mm of CSF deep in the brain, in plane. A ventricle that is full of blood
            has none, and basal cisterns count, too: a rule of thumb.
        probability_mean, probability_max: of the network, over its voxels; None where no network made the mask.
    """

    lesion: Lesion
    abc2: Abc2
    axial_slices: tuple[int, int]
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
    for number, where in enumerate(boxes(numbers), start=1):
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
    """The lesions of a mask with all their measurements, in the order of `lesions_of`.

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
        first, last = in_lps.min(axis=0), in_lps.max(axis=0)
        alone = np.zeros(last - first + 1, bool)
        alone[tuple((in_lps - first).T)] = True
        chances = None if working_probability is None else _probability(in_lps, working, working_probability)
        result.append(
            MeasuredLesion(
                lesion=lesion,
                abc2=abc2(alone, spacing).moved(first),
                axial_slices=(int(first[0]), int(last[0])),
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
        side=side if sides_are_known(volume, working) else "unknown",
        skull_mm=skull_mm,
    )


def sides_are_known(volume: Volume, working: WorkingImage) -> bool:
    """Whether right and left of a scan are the patient's: it says how the patient lies, and the head does lie so.

    In a head that lies across, what the header calls left is in front or behind; whether it is wrong about the
    direction, or about more, is not known.
    """
    return volume.oriented and not working.quarters


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
    brain_hu, mm = working.brain_hu, working.grid.spacing[2]
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
