"""Tables as people have them: comma, semicolon or tab; UTF-8 with or without its mark, UTF-16, Windows' own; blanks,
capitals, `True` and `1.0`. What has one meaning is read; the rest is named with its row, never guessed.
"""

from __future__ import annotations

import codecs
import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DELIMITERS = (",", ";", "\t")
YES, NO = ("1", "true", "yes"), ("0", "false", "no")
MAX_ROWS = 5  # named in a sentence
_END = "\0"  # a line behind the last one, which no text has: a quotation mark that is not closed swallows it


@dataclass(frozen=True)
class Row:
    """A row: its number in the file, counted from 1 with the header, and its cells by column in lower case."""

    number: int
    cells: dict[str, str]

    def get(self, name: str) -> str:
        """A cell without blanks around it; '' where there is none."""
        return self.cells.get(name, "")


def read_table(path: Path, columns: Iterable[str], faults: list[str]) -> list[Row]:
    """The rows of a table that are not blank.

    Args:
        columns: those that it must have.
        faults: gets what is wrong with the table, a sentence each; it is then empty.
    """
    text = decode_text(path.read_bytes())
    if text is None:
        faults.append(f"{path.name} is not text in UTF-8 or UTF-16; save it as CSV, UTF-8")
        return []
    first = next((line for line in text.splitlines() if line.strip()), "")
    needed = set(columns)
    delimiter = max(DELIMITERS, key=lambda d: (len(needed & _names(first.split(d))), first.count(d)))
    rows: list[Row] = []
    names: list[str] = []
    reader = csv.reader([*text.splitlines(), _END], delimiter=delimiter, skipinitialspace=True)
    number = 0  # of the last line that was read in full
    while True:
        try:
            cells = next(reader)
        except csv.Error:  # a cell may be long, but not endless
            cells = [_END, ""]
        if any(_END in cell for cell in cells):
            if cells != [_END]:
                faults.append(f"{path.name}, row {number + 1}: a quotation mark is not closed")
                return []
            break
        number = reader.line_num
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if not names:
            names = [cell.lower() for cell in cells]
            if lacking := sorted(needed - set(names)):
                faults.append(f"{path.name} lacks the columns {', '.join(lacking)}")
                return []
            if twice := sorted({name for name in names if name and names.count(name) > 1}):
                faults.append(f"{path.name} has the columns {', '.join(twice)} twice")
                return []
            continue
        rows.append(Row(number, dict(zip(names, cells, strict=False))))
    if not names:
        faults.append(f"{path.name} is empty")
    return rows


def _names(cells: Iterable[str]) -> set[str]:
    return {cell.strip().strip('"').lower() for cell in cells}


def decode_text(content: bytes) -> str | None:
    """Text in UTF-8 or UTF-16 (by its mark), else in Windows' Western encoding; None if it is no text."""
    marks = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
    marked = next((encoding for mark, encoding in marks if content.startswith(mark)), "")
    for encoding in [marked] if marked else ["utf-8", "cp1252"]:
        try:
            text = content.decode(encoding)
        except UnicodeError:
            continue
        return None if "\0" in text else text
    return None


def parse_integer(text: str) -> int | None:
    """``3`` and ``3.0`` as a number; None for anything else."""
    try:
        number = float(text)
    except ValueError:
        return None
    if "_" in text:  # which Python alone takes for a part of a number
        return None
    return int(number) if number.is_integer() else None  # not for inf and nan


def parse_boolean(text: str) -> bool | None:
    """``1``, ``1.0``, ``True``, ``yes`` and their opposites; None for anything else."""
    word = text.lower()
    if (number := parse_integer(text)) is not None:
        word = str(number)
    return True if word in YES else False if word in NO else None


def join_names(names: list[str]) -> str:
    """Names for a sentence: five of them, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class RowFaults:
    """What is wrong with rows, by kind, so that a table of a thousand bad rows gets one sentence."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._rows: dict[str, list[int]] = defaultdict(list)

    def add(self, row: Row, what: str) -> None:
        """Note what is wrong with a row."""
        self._rows[what].append(row.number)

    def sentences(self) -> list[str]:
        """One for each kind, with the numbers of its rows."""
        found = []
        for what, numbers in self._rows.items():
            named = ", ".join(map(str, numbers[:MAX_ROWS]))
            more = f" and {len(numbers) - MAX_ROWS} more" if len(numbers) > MAX_ROWS else ""
            found.append(f"{self._table}, row{'s' * (len(numbers) > 1)} {named}{more}: {what}")
        return found
