"""What a folder of scans came to: ``summary.csv``, which is also how a run that was stopped goes on, and
``summary.html`` to look at.

A line is added to the CSV as soon as a case is done, so that whatever happens only cases under way are lost. A case is
done when its line says so, and is as hemseg wrote it; when its scan, the weights and the settings are those of the
line; and when its files are there, the mask as it was written.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hemseg.folder.lesion_table import LesionTable
from hemseg.folder.outputs import files_of
from hemseg.folder.plan import Job
from hemseg.folder.rows import Row, source_of
from hemseg.folder.summary_page import write_summary_page
from hemseg.folder.table_file import append_lines, delimiter_of, whole_lines
from hemseg.io.files import write_text
from hemseg.io.fingerprint import Fingerprint, content_of, is_same
from hemseg.io.marks import read_mark
from hemseg.io.output_folder import JOURNAL, is_journal
from hemseg.names import case_name, from_cell, printable
from hemseg.report.columns import csv_text

logger = logging.getLogger("hemseg")
CSV, HTML = JOURNAL, "summary.html"


class Journal:
    """``summary.csv`` of an output folder, with ``lesions.csv``: read at the start and written line by line.

    Attributes:
        lesions: ``lesions.csv``.
        rows: by `hemseg.names.case_name`; those that were written by this version and are as they were written.
        to_check: which of its own files `hemseg.folder.outputs.refuse_conflicts` is to look at: they could be somebody
            else's.
    """

    def __init__(self, target: Path) -> None:
        self.path = target / CSV
        self.rows: dict[str, Row] = {}
        self.lesions = LesionTable(target)
        foreign = [self.lesions.path] if self.lesions.foreign else []
        self.to_check = [target / HTML, *foreign]
        self._older = False  # the table of a version whose files have no marks
        self._known: dict[str, str] = {}  # the mask of every case that it names, rows that do not hold among them
        text = whole_lines(self.path)
        if not text:
            return
        first = text.partition("\n")[0]
        if not is_journal(first):
            self.to_check.append(self.path)
            return
        names = set(Row.columns())
        self._older = "checksum" not in first
        self.to_check = foreign if self._older else self.to_check
        changed = 0
        for values in _lines(text, delimiter_of(text)):
            known: dict[str, Any] = {name: from_cell(value) for name, value in values.items() if name in names}
            row = Row(**({"case": "", "status": ""} | known))
            self._known[row.case] = row.mask
            if row.holds:
                self.rows[row.case] = row
            elif row.case in self.rows:
                del self.rows[row.case]
            changed += bool(row.checksum) and not row.holds
        if changed:
            logger.warning("%s: %d lines are not as hemseg wrote them; these cases are done again", self.path, changed)

    def is_done(self, job: Job, key: str) -> bool:
        """Whether a job needs not be done again."""
        row = self.rows.get(case_name(job.case))
        if row is None or row.status != "done" or row.made_by != key or not (known := Fingerprint.parse(row.scan)):
            return False
        if not self.lesions.holds(row.case, row.lesions_checksum):
            return False
        try:
            if row.mask_sha256 != f"sha256:{content_of([job.mask])}":
                return False
        except OSError:
            return False
        marks = [read_mark(path) for path in job.outputs if path != job.mask]
        return all(m and m.scan == known.content[:16] for m in marks) and is_same(files_of(job), known)

    def lists(self, job: Job, path: Path) -> bool:
        """Whether an existing file is an output of this job's that may be replaced, by what the table says.

        A mask that was changed since it was written may not: somebody corrected it.
        """
        case = case_name(job.case)
        if case not in self._known:
            return False
        row = self.rows.get(case)
        if row and row.source != source_of(job, self.path.parent):  # perhaps the same scan in another place
            known = Fingerprint.parse(row.scan)
            if not (known and is_same(files_of(job), known)):
                return False
        try:
            if not path.is_file():
                return False
            if path.stat().st_size == 0 or read_mark(path):
                return True
            if self._older:
                return path != job.mask or self._known[case] == printable(os.path.relpath(path, self.path.parent))
            if row is None:
                return False
            return path == job.mask and row.mask_sha256 == f"sha256:{content_of([path])}"
        except OSError:
            return False

    def kept(self, planned: Iterable[Job], done: Iterable[Job]) -> list[Row]:
        """The rows that still hold when a run begins: of cases that are done, and of those of other runs.

        Args:
            planned: the cases of this run; other rows stay as long as their masks are there.
            done: those of them that need not be done again.
        """
        own, still = ({case_name(job.case) for job in jobs} for jobs in (planned, done))
        others = {c for c, r in self.rows.items() if r.mask and (self.path.parent / r.mask).is_file()} - own
        return [row for case, row in self.rows.items() if case in still | others]

    def start(self, rows: Iterable[Row]) -> None:
        """Rewrite the file with the rows that still hold."""
        self.rows = {row.case: row for row in rows}
        self.lesions.start(self.rows)
        self._write()

    def add(self, row: Row) -> None:
        """Append a line."""
        self.lesions.add(row.case, row.lesion_lines)
        self.rows[row.case] = row
        append_lines(self.path, [row.cells])

    def finish(self, jobs: list[Job]) -> None:
        """Put the lines into the order of the jobs and write ``summary.html``; `rows` are those of the jobs then."""
        order = [case_name(job.case) for job in jobs]
        found = [(job, self.rows[case]) for job, case in zip(jobs, order, strict=True) if case in self.rows]
        first = {case: self.rows[case] for case in order if case in self.rows}
        self.rows = first | self.rows
        self.lesions.finish(self.rows)
        self._write()
        older = sum(row.status == "done" and not row.lesions_checksum for row in self.rows.values())
        if older:
            logger.warning(
                "%s: lacks %d cases that an older hemseg did; --redo does them again", self.lesions.path, older
            )
        write_summary_page(found, self.path.with_name(HTML))
        self.rows = first

    def _write(self) -> None:
        write_text(csv_text(Row.columns(), [row.cells for row in self.rows.values()]), self.path)


def _lines(text: str, delimiter: str) -> list[dict[str, str]]:
    """The lines of a table that have as many cells as its first one; none from where it cannot be read on."""
    found: list[dict[str, str]] = []
    try:
        for values in csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter):
            if None not in values and None not in values.values():
                found.append(values)
    except csv.Error:
        pass
    return found
