"""A folder of scans: which files are scans, where their masks go, and one case after the other.

A case that fails is named with its reason, and the others are still done.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.model import Model
from hemseg.segmentation import Segmentation, segment
from hemseg.volume import SUFFIXES, mask_name, read, stem, suffix


@dataclass(frozen=True)
class Job:
    """One scan to do.

    Attributes:
        case: its path relative to the input folder.
        overlay, report: where its picture and its report (JSON) go, if anywhere.
    """

    case: Path
    scan: Path
    mask: Path
    overlay: Path | None = None
    report: Path | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a job: a result, or the sentence that says why there is none.

    Attributes:
        unexpected: the fault is not the input's but ours, or the machine's.
    """

    job: Job
    result: Segmentation | None
    error: str = ""
    unexpected: bool = False


def walk(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """All files below a folder, in order; hidden ones and the folder ``leave_out`` are passed over.

    Linked folders are followed once, linked files count under their own name.

    Raises:
        HemsegError: the folder is missing, or not a folder.
    """
    if not folder.exists():
        raise HemsegError(f"{folder}: there is no such folder.")
    if not folder.is_dir():
        raise HemsegError(f"{folder}: is not a folder.")
    without = leave_out.resolve() if leave_out else None
    seen: set[Path] = set()
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = Path(parent).resolve()
        if here in seen or here == without:
            folders.clear()
            continue
        seen.add(here)
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        found += [Path(parent) / f for f in files if not f.startswith(".")]
    return sorted(found)


def find_scans(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """The images among the files of `walk`.

    Raises:
        HemsegError: the folder is missing, not a folder, or holds no image.
    """
    scans = [path for path in walk(folder, leave_out) if suffix(path)]
    if not scans:
        raise HemsegError(f"{folder}: holds no scans; hemseg looks for {', '.join(SUFFIXES)}.")
    return scans


def plan(source: Path, target: Path, overlay: bool = False) -> list[Job]:
    """What is to be done for ``hemseg segment SOURCE TARGET``.

    A folder's scan ``a/b.nii.gz`` gets the mask ``TARGET/a/b.nii.gz``; a single scan gets ``TARGET`` itself if
    that ends in an image suffix, else a file of its own name in the folder ``TARGET``.

    Raises:
        HemsegError: nothing to do, or a mask would replace a scan.
    """
    if source.is_dir() or not (source.exists() or suffix(source)):
        if suffix(target) and not target.is_dir():
            raise HemsegError(
                f"{target}: is the name of one image, but {source} is a folder; give a folder for the masks."
            )
        scans = find_scans(source, leave_out=target if target.resolve() != source.resolve() else None)
        cases = [scan.relative_to(source) for scan in scans]
        masks = [target / case.parent / mask_name(scan) for case, scan in zip(cases, scans, strict=True)]
    else:
        scans, cases = [source], [Path(source.name)]
        to_file = suffix(target) and not target.is_dir()
        masks = [target if to_file else target / mask_name(source)]
    for scan, mask in zip(scans, masks, strict=True):
        if mask.exists() and scan.exists() and mask.samefile(scan):
            raise HemsegError(f"{mask}: the mask would replace the scan; give another folder for the output.")
    pictures = [mask.with_name(f"{stem(mask)}.png") if overlay else None for mask in masks]
    return [Job(*job) for job in zip(cases, scans, masks, pictures, strict=True)]


def refused(jobs: Iterable[Job]) -> dict[Job, str]:
    """The jobs that would write one and the same file, each with a sentence; told before any work is done."""
    jobs = list(jobs)
    outputs = {job: [str(p.absolute()) for p in (job.mask, job.overlay, job.report) if p] for job in jobs}
    count = Counter(path for paths in outputs.values() for path in paths)
    reasons = {}
    for job, paths in outputs.items():
        if twice := next((p for p in paths if count[p] > 1), None):
            others = [str(o.case) for o in jobs if o is not job and twice in outputs[o]]
            reasons[job] = (
                f"{job.case}: would write the same {Path(twice).name} as {', '.join(others)}; rename one of them."
            )
    return reasons


def run(jobs: list[Job], model: Model) -> Iterator[Outcome]:
    """Do the jobs in order. A job's files are written, whole, before its outcome is given."""
    reasons = refused(jobs)
    for job in jobs:
        yield Outcome(job, None, reasons[job]) if job in reasons else attempt(job, model)


def attempt(job: Job, model: Model) -> Outcome:
    """Do one job; what goes wrong becomes a sentence."""
    try:
        result = segment(read(job.scan), model)
        result.save(job.mask)
        if job.overlay:
            from hemseg.report import write_overlay

            write_overlay(result, job.overlay, title=str(job.case))
        if job.report:
            from hemseg.report import findings, write_json

            write_json(findings(result, model, str(job.case)), job.report)
    except HemsegError as error:
        return Outcome(job, None, str(error))
    except MemoryError:
        return Outcome(job, None, f"{job.scan}: there is not enough memory for it.", unexpected=True)
    except Exception as error:  # a fault of ours: name the case, and go on with the others
        said = f"{job.scan}: failed unexpectedly ({type(error).__name__}: {error}); please report it."
        return Outcome(job, None, said, unexpected=True)
    return Outcome(job, result)
