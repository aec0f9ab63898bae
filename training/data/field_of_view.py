"""The classifier's field of view: cut out of a prepared scan, pasted back, sampled to the network's size."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hemseg.fields_of_view import corner_of, cut, overlap
from hemseg.preprocessing import leveled

from ..config import Classifier, Config
from .datasets import Prepared


def crop_field_of_view(case: Prepared, config: Config) -> tuple[np.ndarray, tuple[int, int]]:
    """Cut the classifier's field of view out of a prepared scan.

    Returns:
        HU (z, y, x) on the working grid, at the brain's level if ``classifier.leveled``; padded with the lowest of
        ``hu_range`` where the field leaves the scan (and outside the intracranial mask if ``stripped``). And the
        field's corner (y, x) on the working grid, possibly negative.
    """
    settings, grid = config.classifier, config.preprocessing
    size = (round(settings.field_mm[0] / grid.in_plane_mm), round(settings.field_mm[1] / grid.in_plane_mm))
    corner = corner_of(case.intracranial, size)
    hu, background = case.hu, grid.hu_range[0]
    if settings.leveled:
        hu = leveled(hu, case.intracranial, grid)
    if settings.stripped:
        hu = np.where(case.intracranial, hu, np.float32(background))
    return cut(hu, corner, size, background), corner


def paste(window: np.ndarray, corner: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of `cut`: (z, y, x) of ``shape`` with the window at its corner, zero elsewhere."""
    result = np.zeros((window.shape[0], *shape[1:]), window.dtype)
    inner, outer = overlap(shape[1:], corner, window.shape[1:])
    result[(slice(None), *outer)] = window[(slice(None), *inner)]
    return result


def to_network_size(hu: Tensor, settings: Classifier) -> Tensor:
    """(n, y, x) of the field of view, sampled to ``image_size``."""
    return F.interpolate(hu[:, None], settings.image_size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def network_slices(case: Prepared, config: Config) -> Tensor:
    """All slices of a prepared scan as the classifier sees them, float32 (z, *image_size), HU."""
    hu, _ = crop_field_of_view(case, config)
    return to_network_size(torch.from_numpy(np.ascontiguousarray(hu)), config.classifier)
