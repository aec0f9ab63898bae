"""A folder of scans: which files are scans, where their masks go, and the pipeline that does them.

A case that fails is named with its reason, and the others are still done.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from hemseg.errors import HemsegError
from hemseg.model import Model
from hemseg.preprocessing import WorkingImage, working_image
from hemseg.segmentation import Segmentation, outlined, working_probability
from hemseg.volume import SUFFIXES, Volume, mask_name, read, stem, suffix

Result = TypeVar("Result")


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


def run(jobs: Iterable[Job], model: Model) -> Generator[Outcome]:
    """Do the jobs in order. A job's files are written, whole, before its outcome is given.

    While the network works on a scan, the next one is read and prepared and the one before it written: two threads
    beside the caller's, and never more than three scans in memory. What goes wrong with a scan becomes a sentence.
    """
    jobs = list(jobs)
    reasons = refused(jobs)

    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:

        def prepared(job: Job) -> Future[_Ready | Outcome]:
            return ahead.submit(_step, job, lambda: _prepare(job, model, reasons.get(job, "")))

        coming = prepared(jobs[0]) if jobs else None
        leaving: Future[Outcome] | None = None
        for job, after in zip(jobs, [*jobs[1:], None], strict=True):
            assert coming
            ready = coming.result()
            coming = prepared(after) if after else None
            if isinstance(ready, _Ready):
                ready = _step(job, partial(_answered, ready, model))
            if leaving:
                yield leaving.result()
            leaving = behind.submit(_finished, job, ready, model)
            del ready  # its voxels live only as long as they are needed
        if leaving:
            yield leaving.result()


def attempt(job: Job, model: Model) -> Outcome:
    """Do one job; what goes wrong becomes a sentence."""
    (outcome,) = run([job], model)
    return outcome


@dataclass(frozen=True, eq=False)
class _Ready:
    """A scan that was read and prepared, and later what the network said of it; ``seconds`` so far."""

    volume: Volume
    working: WorkingImage
    seconds: float
    probability: np.ndarray | None = None


def _prepare(job: Job, model: Model, refusal: str) -> _Ready:
    if refusal:
        raise HemsegError(refusal)
    volume = read(job.scan)
    start = time.perf_counter()
    working = working_image(volume, model.manifest.preprocessing)
    return _Ready(volume, working, time.perf_counter() - start)


def _answered(ready: _Ready, model: Model) -> _Ready:
    start = time.perf_counter()
    probability = working_probability(ready.working, model)
    return replace(ready, probability=probability, seconds=ready.seconds + time.perf_counter() - start)


def _finished(job: Job, ready: _Ready | Outcome, model: Model) -> Outcome:
    return ready if isinstance(ready, Outcome) else _step(job, lambda: _written(job, ready, model))


def _written(job: Job, ready: _Ready, model: Model) -> Outcome:
    assert ready.probability is not None
    result = outlined(ready.volume, ready.working, ready.probability, model.manifest)
    result = replace(result, seconds=ready.seconds + result.seconds)
    if job.overlay:
        from hemseg.report import write_overlay

        write_overlay(result, job.overlay, title=str(job.case))
    if job.report:
        from hemseg.report import findings, write_json

        write_json(findings(result, model, str(job.case)), job.report)
    result.save(job.mask)  # last: where there is a mask, there is all of the case
    return Outcome(job, result)


def _step(job: Job, step: Callable[[], Result]) -> Result | Outcome:
    """A step's result, or the outcome that says what went wrong."""
    try:
        return step()
    except HemsegError as error:
        return Outcome(job, None, str(error))
    except MemoryError:
        return Outcome(job, None, f"{job.scan}: there is not enough memory for it.", unexpected=True)
    except Exception as error:  # a fault of ours: name the case, and go on with the others
        said = f"{job.scan}: failed unexpectedly ({type(error).__name__}: {error}); please report it."
        return Outcome(job, None, said, unexpected=True)
