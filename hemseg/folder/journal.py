"""What a folder of scans came to: ``summary.csv``, which is also how a run that was stopped goes on, and
``summary.html`` to look at.

A line is added to the CSV as soon as a case is done, so that whatever happens only cases under way are lost. A case is
done when its line says so, and is as hemseg wrote it; when its scan, the weights and the settings are those of the
line; and when its files are there, the mask as it was written.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import logging
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from urllib.parse import quote

from hemseg import __version__
from hemseg.errors import HemsegError
from hemseg.folder.jobs import Outcome
from hemseg.folder.outputs import files_of
from hemseg.folder.plan import Job, OutputOptions
from hemseg.io.files import write_text
from hemseg.io.fingerprint import Fingerprint, content_of, is_same
from hemseg.io.marks import mark, read_mark
from hemseg.io.output_folder import JOURNAL, is_journal
from hemseg.model import Manifest
from hemseg.names import case_name, from_cell, printable, to_cell

logger = logging.getLogger("hemseg")
CSV, HTML = JOURNAL, "summary.html"
NO_OPTIONS = OutputOptions()
NUMBERS = ("volume_ml", "lesions", "largest_ml", "seconds")


@dataclass(frozen=True)
class Row:
    """A case, in printable characters.

    ``scan`` and ``made_by`` tell whether it would come out the same again, ``mask_sha256`` whether the mask is as it
    was written, ``checksum`` whether the line is (`holds`); ``source`` is the scan's path as seen from the folder.
    """

    case: str
    status: str  # done or failed
    volume_ml: str = ""
    lesions: str = ""
    largest_ml: str = ""
    seconds: str = ""
    warnings: str = ""
    error: str = ""
    series: str = ""
    mask: str = ""
    scan: str = ""
    made_by: str = ""
    implausible: str = ""
    source: str = ""
    mask_sha256: str = ""
    checksum: str = ""

    @property
    def sealed(self) -> Row:
        """The row with its checksum."""
        return replace(self, checksum=self._checksum())

    @property
    def holds(self) -> bool:
        """Whether hemseg wrote the row and nothing in it was changed, but perhaps how its numbers are spelled."""
        return self.status in ("done", "failed") and bool(self.checksum) and self.checksum == self._checksum()

    def _checksum(self) -> str:
        values = asdict(self)
        del values["checksum"]
        for name in NUMBERS:
            try:
                values[name] = float(values[name] or 0)
            except ValueError:
                return ""
            if not math.isfinite(values[name]):
                return ""
        return f"crc:{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]}"


def settings_key(manifest: Manifest, options: OutputOptions = NO_OPTIONS) -> str:
    """What the masks of a run have in common: the version of hemseg, the weights with their whole manifest, and the
    options that change a mask.
    """
    weights = hashlib.sha256(json.dumps(asdict(manifest), sort_keys=True).encode()).hexdigest()[:16]
    settings = [f"format {options.format}"]
    settings += [f"series {options.series}"] if options.series else []
    settings += ["strict"] if options.strict else []
    return printable(f"hemseg {__version__}, weights {weights}, {', '.join(settings)}")


def settings_key_of_weights(folder: Path, options: OutputOptions = NO_OPTIONS) -> str:
    """`settings_key` of a folder of weights at the operating point that is asked for.

    Raises:
        HemsegError: see `Manifest.read` and `Manifest.at`.
    """
    return settings_key(Manifest.read(folder).at(options.operating_point), options)


def row_of(outcome: Outcome, key: str, target: Path) -> Row:
    """The line of an outcome."""
    job, result = outcome.job, outcome.result
    if result is None:
        return failed_row(job, key, target, outcome.error)
    try:
        mask = content_of([job.mask])
    except OSError:  # somebody removed it
        mask = ""
    return Row(
        case=case_name(job.case),
        status="done",
        volume_ml=f"{result.volume_ml:.3f}",
        lesions=str(len(result.lesions)),
        largest_ml=f"{result.lesions[0].volume_ml:.3f}" if result.lesions else "0.000",
        seconds=f"{result.seconds:.2f}",
        warnings=printable(" ".join(result.volume.warnings)),
        series=printable(result.volume.chosen),
        mask=printable(os.path.relpath(job.mask, target)),
        scan=str(result.volume.fingerprint or ""),
        made_by=key,
        implausible=printable(" ".join(result.implausible)),
        source=_source(job, target),
        mask_sha256=mask and f"sha256:{mask}",
    ).sealed


def failed_row(job: Job, key: str, target: Path, error: str) -> Row:
    """The line of a job that could not be done."""
    source = _source(job, target)
    return Row(case_name(job.case), "failed", error=printable(error), made_by=key, source=source).sealed


def _source(job: Job, target: Path) -> str:
    return printable(os.path.relpath(job.scan, target))


class Journal:
    """``summary.csv`` of an output folder, read at the start and written line by line.

    Attributes:
        rows: by `hemseg.names.case_name`; those that were written by this version and are as they were written.
        to_check: which of its own files `hemseg.folder.outputs.refuse_conflicts` is to look at: they could be somebody
            else's.
    """

    def __init__(self, target: Path) -> None:
        self.path = target / CSV
        self.rows: dict[str, Row] = {}
        self.to_check = [target / HTML]
        self._older = False  # the table of a version whose files have no marks
        if self.path.exists() and not self.path.is_file():  # a pipe would be waited for
            raise HemsegError(f"{self.path}: is no file; give another folder for the output.")
        self._known: dict[str, str] = {}  # the mask of every case that it names, rows that do not hold among them
        try:
            text = self.path.read_bytes().decode("utf-8-sig", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise HemsegError(f"{self.path}: cannot be read ({error.strerror}).") from None
        text = text[: text.rfind("\n") + 1]  # the last line was being written when the process died
        if not text:
            return
        first = text.partition("\n")[0]
        if not is_journal(first):
            self.to_check.append(self.path)
            return
        names = {field.name for field in fields(Row)}
        self._older = "checksum" not in first
        self.to_check = [] if self._older else self.to_check
        changed = 0
        for values in _lines(text, max(",;\t", key=first.count)):
            known = {name: from_cell(value) for name, value in values.items() if name in names}
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
        if row and row.source != _source(job, self.path.parent):  # perhaps the same scan in another place
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
        """Write the file anew with the rows that still hold."""
        self.rows = {row.case: row for row in rows}
        self._write()

    def add(self, row: Row) -> None:
        """Append a line."""
        self.rows[row.case] = row
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(map(to_cell, astuple(row)))
        except OSError as error:
            raise HemsegError(f"{self.path}: cannot be written ({error.strerror}).") from None

    def finish(self, jobs: list[Job]) -> None:
        """Put the lines into the order of the jobs and write ``summary.html``; `rows` are those of the jobs then."""
        order = [case_name(job.case) for job in jobs]
        found = [(job, self.rows[case]) for job, case in zip(jobs, order, strict=True) if case in self.rows]
        first = {case: self.rows[case] for case in order if case in self.rows}
        self.rows = first | self.rows
        self._write()
        write_html(found, self.path.with_name(HTML))
        self.rows = first

    def _write(self) -> None:
        made = io.StringIO(newline="")
        writer = csv.writer(made)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(map(to_cell, astuple(row)) for row in self.rows.values())
        write_text(made.getvalue(), self.path)


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


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="generator" content="{mark}"><title>hemseg: {title}</title>
<meta name="viewport" content="width=device-width">
<style>
 body {{ font: 15px system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222 }}
 table {{ border-collapse: collapse; width: 100% }}
 th, td {{ text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #ddd; vertical-align: middle }}
 th button {{ font: inherit; font-weight: 600; background: none; border: 0; padding: 0; cursor: pointer }}
 td.number {{ text-align: right; font-variant-numeric: tabular-nums }}
 tr.failed td, .implausible {{ color: #a00 }} .implausible {{ font-weight: 600 }} img {{ height: 72px; background: #000; display: block }} .note {{ color: #666 }}
</style>
<h1>{title}</h1>
<p>{done} of {all} scans done{failed}. Hemorrhage was found in {found}.</p>
<p class="note">{notice}</p>
<table><thead><tr><th></th>{heads}</tr></thead><tbody>
{rows}
</tbody></table>
<script>
 const body = document.querySelector("tbody");
 document.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {{
   const down = button.dataset.down = button.dataset.down === "1" ? "0" : "1";
   const key = row => {{ const v = row.cells[column + 1].dataset.value; return isNaN(v) || v === "" ? v : +v }};
   const rows = [...body.rows].sort((a, b) => {{
     const x = key(a), y = key(b), order = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? 1 : -1;
     return down === "1" ? -order : order;
   }});
   body.append(...rows);
 }}));
</script>
</html>
"""  # noqa: E501
NOTICE = "Research software, not a medical device: not for diagnosis, triage or treatment."


