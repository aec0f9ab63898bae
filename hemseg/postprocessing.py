"""From the network's answer to a mask: certain and confirmed components on the scan's own grid (beyond the paper)."""

from __future__ import annotations

import numpy as np

from hemseg.components import bounding_box, labeled, without_components
from hemseg.lesions import components
from hemseg.manifest import Manifest
from hemseg.outline import narrow_outlines
from hemseg.preprocessing import WorkingImage
from hemseg.second_opinion import Opinion, drop_components_within, drop_unconfirmed_components
from hemseg.volume import Volume


def postprocessed_mask(
    volume: Volume,
    working: WorkingImage,
    probability: np.ndarray,
    manifest: Manifest,
    opinion: Opinion | None = None,
) -> np.ndarray:
    """The network's answer as a mask on the scan's own grid, uint8 (z, y, x).

    Args:
        volume: the scan.
        working: the same on the working grid.
        probability: (z, y, x; working grid), the U-Net's.
        manifest: of the weights, at an operating point.
        opinion: the slice classifier's; without one nothing is dropped on its word.
    """
    certain = keep_confirmed_components(probability, manifest, opinion)
    voxel_ml = float(np.prod(working.grid.spacing)) / 1000
    certain = narrow_outlines(certain, manifest.threshold, manifest.outline_threshold, manifest.outline_ml, voxel_ml)
    mask = volume.from_lps(mask_on_scan(certain, working, manifest.threshold))
    return _drop_implausible_components(mask, volume, manifest)


def keep_confirmed_components(probability: np.ndarray, manifest: Manifest, opinion: Opinion | None) -> np.ndarray:
    """The probability without components that are certain nowhere, or that the slice classifier does not see."""
    certain = drop_uncertain_components(probability, manifest.threshold, manifest.min_peak)
    if opinion is None:
        return certain
    certain = drop_unconfirmed_components(certain, manifest.threshold, opinion.slices, manifest.min_slice_probability)
    return drop_components_within(certain, manifest.threshold, opinion.unconfirmed)


def doubtful_slices(
    mask: np.ndarray,
    volume: Volume,
    working: WorkingImage,
    probability: np.ndarray,
    manifest: Manifest,
    opinion: Opinion | None,
) -> tuple[int, ...]:
    """Slices in which the U-Net sees hemorrhage, no lesion of the mask ends, and nothing is outlined, though the slice
    classifier's probability reaches ``doubt_slice_probability``.

    Not outlined: where in such a slice the U-Net's answer lies is wrong as often as right (docs/method.md).

    Args:
        mask: (z, y, x) on the scan's grid, see `postprocessed_mask`; the others as there.

    Returns:
        Slices of the scan from inferior to superior, counted from 0.
    """
    if opinion is None or not manifest.doubt_slice_probability:
        return ()
    doubtful = np.nan_to_num(opinion.slices, nan=0.0) >= manifest.doubt_slice_probability
    doubtful &= probability.max(axis=(1, 2)) >= manifest.threshold
    slab, in_scan = working.grid.slab, volume.with_voxels(mask).in_lps()[0].max(axis=(1, 2))
    doubtful &= np.maximum.reduceat(in_scan, np.arange(0, len(in_scan), slab)) == 0
    if not doubtful.any():  # of almost all scans
        return ()
    confirmed = keep_confirmed_components(probability, manifest, opinion) >= manifest.threshold
    doubtful &= ~_slices_with_lesions(mask, volume, working, confirmed)
    return tuple(np.flatnonzero(np.repeat(doubtful, slab)[: len(in_scan)]).tolist())


def _slices_with_lesions(mask: np.ndarray, volume: Volume, working: WorkingImage, found: np.ndarray) -> np.ndarray:
    """Slices of the working grid that a mask's lesions reach before they are narrowed, bool (z,): their ends, too.

    Args:
        mask: (z, y, x) on the scan's grid.
        found: bool (z, y, x) on the working grid, the components that the mask is made of.
    """
    labels, _ = labeled(found, corners=True)
    at = working.grid.nearest(volume.indices_in_lps(np.argwhere(mask)))
    in_mask = np.setdiff1d(labels[tuple(at.T)], [0])
    return np.asarray(np.isin(labels, in_mask).any(axis=(1, 2)))


def drop_uncertain_components(probability: np.ndarray, threshold: float, min_peak: float) -> np.ndarray:
    """Probability (z, y, x) without the components above ``threshold`` whose highest value stays below ``min_peak``."""
    if min_peak <= threshold:
        return probability
    return without_components(probability, threshold, lambda where, part: probability[where][part].max() < min_peak)


def mask_on_scan(probability: np.ndarray, working: WorkingImage, threshold: float) -> np.ndarray:
    """Bring the probability back to the scan's grid (LPS order) and threshold it there; uint8 (z, y, x)."""
    mask = np.zeros(working.grid.scan_shape, np.uint8)
    if part := _part_of_scan(probability >= threshold, working):
        mask[:, *part] = working.grid.to_scan(probability, *part) >= threshold
    return mask


def probability_on_scan(probability: np.ndarray, working: WorkingImage, least: float) -> np.ndarray:
    """Probability on the scan's grid in LPS order, float32 (z, y, x), 0 outside the box of all that reaches ``least``.

    That is much faster than `hemseg.segmentation.Segmentation.probability`.
    """
    found = np.zeros(working.grid.scan_shape, np.float32)
    if part := _part_of_scan(probability >= least, working):
        found[:, *part] = working.grid.to_scan(probability, *part)
    return found


def _part_of_scan(included: np.ndarray, working: WorkingImage) -> tuple[slice, slice] | None:
    """The scan's rows and columns around all that is included, bool (z, y, x; working grid); None for nothing."""
    box, grid = bounding_box(included), working.grid
    if box is None:
        return None
    rows, columns = (_scan_slice(box[a], a, grid.scan_spacing, grid.spacing, grid.scan_shape) for a in (1, 2))
    return rows, columns


def _scan_slice(
    part: slice, axis: int, scan: tuple[float, ...], working: tuple[float, ...], shape: tuple[int, ...]
) -> slice:
    """The scan's indices that a part of the working grid reaches, with two pixels to spare."""
    ratio = working[axis] / scan[axis]
    return slice(max(0, int((part.start - 2) * ratio)), min(shape[axis], int((part.stop + 2) * ratio) + 1))


def _drop_implausible_components(mask: np.ndarray, volume: Volume, manifest: Manifest) -> np.ndarray:
    """A mask without the connected components that are too small, or too bright for blood."""
    mask = np.ascontiguousarray(mask)
    for voxels in components(mask):
        where = tuple(voxels.T)
        too_small = len(voxels) * volume.voxel_ml < manifest.min_lesion_ml
        if too_small or (manifest.max_median_hu and np.median(volume.hu[where]) > manifest.max_median_hu):
            mask[where] = 0
    return mask
