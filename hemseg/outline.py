"""Where a lesion ends: at a higher probability than the one that finds it (beyond the paper).

A low threshold finds faint and thin bleeds, and draws a wide outline around those that are certain. So a lesion is
found by one threshold, and its outline lies where the probability reaches another one; but a lesion of which little
reaches that keeps the outline that found it. Two thresholds are Canny's idea (1986) for edges.
"""

from __future__ import annotations

import numpy as np

from hemseg.components import components_above


def narrow_outlines(
    probability: np.ndarray, threshold: float, outline: float, least_ml: float, voxel_ml: float
) -> np.ndarray:
    """The probability, lowered within certain components so that ``threshold`` cuts it where ``outline`` did.

    Args:
        probability: (z, y, x), 0..1.
        threshold: that finds components.
        outline: the probability at which their outline is to lie; not above ``threshold``: nothing is changed.
        least_ml: a component of which less reaches ``outline`` stays as it is.
        voxel_ml: volume of a voxel.

    Returns:
        float32 (z, y, x); in proportion, so that a resampled outline lies where it did; unchanged elsewhere.
    """
    if outline <= threshold or not (probability >= outline).any():
        return probability
    result = probability.copy()
    for where, component in components_above(probability, threshold):
        if int((component & (probability[where] >= outline)).sum()) * voxel_ml >= least_ml:
            result[where][component] *= np.float32(threshold / outline)
    return result
