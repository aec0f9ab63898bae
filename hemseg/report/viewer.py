"""``report.html``: one file that opens offline, with the slices, the mask, the lesions and the disclaimer in it.

It opens as fast as it can be decoded: slices, masks and probabilities are small PNGs, each decoded when it is shown.
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
from hemseg.kinds import CODES, UNSURE, UNSURE_CODE
from hemseg.names import printable
from hemseg.postprocessing import probability_on_scan
from hemseg.report.templates import filled, sides
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
_BETWEEN_LEVELS = (HU_OF_LEVEL[1:] + HU_OF_LEVEL[:-1]) / 2
WINDOWS = {"brain": (0, 80), "subdural": (-50, 150), "bone": (-500, 1500)}
HEAT_LEAST, HEAT_STEP = 0.02, 4  # least probability shown; step of the 8 bits, so that PNG has less to store
KIND_STEP = 40  # of the 8 bits of a mask, from one kind's code to the next
COLORS = {  # of kinds on the page, RGB; what is unsure is red, as all is without kinds
    "intraparenchymal": (255, 140, 0),
    "intraventricular": (80, 160, 255),
    "subarachnoid": (230, 220, 60),
    "subdural": (70, 200, 120),
    "epidural": (220, 110, 230),
    UNSURE: (255, 40, 40),
}
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
    between = "{:.1f} to {:.1f} mL".format(*found["volume_ml_range"]) if "volume_ml_range" in found else ""
    facts = {
        "volume": result.headline,
        "range": between,
        "kinds": "right in {right} of {lesions} lesions of unseen scans".format(**found["kinds_measured"])
        if "kinds_measured" in found
        else "",
        "mask": "given, not made by hemseg" if found["mask"] == "given" else "",
        "scan": _geometry(result),
        "series": found["series"],
        "hemseg": f"{found['hemseg']}, weights {found['weights']['name']} {found['weights']['version']} "
        f"({found['weights']['sha256'][:12]}), {found['device']}, {found['seconds']:.1f} s",
    }
    wrong = ' class="implausible"' if found["implausible"] else ""
    rows = "".join(
        f"<dt>{key}</dt><dd{wrong if key == 'volume' else ''}>{html.escape(str(value))}</dd>"
        for key, value in facts.items()
        if value
    )
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
        "KIND": "<th>kind (probability)</th>" if result.kinds else "",
        "DATA": data,
        **sides(result.sides_are_known),
    }
    return filled("report.html", parts)


def _geometry(result: Segmentation) -> str:
    z, y, x = result.volume.hu.shape
    return f"{x} × {y} × {z} voxels of {' × '.join(f'{v:.2f}' for v in result.volume.spacing)} mm"


def _lesion_rows(result: Segmentation, found: dict[str, Any]) -> str:
    """Table rows; each knows the picture to go to: the one on which its A and B are drawn."""
    rows, named = [], bool(result.kinds)
    for lesion, measured in zip(found["lesions"], result.measured, strict=True):
        kind = f"<td>{lesion['kind']} ({lesion['kind_probability']:.2f})</td>" if named else ""
        first, last = measured.axial_slices
        centroid = ", ".join(f"{v:.0f}" for v in lesion["centroid_mm"])
        abc = " × ".join(f"{cm:.1f}" for cm in lesion["abc_cm"])
        rows.append(
            f'<tr tabindex="0" data-slice="{measured.abc2.slice}"><td>{lesion["volume_ml"]:.1f}</td>{kind}'
            f'<td title="{abc} cm">{lesion["abc2_ml"]:.1f}</td><td>{lesion["side"]}</td>'
            f"<td>{first + 1}–{last + 1}</td><td>{centroid}</td><td>{lesion['mean_hu']:.0f}</td>"
            f"<td>{lesion['skull_mm']:.0f}</td></tr>"
        )
    return "".join(rows) or '<tr><td colspan="8">none</td></tr>'


def _lines(result: Segmentation, size: tuple[int, int]) -> list[dict[str, Any]]:
    """A and B of each lesion, on the picture of its largest slice: ends (x, y) in the picture's pixels, and cm."""
    (_, rows, columns), (width, height) = result.volume.in_lps()[0].shape, size
    return [
        {
            "slice": abc2.slice,
            "name": name,
            "cm": round(cm, 1),
            "ends": [[round((x + 0.5) * width / columns, 1), round((y + 0.5) * height / rows, 1)] for y, x in line],
        }
        for abc2 in (lesion.abc2 for lesion in result.measured)
        for name, cm, line in (("A", abc2.a_cm, abc2.a_line), ("B", abc2.b_cm, abc2.b_line))
    ]


