"""A folder of scans: which files are scans, where their masks go, and the pipeline that does them.

A case that fails is named with its reason, and the others are still done.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import cv2

from hemseg.checks import check_scan
from hemseg.errors import HemsegError, OutputError, one_line
from hemseg.folder.outputs import files_of, output_conflicts
from hemseg.io.fingerprint import unchanged
from hemseg.io.folders import may_be_dicom, unreadable_dicom, walk, without_masks
from hemseg.model import Model
from hemseg.names import name_problem, printable
from hemseg.report.probability import probability_path, write_probability
from hemseg.resources import is_out_of_memory, release_memory
from hemseg.sanity import require_plausible
from hemseg.segmentation import Segmentation, segment
from hemseg.signals import at_once
from hemseg.volume import SUFFIXES, Volume, mask_name, read, stem, suffix

logger = logging.getLogger("hemseg")
Found = tuple[Path, Path, tuple[Path, ...]]  # case (relative to the folder), path, files of a DICOM study
MASK_FORMATS = ("same", "mha", "nii.gz", "dicom-seg")


@dataclass(frozen=True)
class Job:
    """One scan to do.

    Attributes:
        case: its path relative to the input folder.
        scan: a file, or the folder of a DICOM study.
        overlay, report, thumbnail: where its pictures and its report (JSON, with an HTML page beside it) go, if
            anywhere.
        probability: where its probability image goes, if anywhere.
        files: those of a DICOM study; only the scan itself when empty.
        series: of a DICOM study, when the rule of `hemseg.dicom.reading` shall not choose.
        page: whether the report has an HTML page.
        strict: refuse what looks odd (`hemseg.checks`) and results that cannot be (`hemseg.sanity`), in place of a
            mask with a warning.
        operating_point: of the weights (`hemseg.model.Manifest.at`); '' for their own.
        refusal: why it cannot be done, where that is known before; a sentence.
    """

    case: Path
    scan: Path
    mask: Path
    overlay: Path | None = None
    report: Path | None = None
    thumbnail: Path | None = None
    probability: Path | None = None
    files: tuple[Path, ...] = ()
    series: str = ""
    page: bool = False
    strict: bool = False
    operating_point: str = ""
    refusal: str = ""

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Every file that it writes."""
        page = self.report.with_suffix(".html") if self.report and self.page else None
        return tuple(p for p in (self.mask, self.overlay, self.report, page, self.thumbnail, self.probability) if p)


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
    def told(self) -> list[str]:
        """What people must be told, a line each: the error, or what cannot be about the result and what looked odd."""
        if not self.result:
            return [one_line(f"error: {self.error}")]
        case = printable(str(self.job.case))
        told = [f"implausible: {case}: {text}" for text in self.result.implausible]
        told += [f"warning: {case}: {text}" for text in self.result.volume.warnings]
        return [one_line(line) for line in told]


@dataclass(frozen=True)
class OutputOptions:
    """What to write for each case beside the mask, and how.

    Attributes:
        format: of the mask: ``same`` as the scan's (MetaImage for DICOM), ``mha``, ``nii.gz``, or ``dicom-seg``.
        series, strict, operating_point: see `Job`.
    """

    overlay: bool = False
    report: bool = False
    probability: bool = False
    format: str = "same"
    series: str = ""
    strict: bool = False
    operating_point: str = ""

    def __post_init__(self) -> None:
        if self.format not in MASK_FORMATS:
            raise HemsegError(f"format {self.format!r} is not known; give one of {', '.join(MASK_FORMATS)}.")


def find_scans(folder: Path, leave_out: Path | None = None, unread: dict[Path, str] | None = None) -> list[Found]:
    """The scans of a folder: images, DICOM studies (the files of one study together) and zip archives of DICOM.

    Masks that hemseg wrote are no scans; they are passed over with a warning.

    Args:
        unread: see `walk`; it takes files that may be DICOM and cannot be opened, too.

    Returns:
        For each its case (relative to the folder), its path, and for a study its files.

    Raises:
        HemsegError: the folder is missing, not a folder, or holds no scan.
    """
    missing: dict[Path, str] = {}
    files = walk(folder, leave_out, missing if unread is not None else None)
    images = {p for p in [*files, *missing] if suffix(p) or p.suffix.lower() == ".zip"}  # a missing one fails by itself
    scans = without_masks(images)
    found: list[Found] = [(p.relative_to(folder), p, ()) for p in scans]
    from hemseg.dicom.reading import is_dicom

    others = [p for p in files if p not in images]
    if unread is not None:
        missing |= unreadable_dicom(others)
        unread |= {p: reason for p, reason in missing.items() if p not in images}
    found += find_studies(folder, [p for p in others if p not in missing and is_dicom(p)], alone=not found)
    if not found and not unread:
        raise HemsegError(f"{folder}: holds no scans; hemseg looks for {', '.join(SUFFIXES)}, DICOM and zip archives.")
    return sorted(found)


