"""Pictures of what the stages did, like the paper's Fig. 3. They show the scans, so they stay in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

COLORS = np.array(
    [[0, 0, 0], [200, 120, 40], [60, 180, 60], [40, 200, 230], [60, 60, 240], [230, 80, 230], [230, 230, 80]], np.uint8
)
RED, GREEN, GRAY = (0, 0, 255), (60, 200, 60), (170, 170, 170)
ROWS = 8


@dataclass(frozen=True, eq=False)
class PanelRow:
    """One slice of a panel, all (y, x). What is None has no column."""

    hu: np.ndarray
    activation: np.ndarray | None = None  # 0..1
    clusters: np.ndarray | None = None  # 0 outside, numbers from 1
    label: np.ndarray | None = None
    prediction: np.ndarray | None = None
    reference: np.ndarray | None = None
    outlines: dict[str, np.ndarray] = field(default_factory=dict)  # bool, further columns by their titles
    caption: str = ""  # in the slice's corner


def panel(slices: list[PanelRow], hu_range: tuple[float, float]) -> np.ndarray:
    """One row per slice: slice, activation map, clusters, pseudo-label, prediction, reference; uint8 (y, x, 3), BGR.

    At most eight rows, spread over the lesion.
    """
    rows = []
    for i in np.unique(np.linspace(0, len(slices) - 1, min(ROWS, len(slices))).round().astype(int)):
        columns = _columns(slices[i], hu_range)
        rows.append(np.hstack(list(columns.values())))
    header = np.zeros((18, rows[0].shape[1], 3), np.uint8)
    width = slices[0].hu.shape[1]
    for number, name in enumerate(columns):
        cv2.putText(header, name, (number * width + 4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, GRAY, 1, cv2.LINE_AA)
    return np.vstack([header, *rows])


def write_panel(slices: list[PanelRow], hu_range: tuple[float, float], path: Path) -> None:
    """Write `panel` as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), panel(slices, hu_range))


def _columns(slice_: PanelRow, hu_range: tuple[float, float]) -> dict[str, np.ndarray]:
    low, high = hu_range
    gray = np.clip((slice_.hu - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    plain = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
    columns = {"slice": plain}
    if slice_.activation is not None:
        heat = cv2.applyColorMap((slice_.activation * 255).astype(np.uint8), cv2.COLORMAP_JET)
        columns["map"] = cv2.addWeighted(plain, 0.6, heat, 0.4, 0)
    if slice_.clusters is not None:
        colors = COLORS[1 + (slice_.clusters - 1) % (len(COLORS) - 1)]
        columns["clusters"] = np.where(slice_.clusters[..., None] > 0, colors, plain)
    for name, mask, color in (
        ("pseudo-label", slice_.label, RED),
        ("prediction", slice_.prediction, RED),
        ("reference", slice_.reference, GREEN),
    ):
        if mask is not None:
            columns[name] = _outlined(plain, mask, color)
    columns |= {name: _outlined(plain, mask, RED) for name, mask in slice_.outlines.items()}
    if slice_.caption:
        columns["slice"] = plain.copy()
        corner = (3, plain.shape[0] - 5)
        cv2.putText(columns["slice"], slice_.caption, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.35, GRAY, 1, cv2.LINE_AA)
    return columns


def _outlined(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    result = picture.copy()
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(result, contours, -1, color, 1)
    return result
