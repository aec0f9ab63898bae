"""``lesions.csv`` of an output folder: a line for each lesion of the cases that ``summary.csv`` calls done.

A case's lines are written before its line of ``summary.csv``, which carries their checksum: so either both are there,
or the case is done again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from hemseg.folder.table_file import append_lines, delimiter_of, whole_lines
from hemseg.io.files import write_text
from hemseg.names import from_cell
from hemseg.report.columns import LESIONS, csv_text

LESIONS_CSV = "lesions.csv"
HEADER = tuple(column.name for column in LESIONS)
Line = tuple[str, ...]


class LesionTable:
    """The table, read at the start and written line by line.

    Attributes:
        lines: by case; those that were read hold only if `holds` says so.
        foreign: there is a file of that name that is no such table.
    """

    def __init__(self, target: Path) -> None:
        self.path = target / LESIONS_CSV
        self.lines: dict[str, tuple[Line, ...]] = {}
        self.foreign = False
        text = whole_lines(self.path)
        if not text:
            return
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text)))
        except csv.Error:
            rows = []
        if not rows or tuple(rows[0]) != HEADER:
            self.foreign = True
            return
        for row in rows[1:]:
            line = tuple(map(from_cell, row))
            if len(line) == len(HEADER):
                self.lines[line[0]] = (*self.lines.get(line[0], ()), line)

    def holds(self, case: str, checksum: str) -> bool:
        """Whether the lines of a case are those that its checksum in ``summary.csv`` was made of.

        Tables of older versions have no checksum: they had no lesions.csv either, and nothing is missing from it.
        """
        return not checksum or checksum == checksum_of(self.lines.get(case, ()))

    def start(self, cases: Iterable[str]) -> None:
        """Rewrite the file with the lines of cases that need not be done again."""
        self.lines = {case: self.lines[case] for case in cases if case in self.lines}
        self._write()

    def add(self, case: str, lines: Sequence[Line]) -> None:
        """Append a case's lines."""
        self.lines[case] = tuple(lines)
        append_lines(self.path, lines)

    def finish(self, order: Iterable[str]) -> None:
        """Put the lines into the order of the cases."""
        self.start(order)

    def _write(self) -> None:
        write_text(csv_text(HEADER, [line for lines in self.lines.values() for line in lines]), self.path)


def checksum_of(lines: Iterable[Line]) -> str:
    """Of a case's lines, however their numbers are spelled: a spreadsheet may save 1.500 as 1.5."""
    values = [[_value(cell) for cell in line] for line in lines]
    return f"crc:{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]}"


def _value(cell: str) -> str | float:
    try:
        return float(cell)
    except ValueError:
        return cell