def _heat(plane: np.ndarray, size: tuple[int, int]) -> str:
    """The probability of a slice as PNG; '' where there is none."""
    if plane.max(initial=0) < HEAT_LEAST:
        return ""
    small = cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_AREA)
    levels = np.round(small * (252 / HEAT_STEP)).astype(np.uint8) * np.uint8(HEAT_STEP)
    return _png(np.where(small < HEAT_LEAST, np.uint8(0), levels))


def _slices(result: Segmentation) -> dict[str, Any]:
    """Pictures, masks and areas, from inferior to superior, the patient's right on the left."""
    hu, (mm_z, mm_y, mm_x) = result.volume.in_lps()
    mask, _ = result.volume.with_voxels(result.kind_mask if result.kinds else result.mask).in_lps()
    answer = result.working_probability
    probability = None if answer is None else probability_on_scan(answer, result.working, HEAT_LEAST)
    size = picture_size(hu)
    return {
        "pictures": [picture(plane, size) for plane in hu],
        "masks": [mask_picture(plane, size, KIND_STEP) for plane in mask],
        "heat": [] if probability is None else [_heat(plane, size) for plane in probability],
        "lines": _lines(result, size),
        "kinds": {
            KIND_STEP * code: {"name": name, "color": COLORS[name]}
            for name, code in (*CODES.items(), (UNSURE, UNSURE_CODE))
            if any(kind.name == name for kind in result.kinds)
        },
        "doubtful": list(result.doubtful_slices),
        "area_cm2": [round(float((m > 0).sum()) * mm_y * mm_x / 100, 2) for m in mask],
        "levels": [round(float(v), 1) for v in HU_OF_LEVEL],
        "windows": WINDOWS,
        "size": size,
        "aspect": (size[0] * hu.shape[1] * mm_y) / (size[1] * hu.shape[2] * mm_x),
        "mm_z": mm_z,
    }


def picture_size(hu: np.ndarray) -> tuple[int, int]:
    """Width and height of a scan's pictures on a page, hu (z, y, x): smaller where there are many."""
    most = PIXELS if len(hu) <= MANY else PIXELS_OF_MANY
    scale = min(1.0, most / max(hu.shape[1:]))
    return max(1, round(hu.shape[2] * scale)), max(1, round(hu.shape[1] * scale))


def picture(plane: np.ndarray, size: tuple[int, int]) -> str:
    """A slice (y, x) in HU as a PNG of `HU_OF_LEVEL`'s levels, in base64."""
    small = cv2.resize(np.ascontiguousarray(plane, np.float32), size, interpolation=cv2.INTER_AREA)
    return _png(np.searchsorted(_BETWEEN_LEVELS, small).astype(np.uint8))


def mask_picture(plane: np.ndarray, size: tuple[int, int], step: int) -> str:
    """A slice (y, x) of a mask or of codes, uint8, times ``step`` as PNG in base64; '' where it is empty."""
    small = cv2.resize(np.ascontiguousarray(plane), size, interpolation=cv2.INTER_NEAREST)
    return _png(small * np.uint8(step)) if small.any() else ""


def _png(array: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", array)[1].tobytes()).decode()
