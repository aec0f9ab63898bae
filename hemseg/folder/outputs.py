"""Which existing files a run may replace: those that hemseg made of the same scan, and no others.

Everything is looked at before any work is done, and whatever stands in the way is named at once.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.folder.plan import Job
from hemseg.io.fingerprint import content_of, scan_files
from hemseg.io.marks import read_mark

NAMED_CASES = 5  # that would write the same file
NAMED = 20  # files that an error names
Listed = Callable[[Job, Path], bool]


def files_of(job: Job) -> list[Path]:
    """The files that a scan is read from: those that its header names, too."""
    return list(job.files) or scan_files(job.scan)


def refuse_conflicts(
    jobs: Sequence[Job],
    inputs: Sequence[Job] = (),
    tables: Iterable[Path] = (),
    listed: Listed = lambda job, path: False,
    overwrite: bool = False,
    may_overwrite: bool = True,
) -> None:
    """Raise if a file that the jobs would write is one of the scans, or somebody else's.

    Args:
        jobs: those that are going to be done.
        inputs: all jobs of the plan: none of their scans is ever replaced.
        tables: other files that will be written.
        listed: whether the output folder's journal says that an existing output is this job's.
        overwrite: replace what hemseg did not write; a scan is never replaced.
        may_overwrite: whether whoever is refused could have asked for that; the sentence says so then.

    Raises:
        HemsegError: names them all.
    """
    planned: list[tuple[Path, Job | None]] = [(path, job) for job in jobs if not job.refusal for path in job.outputs]
    planned += [(path, None) for path in tables]
    blocked = _blocked({path.parent for path, _ in planned})
    found = [f"{path} (is not a folder)" for path in dict.fromkeys(blocked.values())]
    existing = [(path, job) for path, job in planned if path.parent not in blocked and os.path.lexists(path)]
    scans = _identities(inputs or jobs, overwrite) if existing else {}
    replaced = False
    for path, job in existing:
        if path.is_dir():
            found.append(f"{path} (is a folder)")
        elif (scan := scans.get(_identity(path))) is not None:
            found.append(f"{path} (would replace the scan {scan.name})")
        elif not overwrite and (why := _foreign(path, job, listed)):
            found.append(f"{path} ({why})")
            replaced = True
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        names = "; ".join(found[:NAMED]) + more
        offer = ", or --overwrite to replace them" if replaced and may_overwrite else ""
        raise HemsegError(
            f"nothing was done, as these files could not be written: {names}; "
            f"give another folder for the output{offer}."
        )


def _foreign(path: Path, job: Job | None, listed: Listed) -> str:
    """Why an existing file is not ours to replace; empty if it is."""
    if job and listed(job, path):
        return ""
    made = read_mark(path)
    if made is None:
        return "hemseg did not write it, or it was changed since"
    if job is None or made.scan == "-":
        return ""
    try:
        same = content_of(files_of(job)).startswith(made.scan)
    except OSError:
        same = False
    return "" if same else "belongs to another scan, or to this one before it was changed"


def _blocked(folders: Iterable[Path]) -> dict[Path, Path]:
    """Folders that cannot be made, each with the file that is in its way."""
    found = {}
    for folder in folders:
        there = next((p for p in (folder, *folder.parents) if os.path.lexists(p)), None)
        if there and not there.is_dir():
            found[folder] = there
    return found


def _identity(path: Path) -> tuple[int, int]:
    """Device and inode: the same for every name of a file."""
    try:
        state = path.stat()
    except OSError:  # a link that leads nowhere
        state = path.lstat()
    return state.st_dev, state.st_ino


def _identities(jobs: Iterable[Job], headers: bool) -> dict[tuple[int, int], Path]:
    """The scans' files by their identity; with ``headers`` also those that headers name."""
    found = {}
    for job in jobs:
        scan = files_of(job) if headers else (job.scan, *job.files)
        for path in (*scan, *([job.mask] if job.given else [])):
            try:
                found[_identity(path)] = path
            except OSError:
                continue
    return found


def output_conflicts(jobs: Iterable[Job]) -> dict[Job, str]:
    """The jobs that cannot be done, each with a sentence: those that would write one and the same file among them."""
    reasons = {}
    writers: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        if job.refusal:
            reasons[job] = job.refusal
            continue
        for path in job.outputs:
            writers[os.path.abspath(path)].append(job)
    for output, several in writers.items():
        if len(several) < 2:
            continue
        for job in several:
            others = [str(other.case) for other in itertools.islice(several, NAMED_CASES + 1) if other is not job][
                :NAMED_CASES
            ]
            more = f" and {len(several) - 1 - len(others)} more" if len(several) - 1 > len(others) else ""
            same = f"{job.case}: would write the same {Path(output).name} as {', '.join(others)}{more}"
            reasons.setdefault(job, f"{same}; rename one of them.")
    return reasons
