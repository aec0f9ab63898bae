"""Tables of metrics: CSV files, and the same as Markdown."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Write rows as CSV, four significant digits; what a row lacks is NaN."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), restval="nan")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def read_cases(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``per_case.csv``, numbers as numbers."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v if k in ("case", "split", "subtypes") else float(v) for k, v in row.items()} for row in rows]


def markdown_table(table: list[dict[str, str]]) -> list[str]:
    """A Markdown table of rows with the same keys."""
    keys = list(table[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    return lines + ["| " + " | ".join(row[k] for k in keys) + " |" for row in table]
