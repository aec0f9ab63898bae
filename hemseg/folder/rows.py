"""A line of ``summary.csv``: what became of a case, in printable characters, and whether hemseg wrote it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hemseg import __version__
from hemseg.folder.jobs import Outcome
from hemseg.folder.plan import Job, OutputOptions
from hemseg.io.fingerprint import content_of
from hemseg.model import Manifest
from hemseg.names import case_name, printable

NO_OPTIONS = OutputOptions()
NUMBERS = ("volume_ml", "lesions", "largest_ml", "seconds")


@dataclass(frozen=True)
class Row:
    """A case, in printable characters.

    ``scan`` and ``made_by`` say whether it would come out the same again, ``mask_sha256`` whether the mask is as it
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
        source=source_of(job, target),
        mask_sha256=mask and f"sha256:{mask}",
    ).sealed


def failed_row(job: Job, key: str, target: Path, error: str) -> Row:
    """The line of a job that could not be done."""
    source = source_of(job, target)
    return Row(case_name(job.case), "failed", error=printable(error), made_by=key, source=source).sealed


def source_of(job: Job, target: Path) -> str:
    """The path of a job's scan as seen from the output folder, printable."""
    return printable(os.path.relpath(job.scan, target))
