"""``summary.html``: the cases of a folder in a table that can be sorted, with pictures and links to their reports."""

from __future__ import annotations

import html
import os
from pathlib import Path
from urllib.parse import quote

from hemseg.folder.plan import Job
from hemseg.folder.rows import Row
from hemseg.io.files import write_text
from hemseg.io.marks import mark
from hemseg.names import printable
from hemseg.report.templates import filled

NOTICE = "Research software, not a medical device: not for diagnosis, triage or treatment."


def write_summary_page(cases: list[tuple[Job, Row]], path: Path) -> None:
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
        marked = {
            "implausible": row.implausible and f"Implausible: {row.implausible}",
            "doubtful": row.doubtful_slices and f"Doubtful slices: {row.doubtful_slices}.",
        }
        spans = [f'<span class="{name}">{html.escape(text)}</span> ' for name, text in marked.items() if text]
        plain = html.escape(" ".join([*filter(None, marked.values()), row.error or row.warnings]))
        notes = "".join(spans) + html.escape(row.error or row.warnings)
        numbers = "".join(
            f'<td class="number" data-value="{html.escape(v)}">{html.escape(v)}</td>'
            for v in (row.volume_ml, row.lesions, row.largest_ml, row.seconds)
        )
        lines.append(
            f'<tr class="{html.escape(row.status)}"><td>{picture}</td><td data-value="{name}">{cell}</td>'
            f'{numbers}<td data-value="{plain}">{notes}</td></tr>'
        )
    failed = sum(row.status != "done" for _, row in cases)
    doubtful = sum(bool(row.doubtful_slices) for _, row in cases)
    heads = ("case", "volume (mL)", "lesions", "largest (mL)", "seconds", "warnings and errors")
    page = filled(
        "summary.html",
        {
            "MARK": mark(),
            "TITLE": html.escape(printable(path.parent.resolve().name)),
            "DONE": len(cases) - failed,
            "ALL": len(cases),
            "FAILED": f", {failed} failed" if failed else "",
            "FOUND": sum(float(row.volume_ml or 0) > 0 for _, row in cases),
            "DOUBTFUL": f" Slices are doubtful in {doubtful} of them." if doubtful else "",
            "NOTICE": NOTICE,
            "HEADS": "".join(f"<th><button>{head}</button></th>" for head in heads),
            "ROWS": "\n".join(lines),
        },
    )
    write_text(page, path)