def find_studies(folder: Path, instances: list[Path], alone: bool) -> list[Found]:
    """DICOM files by study; a study's case is the folder that its files have in common.

    Args:
        alone: whether there is nothing else to do: DICOM files without CT are an error then, else a warning.

    Raises:
        HemsegError: pydicom is not installed, or see ``alone``.
    """
    if not instances:
        return []
    from hemseg.dicom.reading import require_pydicom

    require_pydicom()
    try:
        return _studies(folder, instances)
    except HemsegError as error:
        if alone:
            raise HemsegError(f"{folder}: {error}") from None
        logger.warning("%s: %s", printable(str(folder)), error)
        return []


def _studies(folder: Path, instances: list[Path]) -> list[Found]:
    from hemseg.dicom.reading import Source, find_series, studies

    found = []
    damaged: dict[Path, str] = {}
    series = find_series((Source(p) for p in instances), damaged)
    for study in studies(series):
        paths = {p for one in study for p in one.paths}
        beside = {p.parent for p in paths}  # a damaged file is told of with the study in whose folder it lies
        files = tuple(sorted(paths | {p for p in damaged if p.parent in beside}))
        common = Path(os.path.commonpath([p.parent for p in files]))
        found.append((common.relative_to(folder), common, files))
    if not found:
        raise HemsegError(f"its DICOM files hold no CT slices ({len(instances)} files).")
    places = Counter(case for case, _, _ in found)
    return [
        (Path(case, f"study{number}") if places[case] > 1 else case, path, files)
        for number, (case, path, files) in enumerate(sorted(found), start=1)
    ]


def plan_jobs(source: Path | Sequence[Path], target: Path, options: OutputOptions = OutputOptions()) -> list[Job]:
    """What is to be done for ``hemseg segment SOURCE TARGET``. Nothing is looked at that exists in ``target`` yet.

    A folder's scan ``a/b.nii.gz`` gets the mask ``TARGET/a/b.nii.gz``, the DICOM files in ``a/b`` get
    ``TARGET/a/b.mha``; a single scan gets ``TARGET`` itself if that ends in an image suffix, else a file of its own
    name in the folder ``TARGET``. Several sources go to the folder ``TARGET``: files under their names, what a folder
    holds under the folder's name.

    Raises:
        HemsegError: nothing to do, or the target is not what these sources need.
    """
    sources = [source] if isinstance(source, Path) else list(dict.fromkeys(source))
    unread: dict[Path, str] = {}
    if len(sources) == 1:
        alone, to_file, found = _found_in_one(sources[0], target, unread)
    else:
        alone, to_file, found = False, False, _found_in_several(sources, target, unread)
    masks = [target if to_file else target / c.parent / _mask_name(s, c, bool(f), options.format) for c, s, f in found]
    stems = Counter(_without_suffix(mask) for mask in masks)
    jobs = []
    for (case, scan, files), mask in zip(found, masks, strict=True):
        own = _without_suffix(mask)
        if stems[own] > 1:  # a.mha beside a.nii.gz
            own = mask.with_name(case.name)
        job = Job(
            case=case,
            scan=scan,
            mask=mask,
            overlay=own.with_name(f"{own.name}.png") if options.overlay else None,
            report=own / "report.json" if options.report else None,
            probability=probability_path(mask, own) if options.probability else None,
            thumbnail=None if alone else target / "thumbnails" / case.parent / f"{case.name}.jpg",
            files=files,
            series=options.series,
            page=options.report,
            strict=options.strict,
            operating_point=options.operating_point,
        )
        jobs.append(replace(job, refusal=known_refusal(job, unread)))
    for path, reason in unread.items():  # each is a case that failed: named, counted, and tried again
        if path == source:
            raise HemsegError(f"{path}: {reason}")
        above = next(s for s in sources if s == path or s in path.parents)
        case = path.relative_to(above) if len(sources) == 1 else above.resolve().name / path.relative_to(above)
        jobs.append(Job(case, path, target / case, thumbnail=target / case, refusal=f"{path}: {reason}"))
    return jobs


def known_refusal(job: Job, unread: Collection[Path]) -> str:
    """Why a job cannot be done, as far as that is known before anything is read."""
    if problem := name_problem(job.scan, *job.outputs):
        return f"{job.scan}: {problem}"
    beside = {path.parent for path in job.files}
    if missing := [path for path in unread if path.parent in beside and may_be_dicom(path)]:
        count = f"{len(missing)} of its files" if len(missing) > 1 else missing[0].name
        return f"{job.scan}: {count} may not be read; check the permissions, or slices would be missing."
    return ""


def _found_in_one(source: Path, target: Path, unread: dict[Path, str]) -> tuple[bool, bool, list[Found]]:
    """Whether it is a single scan, whether the target is the mask's name, and the scans."""
    alone = source.is_file() or (not source.exists() and bool(suffix(source)))
    to_file = bool(suffix(target) or target.suffix == ".dcm") and not target.is_dir()
    if alone:
        found: list[Found] = [(Path(source.name), source, ())]
    else:
        found = find_scans(source, target if target.resolve() != source.resolve() else None, unread)
        if to_file and (len(found) != 1 or not found[0][2]):
            raise HemsegError(
                f"{target}: is the name of one image, but {source} is a folder; give a folder for the masks."
            )
    return alone, to_file, [(own_name(case, source), scan, files) for case, scan, files in found]