def write_html(cases: list[tuple[Job, Row]], path: Path) -> None:
    """A table that can be sorted, with a thumbnail of each case and a link to its report."""

    def link(to: Path, text: str) -> str:
        return f'<a href="{quote(os.path.relpath(to, path.parent))}">{text}</a>'

    lines = []
    for job, row in cases:
        name = html.escape(row.case)
        cell = name
        picture = ""
        if row.status == "done":
            if job.report:
                cell = link(job.report.with_suffix(".html"), name)
            if job.thumbnail and job.thumbnail.is_file():
                where = quote(os.path.relpath(job.thumbnail, path.parent))
                picture = f'<img loading="lazy" alt="" src="{where}">'
        said = html.escape(row.error or row.warnings)
        if row.implausible:
            said = f'<span class="implausible">Implausible: {html.escape(row.implausible)}</span> {said}'
        numbers = "".join(
            f'<td class="number" data-value="{html.escape(v)}">{html.escape(v)}</td>'
            for v in (row.volume_ml, row.lesions, row.largest_ml, row.seconds)
        )
        lines.append(
            f'<tr class="{html.escape(row.status)}"><td>{picture}</td><td data-value="{name}">{cell}</td>'
            f'{numbers}<td data-value="{said}">{said}</td></tr>'
        )
    failed = sum(row.status != "done" for _, row in cases)
    heads = ("case", "volume (mL)", "lesions", "largest (mL)", "seconds", "warnings and errors")
    page = PAGE.format(
        mark=mark(),
        title=html.escape(printable(path.parent.resolve().name)),
        done=len(cases) - failed,
        all=len(cases),
        failed=f", {failed} failed" if failed else "",
        found=sum(float(row.volume_ml or 0) > 0 for _, row in cases),
        notice=NOTICE,
        heads="".join(f"<th><button>{head}</button></th>" for head in heads),
        rows="\n".join(lines),
    )
    write_text(page, path)
