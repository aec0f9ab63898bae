"""The results of a comparison: JSON of one pair, a row of the table of many."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from hemseg import __version__
from hemseg.compare.comparison import Comparison, MeasuredScan
from hemseg.io.marks import mark
from hemseg.names import printable, to_cell

if TYPE_CHECKING:
    from hemseg.model import Model

COLUMNS = (
    "case", "status", "baseline_ml", "followup_ml", "change_ml", "change_percent", "hours", "verdict", "expansion",
    "measurable", "no_change_low_ml", "no_change_high_ml", "lesions_matched", "lesions_new", "lesions_gone",
    "turned_degrees", "overlap", "likeness", "warnings", "error", "made_by",
)  # fmt: skip


def comparison_report(comparison: Comparison, model: Model, case: str) -> dict[str, Any]:
    """The content of ``compare.json``: mL, percent of the baseline, hours, mm, degrees; no value of a header."""
    change, registration, manifest = comparison.change, comparison.registration, model.manifest
    limits, hours = comparison.limits, comparison.hours
    return {
        "made_by": mark(),
        "case": case,
        "baseline": _scan(comparison.baseline),
        "followup": _scan(comparison.followup),
        "change_ml": round(change.ml, 3),
        "change_percent": None if change.percent is None else round(change.percent, 1),
        "hours": None if hours is None else round(hours, 2),
        "verdict": change.verdict,
        "expansion": change.expansion,
        "expansion_thresholds": {
            "least_ml": change.least_ml,
            "more_than_percent": change.least_percent,
            "reached": change.reaches_thresholds,
        },
        "measurable": change.measurable,
        "no_change": None
        if limits is None or change.band is None
        else {
            "low_ml": round(change.band.low_ml, 3),
            "high_ml": round(change.band.high_ml, 3),
            "low_percent": limits.low_percent,
            "high_percent": limits.high_percent,
            "from_ml": limits.above_ml,
            "pairs_measured": limits.pairs,
        },
        "lesions": [
            {
                "kind": pair.kind,
                "baseline": list(pair.baseline),
                "followup": list(pair.followup),
                "baseline_ml": round(pair.baseline_ml, 3),
                "followup_ml": round(pair.followup_ml, 3),
            }
            for pair in comparison.lesions
        ],
        "alignment": {
            "turned_degrees": round(registration.degrees, 2),
            "overlap": round(registration.overlap, 3),
            "likeness": round(registration.likeness, 3),
            "common": round(registration.common, 3),
        },
        "warnings": list(comparison.warnings),
        "hemseg": __version__,
        "weights": {"name": manifest.name, "version": manifest.version, "sha256": manifest.sha256},
        "notice": "Research only. Not a medical device.",
    }


def _scan(one: MeasuredScan) -> dict[str, Any]:
    return {
        "volume_ml": round(one.volume_ml, 3),
        "mask": "given" if one.given else "hemseg",
        "lesions_ml": [round(ml, 3) for ml in one.lesions_ml],
        "implausible": list(one.implausible),
        "warnings": list(one.volume.warnings),
        "series": one.volume.chosen,
    }


def table_row(report: dict[str, Any]) -> dict[str, str]:
    """A pair's row of `COLUMNS`, from its `comparison_report`."""
    kinds = [pair["kind"] for pair in report["lesions"]]
    band = report["no_change"] or {}
    warnings = [*report["warnings"]]
    for name in ("baseline", "followup"):
        side = report[name]
        texts = (*(f"implausible: {text}" for text in side["implausible"]), *side["warnings"])
        warnings += [f"{name}: {text}" for text in texts]
    values = {
        "case": report["case"],
        "status": "done",
        "baseline_ml": report["baseline"]["volume_ml"],
        "followup_ml": report["followup"]["volume_ml"],
        "change_ml": report["change_ml"],
        "change_percent": report["change_percent"],
        "hours": report["hours"],
        "verdict": report["verdict"],
        "expansion": report["expansion"],
        "measurable": report["measurable"],
        "no_change_low_ml": band.get("low_ml"),
        "no_change_high_ml": band.get("high_ml"),
        "lesions_matched": kinds.count("matched"),
        "lesions_new": kinds.count("new"),
        "lesions_gone": kinds.count("gone"),
        "turned_degrees": report["alignment"]["turned_degrees"],
        "overlap": report["alignment"]["overlap"],
        "likeness": report["alignment"]["likeness"],
        "warnings": " ".join(warnings),
        "error": "",
        "made_by": report["made_by"],
    }
    return {name: _cell(values[name]) for name in COLUMNS}


def failed_row(case: str, error: str) -> dict[str, str]:
    """The row of a pair that could not be compared."""
    values = {"case": case, "status": "failed", "error": error, "made_by": mark()}
    return {name: _cell(values.get(name)) for name in COLUMNS}


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return to_cell(value) if isinstance(value, str) else str(value)


def table(rows: list[dict[str, str]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def messages(report: dict[str, Any]) -> list[str]:
    """Warnings of a comparison and of its scans, a line each."""
    case = printable(report["case"])
    lines = [f"warning: {case}: {text}" for text in report["warnings"]]
    for name in ("baseline", "followup"):
        lines += [f"implausible: {case}, {name}: {text}" for text in report[name]["implausible"]]
        lines += [f"warning: {case}, {name}: {text}" for text in report[name]["warnings"]]
    return lines


def summary(report: dict[str, Any]) -> str:
    """A comparison in a few lines, for the terminal."""
    percent, hours, band = report["change_percent"], report["hours"], report["no_change"]
    share = "" if percent is None else f" ({percent:+.0f} %)"
    time = "" if hours is None else f" in {hours:.1f} h"
    before, after = report["baseline"]["volume_ml"], report["followup"]["volume_ml"]
    kinds = [pair["kind"] for pair in report["lesions"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("matched", "new", "gone") if kind in kinds) or "none"
    no_change = (
        "not known for these masks"
        if band is None
        else f"{band['low_ml']:+.1f} to {band['high_ml']:+.1f} mL (95 % of {band['pairs_measured']} pairs measured)"
    )
    return (
        f"{printable(report['case'])}: {report['verdict']}\n"
        f"  volume    {before:.1f} mL -> {after:.1f} mL, {report['change_ml']:+.1f} mL{share}{time}\n"
        f"  no change would give {no_change}\n"
        f"  lesions   {counts}\n"
    )
