"""What is to be done for a folder of scans: a job per case, and where its outputs go. Nothing is read or written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.folder.scans import Found, find_scans, own_name
from hemseg.io.folders import may_be_dicom
from hemseg.io.formats import mask_name, stem, suffix
from hemseg.io.masks import require_exact_geometry
from hemseg.mask_formats import MASK_FORMATS, SAME, format_of
from hemseg.names import name_problem
from hemseg.report.kinds import kinds_path
from hemseg.report.probability import probability_path


@dataclass(frozen=True)
class Job:
    """One scan to do.

    Attributes:
        case: its path relative to the input folder.
        scan: a file, or the folder of a DICOM study.
        overlay, report, thumbnail: where its pictures and its report (JSON, with an HTML page beside it) go, if
            anywhere.
        probability, kinds: where its probability image and its mask of kinds go, if anywhere.
        format: of the mask, one of `hemseg.mask_formats.MASK_FORMATS`.
        companion: where the second file of this format goes (the structured report of ``dicom``), if it has one.
        files: those of a DICOM study; only the scan itself when empty.
        series: of a DICOM study, when the rule of `hemseg.dicom.reading` shall not choose.
        page: whether the report has an HTML page.
        given: whether the mask is there, to be measured: it is read, never written.
        label: the value of a given mask that counts; 0 for all above 0.
        range: whether the volume gets a range (`hemseg.volume_range`).
        strict: refuse what looks odd (`hemseg.checks`) and results that cannot be (`hemseg.sanity`), in place of a
            mask with a warning.
        operating_point: of the weights (`hemseg.manifest.Manifest.at`); '' for their own.
        refusal: why it cannot be done, where that is known before; a sentence.
    """

    case: Path
    scan: Path
    mask: Path
    overlay: Path | None = None
    report: Path | None = None
    thumbnail: Path | None = None
    probability: Path | None = None
    kinds: Path | None = None
    format: str = SAME
    companion: Path | None = None
    files: tuple[Path, ...] = ()
    series: str = ""
    page: bool = False
    strict: bool = False
    operating_point: str = ""
    refusal: str = ""
    given: bool = False
    label: int = 0
    range: bool = False

    @property
    def outputs(self) -> tuple[Path, ...]:
        """Every file that it writes."""
        page = self.report.with_suffix(".html") if self.report and self.page else None
        mask = None if self.given else self.mask
        beside = (self.overlay, self.report, page, self.thumbnail, self.probability, self.companion, self.kinds)
        return tuple(p for p in (mask, *beside) if p)


@dataclass(frozen=True)
class OutputOptions:
    """What to write for each case beside the mask, and how.

    Attributes:
        format: of the mask, one of `hemseg.mask_formats.MASK_FORMATS`.
        series, strict, operating_point, range: see `Job`.
        measure, label: masks are given, see `Job`.
    """

    overlay: bool = False
    report: bool = False
    probability: bool = False
    format: str = SAME
    series: str = ""
    strict: bool = False
    operating_point: str = ""
    measure: bool = False
    label: int = 0
    range: bool = False
    kinds: bool = False

    def __post_init__(self) -> None:
        if self.format not in MASK_FORMATS:
            raise HemsegError(f"format {self.format!r} is not known; give one of {', '.join(MASK_FORMATS)}.")


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
    form = MASK_FORMATS[options.format]
    if to_file and form.suffix and not target.name.lower().endswith(form.suffix):
        raise HemsegError(f"{target}: a mask of --format {form.name} ends in {form.suffix}; leave one of both out.")
    if to_file and not options.measure and suffix(target) and suffix(found[0][1]):
        require_exact_geometry(target, found[0][1])  # before anything is read
    masks = [target if to_file else target / c.parent / _mask_name(s, c, bool(f), form.suffix) for c, s, f in found]
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
            kinds=kinds_path(mask, own) if options.kinds else None,
            format=options.format,
            companion=own.with_name(f"{own.name}{form.companion}") if form.companion else None,
            thumbnail=None if alone else target / "thumbnails" / case.parent / f"{case.name}.jpg",
            files=files,
            series=options.series,
            page=options.report,
            strict=options.strict,
            operating_point=options.operating_point,
            given=options.measure,
            label=options.label,
            range=options.range,
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
    """Why a job cannot be done, as far as that is known before anything is read, and pages and pictures are written."""
    if problem := name_problem(job.scan, *job.outputs):
        return f"{job.scan}: {problem}"
    beside = {path.parent for path in job.files}
    if missing := [path for path in unread if path.parent in beside and may_be_dicom(path)]:
        count = f"{len(missing)} of its files" if len(missing) > 1 else missing[0].name
        return f"{job.scan}: {count} may not be read; check the permissions, or slices would be missing."
    if job.given or job.files or not suffix(job.scan):
        return ""
    form = format_of(job.mask) if job.format == SAME else MASK_FORMATS[job.format]
    if form and form.of_slices:
        return f"{job.mask}: a mask of --format {form.name} refers to DICOM slices, but {job.scan} has none."
    try:
        if suffix(job.mask):
            require_exact_geometry(job.mask, job.scan)
    except HemsegError as error:
        return str(error)
    return ""


def _found_in_one(source: Path, target: Path, unread: dict[Path, str]) -> tuple[bool, bool, list[Found]]:
    """Whether it is a single scan, whether the target is the mask's name, and the scans."""
    alone = source.is_file() or (not source.exists() and bool(suffix(source)))
    to_file = names_mask(target) and not target.is_dir()
    if alone:
        found: list[Found] = [(Path(source.name), source, ())]
    else:
        found = find_scans(source, target if target.resolve() != source.resolve() else None, unread)
        if to_file and (len(found) != 1 or not found[0][2]):
            raise HemsegError(
                f"{target}: is the name of one image, but {source} is a folder; give a folder for the masks."
            )
    return alone or to_file, to_file, [(own_name(case, source), scan, files) for case, scan, files in found]


def _found_in_several(sources: Sequence[Path], target: Path, unread: dict[Path, str]) -> list[Found]:
    if target.exists() and not target.is_dir():
        raise HemsegError(f"{target}: is a file; with several scans the last name is the folder for their masks.")
    if names_mask(target) and not target.exists():
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


def names_mask(path: Path) -> bool:
    """Whether a path is by its suffix that of a mask, not of a folder."""
    return bool(suffix(path) or format_of(path))


def _without_suffix(mask: Path) -> Path:
    form = format_of(mask)
    return mask.with_name(mask.name[: -len(form.suffix)] if form else stem(mask))


def _mask_name(scan: Path, case: Path, study: bool, ending: str) -> str:
    """File name of a mask; ``ending``: its suffix, '' for the scan's own."""
    own = case.name if study else stem(scan) if suffix(scan) else scan.stem
    if not ending and suffix(scan):
        return mask_name(scan)
    return f"{own}{ending or '.mha'}"
