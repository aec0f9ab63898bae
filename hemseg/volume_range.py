"""A volume with a range: how far it moves with the threshold, and when the network sees the head mirrored or shifted.

The network's answer is cut at a low and at a high threshold, for the scan as it is, mirrored from left to right, and
shifted by part of a pooling step. The smallest and the largest of these volumes are the range, widened by a margin that
makes it hold the reference in nine of ten scans (split conformal prediction: Vovk, Gammerman, Shafer 2005; Romano et
al. 2019). Thresholds and margin are calibrated by ``python -m training range`` and stand in the manifest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hemseg.errors import HemsegError
from hemseg.manifest import Manifest
from hemseg.model import Model
from hemseg.postprocessing import postprocessed_mask
from hemseg.preprocessing import WorkingImage, network_input
from hemseg.segmentation import Segmentation
from hemseg.sliding_window import input_box, sliding_window

SHIFT = (1, 6, 6)  # (z, y, x) voxels of the working grid that are put before the image; in plane the head moves by half


def volume_range(result: Segmentation, model: Model) -> tuple[float, float]:
    """Lowest and highest volume in mL; the result's own volume lies between. It takes two more runs of the network.

    Raises:
        HemsegError: the mask was given, no network made it.
    """
    low_at, high_at = model.manifest.range_thresholds
    volumes = volumes_at(result, model, (low_at, high_at))
    low, high = widened(min(volumes[high_at]), max(volumes[low_at]), model.manifest.range_margin)
    return min(low, result.volume_ml), max(high, result.volume_ml)


def widened(low: float, high: float, margin: float) -> tuple[float, float]:
    """A range with a margin, a share of either end."""
    return low / (1 + margin), high * (1 + margin)


def augmented_probabilities(working: WorkingImage, model: Model) -> list[np.ndarray]:
    """The network's answers, float32 (z, y, x; working grid), to the scan mirrored and to the scan shifted, each
    brought back to the scan's place.
    """
    manifest, settings = model.manifest, model.manifest.preprocessing
    hu, intracranial = working.upright
    box = input_box(intracranial, settings)
    if box is None:
        return [np.zeros(working.hu.shape, np.float32)]
    image = network_input(hu[box], intracranial[box], settings)

    def run(augmented: np.ndarray) -> np.ndarray:
        return sliding_window(augmented, model, manifest.patch, settings.edge_slices)

    z, y, x = SHIFT
    longer = np.pad(image, [(0, 0), (z, 0), (0, 0), (0, 0)], mode="edge" if settings.edge_slices else "constant")
    shifted = np.pad(longer, [(0, 0), (0, 0), (y, 0), (x, 0)])
    answers = (run(np.ascontiguousarray(image[..., ::-1]))[..., ::-1], run(shifted)[z:, y:, x:])
    found = []
    for answer in answers:
        probability = np.zeros(hu.shape, np.float32)
        probability[box] = answer
        probability[~intracranial] = 0
        found.append(working.from_upright(probability))
    return found


def manifest_at_threshold(manifest: Manifest, level: float) -> Manifest:
    """The same weights with lesions that are outlined at another probability."""
    if not manifest.outline_threshold:
        return replace(manifest, threshold=level)
    return replace(manifest, threshold=min(manifest.threshold, level), outline_threshold=level)


def volumes_at(result: Segmentation, model: Model, thresholds: tuple[float, ...]) -> dict[float, list[float]]:
    """The volumes in mL, by threshold, of the scan as it is, mirrored, and shifted.

    Raises:
        HemsegError: the mask was given, no network made it.
    """
    if result.working_probability is None:
        raise HemsegError("a mask that was given has no range; segment the scan for it.")
    probabilities = [result.working_probability, *augmented_probabilities(result.working, model)]
    volume, working = result.volume, result.working
    found = {}
    for threshold in thresholds:
        manifest = manifest_at_threshold(model.manifest, threshold)
        masks = (
            postprocessed_mask(volume, working, probability, manifest, result.opinion) for probability in probabilities
        )
        found[threshold] = [float(mask.sum()) * volume.voxel_ml for mask in masks]
    return found
