"""How bright the brain of a slice is."""

from __future__ import annotations

import numpy as np

BRAIN_HU = (15.0, 60.0)
BRAIN_DEFAULT = 30.0


def brain_level(intensities: np.ndarray, inside: np.ndarray) -> float:
    """Median HU of the brain of a slice; 30 HU where there is none."""
    brain = intensities[inside & (intensities > BRAIN_HU[0]) & (intensities < BRAIN_HU[1])]
    return float(np.median(brain)) if brain.size else BRAIN_DEFAULT
