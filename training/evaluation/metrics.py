"""Agreement of a mask with a reference mask (the paper's section 3.1, "Performance evaluation metrics")."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from scipy import ndimage
from scipy.stats import binomtest

from hemseg.components import labeled_sizes

NSD_TOLERANCE_MM = 0.42  # INSTANCE 2022


def overlap(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Dice, relative volume difference and voxel-wise true positive rate of two masks (z, y, x).

    Both empty: Dice 1. Reference empty: RVD and TPR are NaN, they are not defined.
    """
    a, b = mask.astype(bool), reference.astype(bool)
    both, size_a, size_b = int((a & b).sum()), int(a.sum()), int(b.sum())
    return {
        "dice": 2 * both / (size_a + size_b) if size_a + size_b else 1.0,
        "rvd": abs(size_a - size_b) / size_b if size_b else float("nan"),
        "tpr": both / size_b if size_b else float("nan"),
    }


def surface(mask: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    """Hausdorff distance in mm (maximum) and surface Dice at 0.42 mm as INSTANCE 2022 has them, by MONAI.

    Both are of the surface between voxels, weighted with its area (Nikolov et al. 2018, arXiv:1809.04430), not of
    border voxels.

    Args:
        spacing: (z, y, x) mm.

    Both empty: distance 0, surface Dice 1. One empty: distance infinite, surface Dice 0.
    """
    if not mask.any() or not reference.any():
        same = not mask.any() and not reference.any()
        return {"hd": 0.0 if same else float("inf"), "surface_dice": 1.0 if same else 0.0}
    box = ndimage.find_objects((mask.astype(bool) | reference.astype(bool)).astype(np.uint8))[0]
    a, b = (torch.from_numpy(np.pad(m[box] > 0, 1)) for m in (mask, reference))
    edges, distances, areas = get_edge_surface_distance(a, b, spacing=list(spacing), use_subvoxels=True, symmetric=True)
    area = [of[edge] for of, edge in zip(areas, edges, strict=True)]
    near = sum(float(of[d <= NSD_TOLERANCE_MM].sum()) for of, d in zip(area, distances, strict=True))
    return {
        "hd": max(float(d.max()) for d in distances),
        "surface_dice": near / sum(float(of.sum()) for of in area),
    }


def lesion_counts(mask: np.ndarray, reference: np.ndarray, voxel_ml: float, min_ml: float = 0.1) -> dict[str, int]:
    """Lesions (26-connected, at least ``min_ml``): in the reference, of these found, and false ones in the mask."""
    found = [bool(voxels) for voxels in _touched(reference, mask, voxel_ml, min_ml)]
    true = [bool(voxels) for voxels in _touched(mask, reference, voxel_ml, min_ml)]
    return {"lesions": len(found), "lesions_found": sum(found), "lesions_false": len(true) - sum(true)}


def _touched(mask: np.ndarray, other: np.ndarray, voxel_ml: float, min_ml: float) -> list[int]:
    labels, voxels = labeled_sizes(mask, corners=True)
    sizes = voxels[1:] * voxel_ml
    touched = np.bincount(labels.ravel(), weights=other.ravel(), minlength=len(voxels))[1:]
    return [int(t) for t, s in zip(touched, sizes, strict=True) if s >= min_ml]


def wilson(hits: list[bool]) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); of at least one."""
    interval = binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def summary(rows: list[dict[str, Any]], keys: tuple[str, ...] = ("dice", "rvd", "tpr")) -> dict[str, float]:
    """Mean, standard deviation (n - 1) and median of per-case metrics; NaN is left out."""
    result: dict[str, float] = {"cases": len(rows)}
    for key in keys:
        values = np.array([row[key] for row in rows], dtype=float)
        values = values[np.isfinite(values)]
        if len(values):
            spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            result |= {
                f"{key}_mean": float(values.mean()),
                f"{key}_sd": spread,
                f"{key}_median": float(np.median(values)),
            }
    return result
