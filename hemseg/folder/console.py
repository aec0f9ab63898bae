"""What a run prints: a table of its cases, or JSON; errors and warnings of each case as they come."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from typing import NamedTuple

from hemseg.folder.rows import Row
from hemseg.streams import print_text


class PrintOptions(NamedTuple):
    """What is printed: neither progress nor a table; weights, series and the like, too; JSON in place of the table."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False


def messages(row: Row, printed: PrintOptions) -> list[tuple[str, str, str]]:
    """What is printed of a case beside its line in the table: kind, text and color."""
    shown = not printed.quiet
    about = [("implausible", row.implausible, "red", shown), ("warning", row.warnings, "yellow", shown)]
    about.append(("series", row.series, "", printed.verbose))
    errors = [("error", row.error, "red")] if row.error else []
    return errors + [(kind, f"{row.case}: {text}", style) for kind, text, style, is_shown in about if text and is_shown]


def print_json(rows: Sequence[Row]) -> None:
    """Print the cases as a list of objects, with the columns of ``summary.csv``."""
    values = [dict(zip(row.columns(), row.cells, strict=True)) for row in rows]
    print_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def print_table(rows: Sequence[Row]) -> None:
    """Print a line per case: volume, lesions, seconds."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("case", overflow="fold")
    for name in ("volume (mL)", "lesions", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        volume = f"{float(row.volume_ml):.1f}" if row.status == "done" else "failed"
        seconds = f"{float(row.seconds):.1f}" if row.seconds else ""
        if row.implausible:
            volume += " implausible"
        if row.doubtful_slices:
            volume += " doubtful"
        red = row.status != "done" or row.implausible
        style = "red" if red else "yellow" if row.doubtful_slices else None
        table.add_row(Text(row.case), volume, row.lesions, seconds, style=style)
    shown = io.StringIO()  # rich itself would end the process where nobody reads, and fail where nothing can be written
    terminal = sys.stdout.isatty()
    Console(file=shown, force_terminal=terminal, width=Console().width if terminal else 120).print(table)
    print_text(shown.getvalue())
