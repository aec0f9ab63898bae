"""What a folder of scans came to: ``summary.csv``, which is also how a run that was stopped goes on, and
``summary.html`` to look at.

A line is added to the CSV as soon as a case is done, so that whatever happens only cases under way are lost. A case is
done when its line says so, its scan, the weights and the settings are those of the line, and its files are there.
"""

from __future__ import annotations

import csv
import html
import io
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from urllib.parse import quote

from hemseg import __version__
from hemseg.cohort import Job, Outcome
from hemseg.errors import HemsegError
from hemseg.model import Manifest
from hemseg.report import write_text

CSV, HTML = "summary.csv", "summary.html"


@dataclass(frozen=True)
class Row:
    """A case. ``scan`` and ``made_by`` tell whether it would come out the same again."""

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
    implausible: str = ""  # last: files of earlier versions do not have it


def settings_key(manifest: Manifest) -> str:
    """Version of hemseg and checksum of the weights: what the masks of a run have in common."""
    limits = (manifest.threshold, manifest.min_peak, manifest.min_lesion_ml, manifest.max_median_hu)
    return f"hemseg {__version__}, weights {manifest.sha256[:16]} at {'/'.join(f'{limit:g}' for limit in limits)}"


def settings_key_of_weights(folder: Path) -> str:
    """`settings_key` of a folder of weights."""
    return settings_key(Manifest.read(folder))


def scan_key(job: Job) -> str:
    """Size and time of the scan's files; '' when it cannot be looked at."""
    try:
        states = [path.stat() for path in (job.files or (job.scan,))]
    except OSError:
        return ""
    return f"{sum(s.st_size for s in states)} bytes, {max(s.st_mtime_ns for s in states)}"


def row_of(outcome: Outcome, key: str, target: Path) -> Row:
    """The line of an outcome."""
    job, result = outcome.job, outcome.result
    if result is None:
        return Row(str(job.case), "failed", error=outcome.error, scan=scan_key(job), made_by=key)
    return Row(
        case=str(job.case),
        status="done",
        volume_ml=f"{result.volume_ml:.3f}",
        lesions=str(len(result.lesions)),
        largest_ml=f"{result.lesions[0].volume_ml:.3f}" if result.lesions else "0.000",
        seconds=f"{result.seconds:.2f}",
        warnings=" ".join(result.volume.warnings),
        series=result.volume.chosen,
        mask=os.path.relpath(job.mask, target),
        scan=scan_key(job),
        made_by=key,
        implausible=" ".join(result.implausible),
    )


def failed_row(job: Job, key: str, error: str) -> Row:
    """The line of a job that nobody could do."""
    return Row(str(job.case), "failed", error=f"{job.scan}: {error}", scan=scan_key(job), made_by=key)


class Journal:
    """``summary.csv`` of an output folder, read at the start and written line by line."""

    def __init__(self, target: Path) -> None:
        self.path = target / CSV
        self.rows: dict[str, Row] = {}
        names = [field.name for field in fields(Row)]
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise HemsegError(f"{self.path}: cannot be read ({error.strerror}).") from None
        if not text.endswith("\n"):  # the last line was being written when the process died
            text = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(text))
        if reader.fieldnames and list(reader.fieldnames) not in (names, names[:-1]):
            raise HemsegError(
                f"{self.path}: was not written by this version of hemseg; give another output folder, or remove it."
            )
        self.rows = {row["case"]: Row(**row) for row in reader if None not in row and None not in row.values()}

    def is_done(self, job: Job, key: str) -> bool:
        """Whether a job needs not be done again."""
        row = self.rows.get(str(job.case))
        return (
            row is not None
            and row.status == "done"
            and row.made_by == key
            and row.scan == scan_key(job)
            and not (job.strict and (row.warnings or row.implausible))
            and all(path.is_file() for path in job.outputs)
        )

    def start(self, rows: Iterable[Row]) -> None:
        """Write the file anew with the rows that still hold."""
        self.rows = {row.case: row for row in rows}
        self._write()

    def add(self, row: Row) -> None:
        """Append a line."""
        self.rows[row.case] = row
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(astuple(row))
        except OSError as error:
            raise HemsegError(f"{self.path}: cannot be written ({error.strerror}).") from None

    def finish(self, jobs: list[Job]) -> None:
        """Put the lines into the order of the jobs, and write ``summary.html``."""
        order = [str(job.case) for job in jobs]
        self.rows = {case: self.rows[case] for case in order if case in self.rows}
        self._write()
        write_html([(job, self.rows[str(job.case)]) for job in jobs], self.path.with_name(HTML))

    def _write(self) -> None:
        made = io.StringIO(newline="")
        writer = csv.writer(made)
        writer.writerow([field.name for field in fields(Row)])
        writer.writerows(astuple(row) for row in self.rows.values())
        write_text(made.getvalue(), self.path)


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>hemseg: {title}</title>
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
        title=html.escape(path.parent.resolve().name),
        done=len(cases) - failed,
        all=len(cases),
        failed=f", {failed} failed" if failed else "",
        found=sum(float(row.volume_ml or 0) > 0 for _, row in cases),
        notice=NOTICE,
        heads="".join(f"<th><button>{head}</button></th>" for head in heads),
        rows="\n".join(lines),
    )
    write_text(page, path)
