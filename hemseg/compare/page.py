"""``compare.html``: one file that opens offline, with both scans side by side on the slices of the baseline."""

from __future__ import annotations

import html
import json
from typing import Any

import numpy as np
import SimpleITK as sitk

from hemseg.compare.comparison import Comparison
from hemseg.io.writers import to_itk
from hemseg.names import printable
from hemseg.report.templates import filled, sides
from hemseg.report.viewer import HU_OF_LEVEL, WINDOWS, mask_picture, picture, picture_size


def page(comparison: Comparison, found: dict[str, Any]) -> str:
    """The page as text. Whatever comes from files or headers is escaped.

    Args:
        found: `hemseg.compare.tables.comparison_report`.
    """
    data = _slices(comparison)
    band, percent, hours = found["no_change"], found["change_percent"], found["hours"]
    facts = {
        "verdict": found["verdict"],
        "volume": f"{found['baseline']['volume_ml']:.1f} mL → {found['followup']['volume_ml']:.1f} mL",
        "change": f"{found['change_ml']:+.1f} mL" + ("" if percent is None else f" ({percent:+.0f} %)"),
        "no change would give": "not known for these masks"
        if band is None
        else f"{band['low_ml']:+.1f} to {band['high_ml']:+.1f} mL (95 % of {band['pairs_measured']} pairs of scans of "
        "hemorrhage that did not change)",
        "expansion": f"{'yes' if found['expansion'] else 'no'} (≥ {found['expansion_thresholds']['least_ml']:g} mL or "
        f"> {found['expansion_thresholds']['more_than_percent']:g} %)",
        "time between": "not known" if hours is None else f"{hours:.1f} hours",
        "masks": f"baseline: {found['baseline']['mask']}, follow-up: {found['followup']['mask']}",
        "alignment": f"turned by {found['alignment']['turned_degrees']:.1f}°, overlap of the heads "
        f"{found['alignment']['overlap']:.2f}, correlation of the brains {found['alignment']['likeness']:.2f}",
        "hemseg": f"{found['hemseg']}, weights {found['weights']['name']} {found['weights']['version']} "
        f"({found['weights']['sha256'][:12]})",
    }
    messages = [(text, False) for text in found["warnings"]]
    for label, side in (("Baseline", found["baseline"]), ("Follow-up", found["followup"])):
        messages += [(f"{label}: implausible: {text}", True) for text in side["implausible"]]
        messages += [(f"{label}: {text}", False) for text in side["warnings"]]
    items = "".join(
        f"<li{' class=implausible' if red else ''}>{html.escape(text)}</li>"
        for text, red in sorted(messages, key=lambda one: not one[1])
    )
    parts = {
        "MARK": html.escape(found["made_by"]),
        "TITLE": html.escape(printable(found["case"])),
        "NOTICE": html.escape(found["notice"]),
        "FACTS": "".join(f"<dt>{key}</dt><dd>{html.escape(str(value))}</dd>" for key, value in facts.items()),
        "WARNINGS": f'<ul class="warnings">{items}</ul>' if items else "",
        "LESIONS": _lesion_rows(comparison, data.pop("lesion_slices")),
        "DATA": json.dumps(data).replace("<", "\\u003c"),  # no text may end the script
        **sides(comparison.baseline.sides_are_known),
    }
    return filled("compare.html", parts)


def _lesion_rows(comparison: Comparison, slices: list[int]) -> str:
    rows = [
        f'<tr tabindex="0" data-slice="{z}" class="{pair.kind}"><td>{pair.kind}</td><td>{pair.baseline_ml:.1f}</td>'
        f"<td>{pair.followup_ml:.1f}</td><td>{pair.followup_ml - pair.baseline_ml:+.1f}</td></tr>"
        for pair, z in zip(comparison.lesions, slices, strict=True)
    ]
    return "".join(rows) or '<tr><td colspan="4">none</td></tr>'


def _slices(comparison: Comparison) -> dict[str, Any]:
    """Pictures and masks of both, areas, and where the lesions are: from inferior to superior, the patient's right on
    the left, all on the slices of the baseline.
    """
    baseline, followup = comparison.baseline, comparison.followup
    volume = baseline.volume
    grid = to_itk(baseline.mask, volume)
    transform = comparison.registration.transform
    moved = sitk.Resample(
        to_itk(followup.volume.hu, followup.volume), grid, transform, sitk.sitkLinear,
        float(followup.volume.hu.min()), sitk.sitkFloat32,
    )  # fmt: skip
    numbers = sitk.Resample(to_itk(followup.numbers, followup.volume), grid, transform, sitk.sitkNearestNeighbor, 0)
    mask = sitk.Resample(to_itk(followup.mask, followup.volume), grid, transform, sitk.sitkNearestNeighbor, 0)
    before, (mm_z, mm_y, mm_x) = volume.in_lps()
    after, mask_after, numbers_after, mask_before, numbers_before = (
        volume.with_voxels(array).in_lps()[0]
        for array in (
            *(sitk.GetArrayFromImage(image) for image in (moved, mask, numbers)), baseline.mask, baseline.numbers,
        )
    )  # fmt: skip
    size = picture_size(before)
    areas = [
        [round(float(plane.sum()) * mm_y * mm_x / 100, 2) for plane in array] for array in (mask_before, mask_after)
    ]
    return {
        "pictures": [[picture(plane, size) for plane in array] for array in (before, after)],
        "masks": [[mask_picture(plane, size, 255) for plane in array] for array in (mask_before, mask_after)],
        "area_cm2": areas,
        "levels": [round(float(v), 1) for v in HU_OF_LEVEL],
        "windows": WINDOWS,
        "size": size,
        "aspect": (size[0] * before.shape[1] * mm_y) / (size[1] * before.shape[2] * mm_x),
        "mm_z": mm_z,
        "lesion_slices": [
            _slice_of(
                np.isin(numbers_before, [i + 1 for i in pair.baseline])
                | np.isin(numbers_after, [i + 1 for i in pair.followup])
            )
            for pair in comparison.lesions
        ],
    }


def _slice_of(lesion: np.ndarray) -> int:
    """The slice in which most of a lesion lies."""
    return int(lesion.sum(axis=(1, 2)).argmax())
