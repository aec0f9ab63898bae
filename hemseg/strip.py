"""The learned skull strip: a small network that knows the inside of the skull (beyond the paper).

The paper's strip (`hemseg.preprocessing.intracranial_mask`) needs bone that is brighter than everything else and a
hull that holds no face. A whole head in a narrow window offers neither. Here a 2D U-Net on pixels of 2 mm looks at a
slice and its two neighbours and says where the brain, its fluid and its vessels are; bone then draws the exact edge.
The network was trained on scans of which a copy with everything outside the skull taken away exists: a mask that nobody
drew.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from hemseg.components import labeled_sizes, without_holes

HU_RANGE = (-20.0, 100.0)  # what the network sees; the training data hold no more
STRIP_MM = 2.0  # its pixels
SIDE_MULTIPLE = 16  # its strides
PLATEAU_HU = 1.0  # a voxel so near to the highest value of a narrow window is saturated
CERTAIN, POSSIBLE = 0.5, 0.15  # probability inside, and in the rim in which bone draws the edge
RIM_MM = 2.0
AIR_HU = -15.0  # tissue is brighter
CLOSING_MM, OPENING_MM = 3.0, 3.0
BRAIN_CM2 = 20.0  # enclosed regions of this area are brain: orbits, sinuses, diploe and the vertebral canal are smaller
MAX_LOST_SHARE = 0.05  # share of a slice's brain
MIN_ML, MIN_OVERLAP = 1.0, 0.5  # of a component beside the largest one: it lies above or below it

Network = Callable[[np.ndarray], np.ndarray]  # (n, 3, y, x) in 0..1 -> probability (n, 1, y, x); both float32


def learned_mask(hu: np.ndarray, spacing: tuple[float, float, float], network: Network) -> np.ndarray:
    """The intracranial mask of a scan.

    Args:
        hu: (z, y, x) on the working grid, clipped to `HU_RANGE` or a window within it.
        spacing: (z, y, x) mm.
        network: see `Network`.

    Returns:
        bool (z, y, x): brain, CSF, vessels and blood inside the skull; no bone at its edge.
    """
    probability = intracranial_probability(hu, spacing, network)
    inside = _connected_along_z(probability >= CERTAIN, spacing)
    if not inside.any():
        return inside
    bone = hu >= saturation(hu)
    rim_disc = disc(RIM_MM, spacing[1])
    result = np.empty_like(inside)
    for z, plane in enumerate(inside):
        near = cv2.dilate(plane.astype(np.uint8), rim_disc).astype(bool)
        deep = cv2.erode(plane.astype(np.uint8), rim_disc, borderValue=1).astype(bool)
        # saturated voxels deep inside may be blood at the top of a window; in the rim they are bone
        rim = near & ~deep & ~bone[z] & (probability[z] >= POSSIBLE)
        result[z] = without_holes(deep | rim)
    return result


def intracranial_probability(hu: np.ndarray, spacing: tuple[float, float, float], network: Network) -> np.ndarray:
    """The network's probability on the grid of ``hu``, float32 (z, y, x); arguments as for `learned_mask`."""
    size = [max(1, round(n * mm / STRIP_MM)) for n, mm in zip(hu.shape[1:], spacing[1:], strict=True)]
    small = np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA) for plane in hu])
    image = network_slices(standardized(small, float(hu.min()), float(hu.max())))
    padding = [(0, 0), (0, 0), *((0, -n % SIDE_MULTIPLE) for n in size)]
    answer = network(np.pad(image, padding))[:, 0, : size[0], : size[1]]
    return np.stack([cv2.resize(p, hu.shape[:0:-1], interpolation=cv2.INTER_LINEAR) for p in answer])


