"""Pairs of scans: which they are, what is written for each, and the work itself. A pair that fails is named, the others
are still done.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemseg.compare.comparison import Comparison, Options, compare, prepare_scan
from hemseg.compare.page import page
from hemseg.compare.tables import comparison_report, failed_row, table, table_row
from hemseg.errors import HemsegError
from hemseg.folder.table_file import delimiter_of
from hemseg.io.files import write_json, write_text
from hemseg.io.fingerprint import scan_files, unchanged
from hemseg.io.formats import mask_name, suffix
from hemseg.io.marks import read_mark
from hemseg.io.masks import write_mask
from hemseg.measure import read_given_mask
from hemseg.resources import failure
from hemseg.scan import read

if TYPE_CHECKING:
    from hemseg.model import Model

JSON, PAGE, TABLE = "compare.json", "compare.html", "compare.csv"
NEEDED, OPTIONAL = ("baseline", "followup"), ("case", "baseline_mask", "followup_mask", "hours")


@dataclass(frozen=True)
class Pair:
    """Two scans to compare.

    Attributes:
        case: its name in tables, and that of its folder among many.
        baseline, followup: a file, or a folder or zip archive of a DICOM study.
        baseline_mask, followup_mask: images with the scan's geometry; what is above 0 is hemorrhage.
        baseline_series, followup_series: of a DICOM study, see `hemseg.scan.read`.
        hours: between the scans, in place of what their headers say.
    """

    case: str
    baseline: Path
    followup: Path
    baseline_mask: Path | None = None
    followup_mask: Path | None = None
    baseline_series: str = ""
    followup_series: str = ""
    hours: float | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """What is read for it."""
        return tuple(p for p in (self.baseline, self.followup, self.baseline_mask, self.followup_mask) if p)

    def outputs(self, folder: Path) -> dict[str, Path]:
        """What is written for it into its folder."""
        found = {"json": folder / JSON, "page": folder / PAGE}
        for name, scan, mask in (
            ("baseline", self.baseline, self.baseline_mask),
            ("followup", self.followup, self.followup_mask),
        ):
            if mask is None:
                ending = suffix(Path(mask_name(scan))) if suffix(scan) and not scan.is_dir() else ".mha"
                found[name] = folder / f"{name}_mask{ending}"
        return found


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a CSV with the columns ``baseline`` and ``followup``, and, if wanted, ``case``, ``baseline_mask``,
    ``followup_mask``, ``hours``; its paths are relative to its own folder.

    Raises:
        HemsegError: it cannot be read, or not as such a table.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise HemsegError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise HemsegError(f"{path}: is not a table in UTF-8; save it as CSV (UTF-8).") from None
    rows = list(csv.DictReader(io.StringIO(text), delimiter=delimiter_of(text)))
    for number, values in enumerate(rows, start=2):
        if None in values:
            raise HemsegError(f"{path}: row {number} has more cells than the header.")
    names = {str(name).strip().lower() for name in (rows[0] if rows else {})}
    if missing := [name for name in NEEDED if name not in names]:
        raise HemsegError(f"{path}: needs rows below a header with the columns {' and '.join(missing)}.")
    if unknown := names - {*NEEDED, *OPTIONAL}:
        raise HemsegError(
            f"{path}: has unknown columns ({', '.join(sorted(unknown))}); known: {', '.join((*NEEDED, *OPTIONAL))}."
        )
    pairs = [_pair(path, number, values) for number, values in enumerate(rows, start=2)]
    first: dict[str, int] = {}
    for number, pair in enumerate(pairs, start=2):
        if pair.case in first:
            raise HemsegError(
                f"{path}: rows {first[pair.case]} and {number} have the same case {pair.case}; give each a name of "
                "its own in a column case."
            )
        first[pair.case] = number
    return pairs


def _pair(path: Path, number: int, values: dict[str, Any]) -> Pair:
    cells = {str(k).strip().lower(): (v or "").strip() for k, v in values.items()}
    if not (cells["baseline"] and cells["followup"]):
        raise HemsegError(f"{path}: row {number} names no baseline or no follow-up.")
    hours = None
    if cells.get("hours"):
        try:
            hours = float(cells["hours"].replace(",", "."))
        except ValueError:
            hours = math.nan
        if not math.isfinite(hours):
            raise HemsegError(f"{path}: row {number} has hours that are not a number.")
    case = cells.get("case") or case_of(Path(cells["baseline"]), Path(cells["followup"]))
    if Path(case).name != case or case in ("", ".", "..") or case.startswith("."):
        raise HemsegError(f"{path}: row {number} has a case that is not a folder's name.")

    def there(name: str) -> Path | None:
        return path.parent / cells[name] if cells.get(name) else None

    return Pair(
        case=case,
        baseline=path.parent / cells["baseline"],
        followup=path.parent / cells["followup"],
        baseline_mask=there("baseline_mask"),
        followup_mask=there("followup_mask"),
        hours=hours,
    )


def case_of(baseline: Path, followup: Path) -> str:
    """A name for a pair of scans: of both, without what ends them."""
    names = [p.name[: len(p.name) - len(suffix(p))] or p.name for p in (baseline, followup)]
    return f"{names[0]}-{names[1]}"


def refuse_conflicts(pairs: Sequence[tuple[Pair, Path]], tables: Iterable[Path], overwrite: bool) -> None:
    """Raise if a file that would be written is one of the scans or masks, or somebody else's.

    Args:
        pairs: each with its folder.
        tables: other files that are written.

    Raises:
        HemsegError: names them all.
    """
    read_here = {os.path.realpath(path) for pair, _ in pairs for path in pair.inputs}
    folders = [path for path in read_here if os.path.isdir(path)]
    found = []
    for path in [*(p for pair, folder in pairs for p in pair.outputs(folder).values()), *tables]:
        real = os.path.realpath(path)
        if any(os.path.commonpath([real, folder]) == folder for folder in folders):
            found.append(f"{path} (lies in the folder of a scan)")
        elif real in read_here:
            found.append(f"{path} (is a scan or a mask that is read)")
        elif os.path.lexists(path) and not path.is_file():
            found.append(f"{path} (is not a file)")
        elif os.path.lexists(path) and not overwrite and read_mark(path) is None:
            found.append(f"{path} (hemseg did not write it, or it was changed since; --overwrite replaces it)")
    if found:
        raise HemsegError(f"nothing was done, as these files could not be written: {'; '.join(found[:20])}.")


def run_pair(pair: Pair, model: Model, options: Options, folder: Path | None = None) -> dict[str, Any]:
    """Compare two scans and write what is asked for; returns `hemseg.compare.tables.comparison_report`.

    Args:
        folder: where the files of this pair go, if anywhere.

    Raises:
        HemsegError: a scan or mask cannot be read or does not fit, or they cannot be compared.
    """
    sides = []
    for scan, mask, series in (
        (pair.baseline, pair.baseline_mask, pair.baseline_series),
        (pair.followup, pair.followup_mask, pair.followup_series),
    ):
        with unchanged(scan_files(scan), scan) as fingerprint:
            volume = replace(read(scan, series), fingerprint=fingerprint)
        given = None if mask is None else read_given_mask(mask, volume)[0]
        sides.append(prepare_scan(volume, model, given))
    chosen = options if pair.hours is None else replace(options, hours=pair.hours)
    baseline, followup = sides
    comparison = compare(baseline, followup, model, chosen)
    report = comparison_report(comparison, model, pair.case)
    if folder is not None:
        _write(pair, comparison, report, folder)
    return report


def run_pairs(
    pairs: Sequence[tuple[Pair, Path]], model: Model, options: Options, target: Path
) -> Iterator[tuple[Pair, dict[str, Any] | str]]:
    """Compare many; yields each with its report, or with the sentence that says why there is none. The table of all is
    rewritten after each.
    """
    rows = []
    for pair, folder in pairs:
        outcome: dict[str, Any] | str
        try:
            outcome = run_pair(pair, model, options, folder)
            rows.append(table_row(outcome))
        except Exception as error:  # a fault of ours, too: name the pair, and go on with the others
            outcome = failure(error, pair.case)
            rows.append(failed_row(pair.case, outcome))
        write_text(table(rows), target / TABLE)
        yield pair, outcome


def _write(pair: Pair, comparison: Comparison, report: dict[str, Any], folder: Path) -> None:
    """Masks, page, and JSON last: where that is, everything is."""
    outputs = pair.outputs(folder)
    for name, one in (("baseline", comparison.baseline), ("followup", comparison.followup)):
        if name in outputs:
            write_mask(one.mask, one.volume, outputs[name])
    write_text(page(comparison, report), outputs["page"])
    write_json(report, outputs["json"])
