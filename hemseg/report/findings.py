"""What people read of a result: measurements as JSON, pictures of slices with the hemorrhage outlined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from hemseg import __version__
from hemseg.io.files import write_bytes
from hemseg.io.marks import mark, marked_jpeg, marked_png
from hemseg.lesions import MeasuredLesion
from hemseg.names import printable
from hemseg.segmentation import Segmentation

if TYPE_CHECKING:
    from hemseg.model import Model

WINDOW = (0.0, 80.0)  # HU, the brain window
COLUMNS, ROWS, TILE = 4, 3, 300  # px
MAX_DOUBTFUL = 6
RED, WHITE, GRAY, YELLOW = (60, 60, 255), (255, 255, 255), (170, 170, 170), (60, 220, 255)


def overlay(result: Segmentation, title: str = "") -> np.ndarray:
    """Twelve slices in the brain window, hemorrhage outlined in red, patient's right on the left (where that is known).

    The slices are spread over the hemorrhage and a slice beyond at either end, or over the whole scan if
    nothing was found; up to six doubtful ones take the place of others, with a yellow frame. What is implausible about
    the result stands above them, in red.

    Returns:
        uint8 (y, x, 3), BGR.
    """
    volume = result.volume
    hu, (_, mm_y, mm_x) = volume.in_lps()
    mask, _ = volume.with_voxels(result.mask).in_lps()
    doubtful = result.doubtful_slices
    tiles = [_tile(hu[z], mask[z], mm_y, mm_x, z, result) for z in _slices_to_show(mask, doubtful)]
    tiles += [np.zeros((TILE, TILE, 3), np.uint8)] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    header = np.zeros((64 + 26 * len(result.implausible), COLUMNS * TILE, 3), np.uint8)
    color = YELLOW if doubtful else WHITE
    _write(header, f"{title}  {result.headline}".strip(), (12, 28), color, 0.7)
    _write(header, "hemseg - research only, not a medical device", (12, 52), GRAY, 0.45)
    for line, text in enumerate(result.implausible):
        _write(header, f"implausible: {text}", (12, 78 + 26 * line), RED, 0.6)
    return np.vstack([header, *rows])


def _slices_to_show(mask: np.ndarray, doubtful: tuple[int, ...]) -> list[int]:
    """The slices to show: spread over what is outlined; the one with most of it, and doubtful ones, take the place of
    their neighbours, of those without an outline first.
    """
    areas = mask.sum(axis=(1, 2), dtype=np.int64)
    hit = np.flatnonzero(areas)
    first, last = (max(0, hit[0] - 1), min(len(mask) - 1, hit[-1] + 1)) if len(hit) else (0, len(mask) - 1)
    if last - first + 1 < COLUMNS * ROWS:  # show its neighbours rather than nothing
        first = max(0, min((first + last) // 2 - COLUMNS * ROWS // 2, len(mask) - COLUMNS * ROWS))
        last = min(len(mask) - 1, first + COLUMNS * ROWS - 1)
    shown = [int(z) for z in np.unique(np.linspace(first, last, COLUMNS * ROWS).round())]
    largest = (int(areas.argmax()),) if len(hit) else ()
    required = (*largest, *doubtful[:: -(-len(doubtful) // MAX_DOUBTFUL) or 1])
    for z in required:
        others = [other for other in shown if other not in required]
        free = [other for other in others if not areas[other]] or others
        if z not in shown and free:
            shown[shown.index(min(free, key=lambda other: abs(other - z)))] = z
    return sorted(shown)


def _tile(hu: np.ndarray, mask: np.ndarray, mm_y: float, mm_x: float, z: int, result: Segmentation) -> np.ndarray:
    """A slice (y, x) of a result and its mask, in LPS; ``z`` is its number."""
    doubtful = z in result.doubtful_slices
    low, high = WINDOW
    gray = (np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    scale = TILE / max(hu.shape[0] * mm_y, hu.shape[1] * mm_x)
    size = (max(1, round(hu.shape[1] * mm_x * scale)), max(1, round(hu.shape[0] * mm_y * scale)))
    picture = cv2.cvtColor(cv2.resize(gray, size, interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    blood = cv2.resize(np.ascontiguousarray(mask), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(blood, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, RED, 1, cv2.LINE_AA)
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    y, x = (TILE - size[1]) // 2, (TILE - size[0]) // 2
    tile[y : y + size[1], x : x + size[0]] = picture
    if doubtful:
        cv2.rectangle(tile, (1, 1), (TILE - 2, TILE - 2), YELLOW, 2)
    _write(tile, f"{z + 1}{' doubtful' * doubtful}", (6, 18), YELLOW if doubtful else WHITE, 0.5)
    _write(tile, "R" if result.sides_are_known else "sides unknown", (6, TILE - 8), GRAY, 0.45)
    return tile


def _write(picture: np.ndarray, text: str, at: tuple[int, int], color: tuple[int, int, int], size: float) -> None:
    shown = text.encode("ascii", "replace").decode()  # OpenCV's fonts hold nothing else
    cv2.putText(picture, shown, at, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)


def findings(result: Segmentation, model: Model, case: str) -> dict[str, Any]:
    """The measurements of a result, for ``report.json``: mL, mm (LPS), HU, seconds."""
    manifest = model.manifest
    return {
        "made_by": mark(result.volume.content),
        "case": case,
        "volume_ml": round(result.volume_ml, 3),
        **({"volume_ml_range": [round(ml, 3) for ml in result.range_ml]} if result.range_ml else {}),
        "lesions": [_lesion(lesion) | kind for lesion, kind in zip(result.measured, _kinds(result), strict=True)],
        **_kinds_measured(result, model),
        "mask": "given" if result.mask_path else "made",
        "doubtful_slices": list(result.doubtful_slices),
        "implausible": list(result.implausible),
        "warnings": [*result.implausible, *result.volume.warnings],
        "series": result.volume.chosen,
        "hemseg": __version__,
        "weights": {"name": manifest.name, "version": manifest.version, "sha256": manifest.sha256},
        "operating_point": manifest.operating_point,
        "device": model.provider,
        "seconds": round(result.seconds, 2),
        "notice": "Research only. Not a medical device.",
    }


def _kinds(result: Segmentation) -> list[dict[str, Any]]:
    """What a report holds about the kind of each lesion: nothing where the weights name none."""
    if len(result.kinds) != len(result.measured):
        return [{} for _ in result.measured]
    return [{"kind": kind.name, "kind_probability": round(kind.probability, 3)} for kind in result.kinds]


def _kinds_measured(result: Segmentation, model: Model) -> dict[str, Any]:
    """How often these weights' kinds were right, for reports with kinds; nothing where it was not measured."""
    right, of = (int(n) for n in model.kinds.right) if model.kinds else (0, 0)
    return {"kinds_measured": {"right": right, "lesions": of}} if result.kinds and of else {}