def standardized(hu: np.ndarray, low: float, high: float) -> np.ndarray:
    """Put what is saturated in a narrow window where it is in the full one: bone to 100 HU, air to -20.

    Args:
        hu: any shape.
        low, high: lowest and highest value of the scan.
    """
    bottom, top = HU_RANGE
    result = np.where(hu >= min(high, top) - PLATEAU_HU, np.float32(top), hu)
    return np.where(hu <= max(low, bottom) + PLATEAU_HU, np.float32(bottom), result).astype(np.float32)


def network_slices(hu: np.ndarray) -> np.ndarray:
    """Each slice (z, y, x; HU) between its neighbours, float32 (z, 3, y, x) in 0..1; the ends are repeated."""
    planes = scaled(hu)
    padded = np.concatenate([planes[:1], planes, planes[-1:]])
    return np.stack([padded[:-2], padded[1:-1], padded[2:]], axis=1)


def scaled(hu: np.ndarray) -> np.ndarray:
    """HU of `HU_RANGE` to 0..1, float32."""
    low, high = HU_RANGE
    return ((hu - low) / (high - low)).astype(np.float32)


def saturation(hu: np.ndarray) -> float:
    """HU from which on voxels are saturated: bone, or blood at the top of a narrow window."""
    return min(float(hu.max()), HU_RANGE[1]) - PLATEAU_HU


def _connected_along_z(inside: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The largest component and those above and below it: blank slices cut a stack, another head lies beside."""
    labels, sizes = labeled_sizes(inside)
    if len(sizes) <= 2:  # the background and one component
        return inside
    main = labels == sizes.argmax()
    shadow = main.any(axis=0)
    least = MIN_ML * 1000 / float(np.prod(spacing))
    keep = np.zeros(len(sizes), bool)
    keep[sizes.argmax()] = True
    for i in np.flatnonzero(sizes >= least):
        own = (labels == i).any(axis=0)
        keep[i] |= (own & shadow).sum() >= MIN_OVERLAP * own.sum()
    return keep[labels]


def disc(radius_mm: float, mm: float) -> np.ndarray:
    """A disc in plane as OpenCV's morphology takes it, of at least one pixel."""
    side = 2 * max(1, round(radius_mm / mm)) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))


def brain_of(plane: np.ndarray, top: float, mm: float) -> np.ndarray:
    """The brain of an axial slice: what is not air inside the filled bone contour.

    Bone is what reaches ``top``; sutures and thin gaps are bridged (closing by 3 mm); what the contour encloses
    without being bone or air, opened by 3 mm, in regions of at least 20 cm². A slice whose contour is open (a
    craniectomy, the face) has none and is not measured.

    Args:
        plane: float (y, x), HU.
        top: HU from which on voxels are bone.
        mm: pixel size.

    Returns:
        bool (y, x).
    """
    bone = (plane >= top).astype(np.uint8)
    margin = round(CLOSING_MM / mm) + 1
    padded = np.pad(bone, margin)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, disc(CLOSING_MM, mm))
    outside = 2
    cv2.floodFill(closed, None, (0, 0), outside)  # the margin is all round; what it does not reach is enclosed
    filled = closed[margin:-margin, margin:-margin] != outside
    inside = (filled & (bone == 0) & (plane > AIR_HU)).astype(np.uint8)
    opened = cv2.morphologyEx(inside, cv2.MORPH_OPEN, disc(OPENING_MM, mm))
    labels, sizes = labeled_sizes(opened)
    return (sizes * mm * mm / 100 >= BRAIN_CM2)[labels]


def slices_losing_brain(hu: np.ndarray, intracranial: np.ndarray, spacing: tuple[float, float, float]) -> list[int]:
    """The slices in which the mask lacks more than 5 % of the brain (`brain_of`), from 0 upwards.

    Args:
        hu, intracranial: (z, y, x) on the working grid.
        spacing: (z, y, x) mm.
    """
    top = saturation(hu)
    losing = []
    for z, plane in enumerate(hu):
        brain = brain_of(plane, top, spacing[1])
        if (brain & ~intracranial[z]).sum() > MAX_LOST_SHARE * brain.sum():
            losing.append(z)
    return losing
