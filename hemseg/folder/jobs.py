"""Do the jobs of a folder of scans: read, segment, write. A case that fails is named, and the others are done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

import cv2

from hemseg.checks import check_scan
from hemseg.dicom.reading import read_series
from hemseg.dicom.source import Source
from hemseg.errors import HemsegError, OutputError, one_line
from hemseg.folder.outputs import files_of, output_conflicts
from hemseg.folder.plan import Job
from hemseg.io.files import write_json
from hemseg.io.fingerprint import unchanged
from hemseg.mask_formats import write_result
from hemseg.measure import measure, read_given_mask
from hemseg.model import Model
from hemseg.names import printable
from hemseg.report import findings
from hemseg.report.kinds import write_kinds
from hemseg.report.probability import write_probability
from hemseg.report.viewer import write_page
from hemseg.resources import failure, release_memory
from hemseg.scan import read
from hemseg.segmentation import Segmentation, lesion_kinds, require_plausible, segment
from hemseg.signals import exit_on_first_signal, raise_pending_signal
from hemseg.volume import Volume
from hemseg.volume_range import volume_range


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

    @property
    def messages(self) -> list[str]:
        """What people must know, a line each: the error, or what cannot be about the result and what looked odd."""
        if not self.result:
            return [one_line(f"error: {self.error}")]
        case = printable(str(self.job.case))
        lines = [f"implausible: {case}: {text}" for text in self.result.implausible]
        lines += [f"warning: {case}: {text}" for text in self.result.volume.warnings]
        return [one_line(line) for line in lines]


def run_jobs(
    jobs: Iterable[Job], model: Model, on_outcome: Callable[[Outcome], object] | None = None
) -> Generator[Outcome]:
    """Do the jobs; outcomes come in their order. A job's files are written, whole, before its outcome is given.

    ``model.concurrent_scans`` scans are under way at once, each in a thread from the file to the mask, so that reading,
    preparing and writing fill what the network of another one leaves idle; one more may wait for its turn to be given.
    What goes wrong with a scan becomes a sentence. Closed early, it lets what is under way end, and begins no more.

    Args:
        on_outcome: is called with every outcome as soon as there is one, from its thread, also if nobody consumes it.
    """
    cv2.setNumThreads(1)  # its threads would wait, spinning, for those of other scans and of the network
    jobs = list(jobs)
    reasons = output_conflicts(jobs)
    pending: deque[Future[Outcome]] = deque()
    with (
        exit_on_first_signal() if len(jobs) == 1 else nullcontext(),
        ThreadPoolExecutor(model.concurrent_scans) as threads,
    ):
        try:
            for job in jobs:
                raise_pending_signal()
                pending.append(threads.submit(_run_unless_refused, job, model, reasons.get(job, ""), on_outcome))
                if len(pending) > model.concurrent_scans:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def run_job(job: Job, model: Model) -> Outcome:
    """Do one job; what goes wrong becomes a sentence."""
    (outcome,) = run_jobs([job], model)
    return outcome


def _run_unless_refused(
    job: Job, model: Model, refusal: str, on_outcome: Callable[[Outcome], object] | None
) -> Outcome:
    outcome = Outcome(job, None, refusal) if refusal else _run_catching_errors(job, model)
    if model.concurrent_scans > 1:
        release_memory()
    if on_outcome:
        on_outcome(outcome)
    return outcome


def _run_catching_errors(job: Job, model: Model) -> Outcome:
    """Do a job; what goes wrong becomes a sentence."""
    try:
        return Outcome(job, _segment_and_write(job, model))
    except HemsegError as error:
        return Outcome(job, None, str(error), unexpected=isinstance(error, OutputError))
    except Exception as error:  # a fault of ours: name the case, and go on with the others
        return Outcome(job, None, failure(error, str(job.scan)), unexpected=True)


def _segment_and_write(job: Job, model: Model) -> Segmentation:
    """Read, segment, write."""
    model = model.at(job.operating_point)
    with unchanged(files_of(job), job.scan) as fingerprint:
        volume = replace(_read_volume(job), fingerprint=fingerprint)
    start = time.perf_counter()
    volume, working = check_scan(volume, model.manifest.preprocessing, job.strict, model.strip)
    if job.given:
        mask, message = read_given_mask(job.mask, volume, job.label)
        volume = replace(volume, warnings=(*volume.warnings, *([message] if message else [])))
        result = measure(volume, mask, working, job.mask)
        result = replace(result, kinds=lesion_kinds(result.mask, volume, working, model))
    else:
        result = segment(volume, model, working)
        if job.range:
            result = replace(result, range_ml=volume_range(result, model))
    result = replace(result, seconds=time.perf_counter() - start)
    if job.strict:
        require_plausible(result)
    if job.overlay:
        findings.write_overlay(result, job.overlay, title=str(job.case))
    if job.thumbnail:
        findings.write_thumbnail(result, job.thumbnail)
    if job.report:
        found = findings.findings(result, model, str(job.case))
        write_json(found, job.report)
        if job.page:
            write_page(result, found, job.report.with_suffix(".html"))
    if job.probability:
        write_probability(result, job.probability)
    if job.kinds:
        write_kinds(result, job.kinds)
    if not job.given:
        write_result(result, job.mask, job.format, job.companion)  # last: where there is a mask, there is all of it
    return result


def _read_volume(job: Job) -> Volume:
    if not job.files:
        return read(job.scan, job.series)
    return read_series([Source(path) for path in job.files], job.scan, job.series)
