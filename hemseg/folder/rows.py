"""The lines of ``summary.csv``: what stands in one, whether it is as hemseg wrote it, and what made it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from hemseg import __version__
from hemseg.folder.jobs import Outcome
from hemseg.folder.lesion_table import Line, checksum_of
from hemseg.folder.plan import Job, OutputOptions
from hemseg.io.fingerprint import content_of
from hemseg.manifest import Manifest
from hemseg.names import case_name, printable
from hemseg.report.columns import lesion_cells

NO_OPTIONS = OutputOptions()
NUMBERS = ("volume_ml", "lesions", "largest_ml", "seconds")
LATER_NUMBERS = (  # columns that older tables do not have
    "largest_abc2_ml",
    "largest_a_cm",
    "largest_b_cm",
    "largest_c_cm",
    "volume_ml_low",
    "volume_ml_high",
)
LATER = (*LATER_NUMBERS, "lesions_checksum", "doubtful_slices")


@dataclass(frozen=True)
class Row:
    """A case, in printable characters.

    ``scan`` and ``made_by`` say whether it would come out the same again, ``mask_sha256`` whether the mask is as it
    was written, ``checksum`` whether the line is (`holds`); ``source`` is the scan's path as seen from the folder.
    ``lesion_lines`` are those of ``lesions.csv``; they are no column, and are not read back.
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
    largest_abc2_ml: str = ""
    largest_a_cm: str = ""
    largest_b_cm: str = ""
    largest_c_cm: str = ""
    volume_ml_low: str = ""
    volume_ml_high: str = ""
    lesions_checksum: str = ""
    doubtful_slices: str = ""
    lesion_lines: tuple[Line, ...] = field(default=(), repr=False, compare=False)

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The columns of the table, in their order."""
        return tuple(one.name for one in fields(cls))[:-1]

    @property
    def cells(self) -> tuple[str, ...]:
        """The values of `columns`."""
        return astuple(self)[:-1]

    @property
    def sealed(self) -> Row:
        """The row with its checksum."""
        return replace(self, checksum=self._checksum())

    @property
    def holds(self) -> bool:
        """Whether hemseg wrote the row and nothing in it was changed, but perhaps how its numbers are spelled."""
        return self.status in ("done", "failed") and bool(self.checksum) and self.checksum == self._checksum()

    def _checksum(self) -> str:
        values: dict[str, Any] = dict(zip(self.columns(), self.cells, strict=True))
        del values["checksum"]
        values = {name: value for name, value in values.items() if value or name not in LATER}
        for name in {*NUMBERS, *LATER_NUMBERS} & set(values):
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
    values = asdict(manifest)
    ranges = {name: values.pop(name) for name in ("range_thresholds", "range_margin")}
    weights = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    settings = [f"format {options.format}"]
    settings += [f"series {options.series}"] if options.series else []
    settings += ["strict"] if options.strict else []
    settings += [f"given masks, label {options.label or 'any'}"] if options.measure else []
    settings += [f"range {json.dumps(list(ranges.values()))}"] if options.range else []
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
    case = case_name(job.case)
    largest = result.measured[0].abc2 if result.measured else None
    kinds = result.kinds or (None,) * len(result.measured)
    lesions = zip(result.measured, kinds, strict=True)
    lines = tuple(lesion_cells(case, number, *lesion) for number, lesion in enumerate(lesions, start=1))
    return Row(
        case=case,
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
        source=source_of(job, target),
        mask_sha256=mask and f"sha256:{mask}",
        largest_abc2_ml=f"{largest.volume_ml:.3f}" if largest else "",
        largest_a_cm=f"{largest.a_cm:.2f}" if largest else "",
        largest_b_cm=f"{largest.b_cm:.2f}" if largest else "",
        largest_c_cm=f"{largest.c_cm:.2f}" if largest else "",
        volume_ml_low=f"{result.range_ml[0]:.3f}" if result.range_ml else "",
        volume_ml_high=f"{result.range_ml[1]:.3f}" if result.range_ml else "",
        lesions_checksum=checksum_of(lines),
        doubtful_slices=" ".join(str(z + 1) for z in result.doubtful_slices),
        lesion_lines=lines,
    ).sealed


def failed_row(job: Job, key: str, target: Path, error: str) -> Row:
    """The line of a job that could not be done."""
    source = source_of(job, target)
    return Row(case_name(job.case), "failed", error=printable(error), made_by=key, source=source).sealed


def source_of(job: Job, target: Path) -> str:
    """A job's scan, as seen from the folder."""
    return printable(os.path.relpath(job.scan, target))
