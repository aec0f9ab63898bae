"""Which mask belongs to which scan, for ``hemseg measure SCAN MASK OUTPUT``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.folder.plan import Job, OutputOptions, plan_jobs
from hemseg.io.formats import SUFFIXES, stem, suffix


def plan_measure(scans: Path, masks: Path, target: Path, options: OutputOptions) -> list[Job]:
    """What is to be done for ``hemseg measure SCANS MASKS TARGET``.

    A folder's mask has the path in its folder that the scan has in its own, with any suffix of an image: where
    ``hemseg segment`` would have put it.

    Args:
        scans: a scan, or a folder of scans.
        masks: the mask of the one scan that there is, or a folder.
        target: the folder for tables, pictures and reports.
        options: what to write, and which label counts.

    Raises:
        HemsegError: nothing to do, or the folders are not what is needed.
    """
    if not masks.exists():
        raise HemsegError(f"{masks}: there is no such file or folder of masks.")
    if target.is_file() or (suffix(target) and not target.is_dir()):
        raise HemsegError(f"{target}: give a folder for the tables, not a file.")
    if target.resolve() in (masks.resolve(), scans.resolve()):
        raise HemsegError(f"{target}: holds the scans or their masks; give another folder for the tables.")
    jobs = plan_jobs(scans, target, options)
    if masks.is_file():
        if len(jobs) != 1:
            raise HemsegError(f"{masks}: is one mask, but {scans} holds {len(jobs)} scans; give a folder of masks.")
        return [_measured(jobs[0], masks, target)]
    if masks.resolve() == scans.resolve():
        raise HemsegError(f"{masks}: holds scans and masks; move the masks to a folder of their own.")
    folder = masks.resolve()
    jobs = [job for job in jobs if folder not in job.scan.resolve().parents]
    if not jobs:
        raise HemsegError(f"{scans}: holds no scans beside the masks.")
    return [job if job.refusal else _paired(job, masks, target) for job in jobs]


def _measured(job: Job, mask: Path, target: Path) -> Job:
    thumbnail = target / "thumbnails" / job.case.parent / f"{job.case.name}.jpg"
    return replace(job, mask=mask, given=True, thumbnail=thumbnail, probability=None)


def _paired(job: Job, masks: Path, target: Path) -> Job:
    """The job with its mask, or with the reason why there is none."""
    place = job.mask.relative_to(target)
    own = masks / place.parent / (stem(place) if suffix(place) else place.stem)
    found = [path for path in (own.with_name(f"{own.name}{kind}") for kind in SUFFIXES) if path.is_file()]
    exact = masks / place
    if exact in found:
        found = [exact]
    if len(found) == 1:
        return _measured(job, found[0], target)
    if found:
        names = ", ".join(path.name for path in found)
        why = f"has several masks in {own.parent} ({names}); keep one."
    else:
        why = f"there is no mask for it ({own} with one of {', '.join(SUFFIXES)})."
    return replace(job, given=True, refusal=f"{job.scan}: {why}")