def _found_in_several(sources: Sequence[Path], target: Path, unread: dict[Path, str]) -> list[Found]:
    if target.exists() and not target.is_dir():
        raise HemsegError(f"{target}: is a file; with several scans the last name is the folder for their masks.")
    if suffix(target) and not target.exists():
        raise HemsegError(f"{target}: is the name of one image; give a folder for the masks of several scans.")
    found: list[Found] = []
    for source in sources:
        if source.is_dir():
            name = Path(source.resolve().name)
            leave_out = target if target.resolve() != source.resolve() else None
            found += [(name / case, scan, files) for case, scan, files in find_scans(source, leave_out, unread)]
        else:
            found.append((Path(source.name), source, ()))
    return found


def own_name(case: Path, folder: Path) -> Path:
    """A case, or the folder's own name for the study whose files lie in the folder itself."""
    return Path(folder.resolve().name) if case == Path(".") else case


def _without_suffix(mask: Path) -> Path:
    return mask.with_name(stem(mask)) if suffix(mask) else mask.with_suffix("")


def _mask_name(scan: Path, case: Path, study: bool, form: str) -> str:
    """File name of a mask."""
    own = case.name if study else stem(scan) if suffix(scan) else scan.stem
    if form == "same":
        return mask_name(scan) if suffix(scan) else f"{own}.mha"
    return f"{own}.dcm" if form == "dicom-seg" else f"{own}.{form}"


def run_jobs(jobs: Iterable[Job], model: Model, ended: Callable[[Outcome], object] | None = None) -> Generator[Outcome]:
    """Do the jobs; outcomes come in their order. A job's files are written, whole, before its outcome is given.

    ``model.concurrent_scans`` scans are under way at once, each in a thread from the file to the mask, so that reading,
    preparing and writing fill what the network of another one leaves idle; one more may wait for its turn to be given.
    What goes wrong with a scan becomes a sentence. Closed early, it lets what is under way end, and begins no more.

    Args:
        ended: is called with every outcome as soon as there is one, from its thread: also with those that nobody takes.
    """
    cv2.setNumThreads(1)  # its threads would wait, spinning, for those of other scans and of the network
    jobs = list(jobs)
    reasons = output_conflicts(jobs)
    coming: deque[Future[Outcome]] = deque()
    with at_once() if len(jobs) == 1 else nullcontext(), ThreadPoolExecutor(model.concurrent_scans) as threads:
        try:
            for job in jobs:
                coming.append(threads.submit(_run_one, job, model, reasons.get(job, ""), ended))
                if len(coming) > model.concurrent_scans:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def run_job(job: Job, model: Model) -> Outcome:
    """Do one job; what goes wrong becomes a sentence."""
    (outcome,) = run_jobs([job], model)
    return outcome


def _run_one(job: Job, model: Model, refusal: str, ended: Callable[[Outcome], object] | None) -> Outcome:
    outcome = Outcome(job, None, refusal) if refusal else _safely(job, model)
    if model.concurrent_scans > 1:
        release_memory()
    if ended:
        ended(outcome)
    return outcome


def _safely(job: Job, model: Model) -> Outcome:
    """Do a job; what goes wrong becomes a sentence."""
    try:
        return Outcome(job, _segment_and_write(job, model))
    except HemsegError as error:
        return Outcome(job, None, str(error), unexpected=isinstance(error, OutputError))
    except Exception as error:  # a fault of ours: name the case, and go on with the others
        if is_out_of_memory(error):
            return Outcome(job, None, f"{job.scan}: there is not enough memory for it.", unexpected=True)
        said = f"{job.scan}: failed unexpectedly ({type(error).__name__}: {error}); please report it."
        return Outcome(job, None, said, unexpected=True)


def _segment_and_write(job: Job, model: Model) -> Segmentation:
    """Read, segment, write."""
    model = model.at(job.operating_point)
    with unchanged(files_of(job), job.scan) as fingerprint:
        volume = replace(_read(job), fingerprint=fingerprint)
    start = time.perf_counter()
    volume, working = check_scan(volume, model.manifest.preprocessing, job.strict, model.strip)
    result = segment(volume, model, working)
    result = replace(result, seconds=time.perf_counter() - start)
    if job.strict:
        require_plausible(result)
    if job.overlay or job.thumbnail or job.report:
        from hemseg.report import findings

        if job.overlay:
            findings.write_overlay(result, job.overlay, title=str(job.case))
        if job.thumbnail:
            findings.write_thumbnail(result, job.thumbnail)
        if job.report:
            found = findings.findings(result, model, str(job.case))
            findings.write_json(found, job.report)
            if job.page:
                from hemseg.report.viewer import write_page

                write_page(result, found, job.report.with_suffix(".html"))
    if job.probability:
        write_probability(result, job.probability)
    result.save(job.mask)  # last: where there is a mask, there is all of the case
    return result


def _read(job: Job) -> Volume:
    if not job.files:
        return read(job.scan, job.series)
    from hemseg.dicom.reading import Source, read_series

    return read_series([Source(path) for path in job.files], job.scan, job.series)
