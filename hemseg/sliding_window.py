"""What the U-Net answers on the working grid: patches of one fixed shape over the inside of the skull, blended."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from hemseg.components import bounding_box
from hemseg.model import Model
from hemseg.preprocessing import Settings, WorkingImage, network_input

Network = Callable[[np.ndarray], np.ndarray]  # patches (n, channel, z, y, x) -> probability (n, 1, z, y, x)


def working_probability(working: WorkingImage, model: Model) -> np.ndarray:
    """Probability of hemorrhage on the working grid, float32 (z, y, x); 0 outside the skull's inside."""
    manifest = model.manifest
    upright = network_probability(*working.upright, manifest.preprocessing, model, manifest.patch)
    return working.from_upright(upright)


def network_probability(
    hu: np.ndarray, intracranial: np.ndarray, settings: Settings, network: Network, patch: tuple[int, int, int]
) -> np.ndarray:
    """What a network answers on the working grid, float32 (z, y, x); 0 outside the intracranial mask.

    Args:
        hu, intracranial: (z, y, x) on the working grid, see `hemseg.preprocessing.WorkingImage`.
        network: patches (n, channel, *patch) -> probability (n, 1, *patch), both float32.
        patch: (z, y, x).
    """
    probability = np.zeros(hu.shape, np.float32)
    box = input_box(intracranial, settings)
    if box is None:
        return probability
    image = network_input(hu[box], intracranial[box], settings)
    probability[box] = sliding_window(image, network, patch, settings.edge_slices)
    probability[~intracranial] = 0
    return probability


def input_box(intracranial: np.ndarray, settings: Settings) -> tuple[slice, ...] | None:
    """The part of the working grid that the network sees: the box around the mask; None where there is no mask.

    With ``edge_slices``, one slice more on either side, where there is one: what comes beyond the brain is then empty,
    while a stack that ends within the brain goes on with its last slice.
    """
    box = bounding_box(intracranial)
    if box is None or not settings.edge_slices:
        return box
    return slice(max(0, box[0].start - 1), box[0].stop + 1), *box[1:]


def sliding_window(
    image: np.ndarray, model: Network, patch: tuple[int, int, int], edge_slices: bool = False
) -> np.ndarray:
    """Run the network on as few patches of fixed shape as cover the image, and blend where they overlap.

    Args:
        image: (channel, z, y, x); where it is smaller than a patch it is centred in zeros.
        patch: (z, y, x).
        edge_slices: along z the outermost slices are repeated in place of zeros.

    Returns:
        Probability (z, y, x).
    """
    shape = image.shape[1:]
    padded = pad_to_patch(image, patch, edge_slices)
    total = np.zeros(padded.shape[1:], np.float32)
    weight = np.zeros(padded.shape[1:], np.float32)
    blending = _blending_weights(patch)
    for corner in itertools.product(*(_starts(n, p) for n, p in zip(padded.shape[1:], patch))):
        tile = tuple(slice(c, c + p) for c, p in zip(corner, patch))
        total[tile] += blending * model(padded[(None, slice(None), *tile)])[0, 0]
        weight[tile] += blending
    inner = tuple(slice(before, before + n) for (before, _), n in zip(_padding(shape, patch), shape))
    return (total / weight)[inner]


def pad_to_patch(image: np.ndarray, patch: tuple[int, int, int], edge_slices: bool) -> np.ndarray:
    """An image (channel, z, y, x) in the middle of a patch, where it is smaller; arguments as for `sliding_window`."""
    z, *plane = _padding(image.shape[1:], patch)
    longer = np.pad(image, [(0, 0), z, (0, 0), (0, 0)], mode="edge" if edge_slices else "constant")
    return np.pad(longer, [(0, 0), (0, 0), *plane])


def _padding(shape: tuple[int, ...], patch: tuple[int, int, int]) -> list[tuple[int, int]]:
    """What is added before and after along each axis, so that an image is as large as a patch."""
    lacking = [max(0, p - n) for n, p in zip(shape, patch)]
    return [(n // 2, n - n // 2) for n in lacking]


def _starts(size: int, patch: int) -> list[int]:
    """Evenly spread starts of the fewest patches that cover ``size`` with at least a quarter of overlap."""
    if size <= patch:
        return [0]
    count = 1 + -(-(size - patch) // (patch * 3 // 4))
    return [round(i * (size - patch) / (count - 1)) for i in range(count)]


def _blending_weights(patch: tuple[int, int, int]) -> np.ndarray:
    """Blending weights of a patch: largest in the middle, positive everywhere."""
    z, y, x = (1.0 - np.abs(np.arange(n) - (n - 1) / 2) / ((n + 1) / 2) for n in patch)
    return (z[:, None, None] * y[:, None] * x).astype(np.float32)
