"""``report.html``: one file that opens offline, with the slices, the mask, the lesions and the disclaimer in it.

Hounsfield units are squeezed into 8 bits, finely where brain and blood lie, coarsely in air and bone, so that each
slice is a small PNG and the page can still change its window.
"""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hemseg.io.files import write_text
from hemseg.names import printable
from hemseg.report.templates import filled
from hemseg.segmentation import Segmentation

# grey level -> HU: single HU from -20 to 100, coarser steps outside
HU_OF_LEVEL = np.concatenate(
    [
        np.linspace(-1000, -200, 9)[:-1],
        np.arange(-200, -20, 10),
        np.arange(-20, 100, 1),
        np.arange(100, 300, 5),
        np.linspace(300, 2000, 256 - 8 - 18 - 120 - 40),
    ]
).astype(np.float32)
WINDOWS = {"brain": (0, 80), "subdural": (-50, 150), "bone": (-500, 1500)}
MANY, PIXELS, PIXELS_OF_MANY = 64, 512, 256  # beyond so many slices, pictures of half the size


def write_page(result: Segmentation, found: dict[str, Any], path: Path) -> None:
    """Write the page of a result, all or nothing.

    Args:
        found: `hemseg.report.findings.findings`.

    Raises:
        HemsegError: it cannot be written.
    """
    write_text(page(result, found), path)


def page(result: Segmentation, found: dict[str, Any]) -> str:
    """The page as text. Whatever comes from files or headers is escaped."""
    data = json.dumps(_slices(result)).replace("<", "\\u003c")  # no text may end the script
    facts = {
        "volume": f"{found['volume_ml']:.1f} mL in {len(found['lesions'])} lesion{'s' * (len(found['lesions']) != 1)}"
        if found["lesions"]
        else "no hemorrhage found",
        "scan": _geometry(result),
        "series": found["series"],
        "hemseg": f"{found['hemseg']}, weights {found['weights']['name']} {found['weights']['version']} "
        f"({found['weights']['sha256'][:12]}), {found['device']}, {found['seconds']:.1f} s",
    }
    rows = "".join(f"<dt>{key}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items() if value)
    red = len(found["implausible"])  # they are the first of the warnings
    warned = "".join(
        f'<li class="implausible">Implausible: {html.escape(text)}</li>' if i < red else f"<li>{html.escape(text)}</li>"
        for i, text in enumerate(found["warnings"])
    )
    parts = {
        "MARK": html.escape(found["made_by"]),
        "TITLE": html.escape(printable(found["case"])),
        "NOTICE": html.escape(found["notice"]),
        "FACTS": rows,
        "WARNINGS": f'<ul class="warnings">{warned}</ul>' if warned else "",
        "LESIONS": _lesion_rows(result, found),
        "DATA": data,
    }
    return filled("report.html", parts)


def _geometry(result: Segmentation) -> str:
    z, y, x = result.volume.hu.shape
    return f"{x} × {y} × {z} voxels of {' × '.join(f'{v:.2f}' for v in result.volume.spacing)} mm"


def _lesion_rows(result: Segmentation, found: dict[str, Any]) -> str:
    """Table rows; each knows the picture to go to."""
    volume = result.volume
    rows = []
    for lesion in found["lesions"]:
        index = np.linalg.solve(volume.cosines, np.array(lesion["centroid_mm"]) - volume.origin) / volume.spacing
        voxel = np.clip(np.round(index[::-1]).astype(int), 0, np.array(volume.hu.shape) - 1)
        z = int(volume.indices_in_lps(voxel[None])[0, 0])
        first, last = lesion["slices"]
        centroid = ", ".join(f"{v:.0f}" for v in lesion["centroid_mm"])
        rows.append(
            f'<tr tabindex="0" data-slice="{z}"><td>{lesion["volume_ml"]:.1f}</td><td>{lesion["side"]}</td>'
            f"<td>{first + 1}–{last + 1}</td><td>{centroid}</td><td>{lesion['mean_hu']:.0f}</td>"
            f"<td>{lesion['skull_mm']:.0f}</td></tr>"
        )
    return "".join(rows) or '<tr><td colspan="6">none</td></tr>'


def _slices(result: Segmentation) -> dict[str, Any]:
    """Pictures, masks and areas, from inferior to superior, the patient's right on the left."""
    hu, (mm_z, mm_y, mm_x) = result.volume.in_lps()
    mask, _ = result.volume.with_voxels(result.mask).in_lps()
    most = PIXELS if len(hu) <= MANY else PIXELS_OF_MANY
    scale = min(1.0, most / max(hu.shape[1:]))
    size = (max(1, round(hu.shape[2] * scale)), max(1, round(hu.shape[1] * scale)))
    middles = (HU_OF_LEVEL[1:] + HU_OF_LEVEL[:-1]) / 2
    pictures, masks = [], []
    for plane, blood in zip(hu, mask, strict=True):
        small = cv2.resize(np.ascontiguousarray(plane, np.float32), size, interpolation=cv2.INTER_AREA)
        pictures.append(_png(np.searchsorted(middles, small).astype(np.uint8)))
        found = cv2.resize(np.ascontiguousarray(blood), size, interpolation=cv2.INTER_NEAREST)
        masks.append(_png(found * np.uint8(255)) if found.any() else "")
    return {
        "pictures": pictures,
        "masks": masks,
        "area_cm2": [round(float(m.sum()) * mm_y * mm_x / 100, 2) for m in mask],
        "levels": [round(float(v), 1) for v in HU_OF_LEVEL],
        "windows": WINDOWS,
        "size": size,
        "aspect": (size[0] * hu.shape[1] * mm_y) / (size[1] * hu.shape[2] * mm_x),
        "mm_z": mm_z,
    }


def _png(array: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", array)[1].tobytes()).decode()
