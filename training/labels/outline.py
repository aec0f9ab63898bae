"""From a chosen cluster to the bleed's outline: the half-maximum boundary (beyond the paper).

The chosen cluster is the bleed's bright core: its rim, dimmed by partial volume and by the filter, falls into the
next cluster. Between two tissues a scanner's blur puts the edge where the intensity is halfway between them, so the
component is grown to that level, which needs neither a mask nor a fixed number of HU.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

BRAIN_HU = 60.0  # brighter surroundings (bone, another bleed) say nothing about the tissue around a bleed
RING_MM = 6.0
CORE_PIXELS, RING_PIXELS = 5, 10  # fewer have no usable mean


def half_maximum(mask: np.ndarray, intensities: np.ndarray, inside: np.ndarray, reach_px: int, mm: float) -> np.ndarray:
    """Outline each in-plane component of a slice's pseudo-label at half its contrast to the brain around it.

    Args:
        mask: bool (y, x), the chosen cluster.
        intensities: HU (y, x), smoothed.
        inside: bool (y, x), the intracranial mask.
        reach_px: how far outside the component its outline may lie.
        mm: pixel size.

    Returns:
        bool (y, x). A component that is too small for a core, or has no brain around it, stays as it is.
    """
    result = np.zeros_like(mask)
    components, _ = ndimage.label(mask, np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        margin = reach_px + round(RING_MM / mm) + 1
        window = tuple(
            slice(max(0, s.start - margin), min(size, s.stop + margin)) for s, size in zip(box, mask.shape, strict=True)
        )
        component = components[window] == number
        result[window] |= _outline_at_half_maximum(
            component, intensities[window], inside[window], reach_px, round(RING_MM / mm)
        )
    return result


def _outline_at_half_maximum(
    component: np.ndarray, hu: np.ndarray, inside: np.ndarray, reach_px: int, ring_px: int
) -> np.ndarray:
    core = ndimage.binary_erosion(component)
    near = ndimage.binary_dilation(component, iterations=reach_px) & inside
    ring = ndimage.binary_dilation(near, iterations=ring_px) & ~near & inside & (hu < BRAIN_HU)
    if component.sum() <= CORE_PIXELS or ring.sum() < RING_PIXELS:
        return component
    level = (np.median(hu[core if core.sum() > CORE_PIXELS else component]) + np.median(hu[ring])) / 2
    bright, _ = ndimage.label(near & (hu >= level))
    touching = np.unique(bright[component & (bright > 0)])
    if not touching.any():
        return component
    return (
        ndimage.binary_fill_holes(np.isin(bright, touching[touching > 0])) & near
    )  # a ring around the brain has no hole
