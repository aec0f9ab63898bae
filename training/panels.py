"""Pictures of what a stage did, like the paper's Fig. 3. They show the scans, so they stay in the run's folder."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from training.pseudolabels import Choice

COLORS = np.array([[0, 0, 0], [200, 120, 40], [60, 180, 60], [40, 200, 230], [60, 60, 240], [230, 80, 230]], np.uint8)


def write_panel(slices: list[tuple[np.ndarray, np.ndarray, Choice]], hu_range: tuple[float, float], path: Path) -> None:
    """One row a slice: slice, activation map, clusters, pseudo-label. At most eight rows, spread over the lesion."""
    rows = []
    for i in np.unique(np.linspace(0, len(slices) - 1, min(8, len(slices))).round().astype(int)):
        hu, activation, choice = slices[i]
        gray = np.clip((hu - hu_range[0]) / (hu_range[1] - hu_range[0]) * 255, 0, 255).astype(np.uint8)
        plain = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
        heat = cv2.applyColorMap((activation * 255).astype(np.uint8), cv2.COLORMAP_JET)
        colored = np.where(choice.clusters[..., None] > 0, COLORS[choice.clusters % len(COLORS)], plain)
        outlined = plain.copy()
        contours, _ = cv2.findContours(choice.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(outlined, contours, -1, (0, 0, 255), 1)
        rows.append(np.hstack([plain, cv2.addWeighted(plain, 0.6, heat, 0.4, 0), colored, outlined]))
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.vstack(rows))
