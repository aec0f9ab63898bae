"""By what an output folder of hemseg is known: its table of cases, ``summary.csv``."""

from __future__ import annotations

from pathlib import Path

JOURNAL = "summary.csv"


def is_output_folder(folder: Path) -> bool:
    """Whether hemseg's table of a folder of scans lies in it, of whatever version."""
    if not (folder / JOURNAL).is_file():  # a pipe would be waited for
        return False
    try:
        with (folder / JOURNAL).open("rb") as file:
            return is_journal(file.readline(1 << 12).decode(errors="replace"))
    except OSError:
        return False


def is_journal(line: str) -> bool:
    """Whether a line is the first of a table of hemseg's: also of an older version's, or as a spreadsheet saves it."""
    names = line.lstrip("\ufeff").replace('"', "").replace(";", ",").replace("\t", ",").strip().split(",")
    return names[:2] == ["case", "status"] and {"volume_ml", "mask", "made_by"} <= set(names)