def _lesion(measured: MeasuredLesion) -> dict[str, Any]:
    lesion, abc2 = measured.lesion, measured.abc2
    found = {
        "volume_ml": round(lesion.volume_ml, 3),
        "centroid_mm": [round(v, 2) for v in lesion.centroid],
        "slices": list(lesion.slices),
        "side": lesion.side,
        "mean_hu": round(lesion.mean_hu, 1),
        "median_hu": round(measured.median_hu, 1),
        "skull_mm": round(lesion.skull_mm, 1),
        "touches_skull": measured.touches_skull,
        "touches_ventricle": measured.touches_ventricle,
        "abc2_ml": round(abc2.volume_ml, 3),
        "abc_cm": [round(cm, 2) for cm in (abc2.a_cm, abc2.b_cm, abc2.c_cm)],
    }
    if measured.probability_mean is not None and measured.probability_max is not None:
        found |= {
            "probability_mean": round(measured.probability_mean, 4),
            "probability_max": round(measured.probability_max, 4),
        }
    return found


def write_overlay(result: Segmentation, path: Path, title: str = "") -> None:
    """Write `overlay` as PNG, all or nothing.

    Raises:
        OutputError: it cannot be written.
    """
    png = cv2.imencode(".png", overlay(result, printable(title)))[1].tobytes()
    write_bytes(marked_png(png, mark(result.volume.content)), path, "the picture")


def write_thumbnail(result: Segmentation, path: Path) -> None:
    """Write the slice with the most hemorrhage as a small JPEG, all or nothing; without one a doubtful slice, without
    that the middle one.

    Raises:
        OutputError: it cannot be written.
    """
    hu, (_, mm_y, mm_x) = result.volume.in_lps()
    mask, _ = result.volume.with_voxels(result.mask).in_lps()
    areas = mask.sum(axis=(1, 2), dtype=np.int64)
    doubtful = result.doubtful_slices
    z = int(areas.argmax()) if areas.any() else (*doubtful, len(mask) // 2)[len(doubtful) // 2]
    small = cv2.resize(_tile(hu[z], mask[z], mm_y, mm_x, z, result), (150, 150), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    write_bytes(marked_jpeg(jpeg, mark(result.volume.content)), path, "the thumbnail")
