"""Where the outputs of the container's cases go, and whether it is safe to write there.

What is to be done at all decides `hemseg.grand_challenge.sockets.plan_run`; `hemseg.grand_challenge.batch` and
`hemseg.grand_challenge.server` do it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from hemseg.dicom.reading import is_dicom
from hemseg.errors import HemsegError
from hemseg.folder.jobs import Outcome
from hemseg.folder.plan import Job
from hemseg.folder.scans import Found, find_studies, own_name
from hemseg.grand_challenge.sockets import OUTPUT, RESULTS, RunPlan, Sockets
from hemseg.io.folders import unreadable_dicom, walk, without_masks
from hemseg.io.formats import mask_name, suffix

Identity = tuple[int, int]  # of a file or folder, however it is reached: device and inode


def print_messages(outcome: Outcome) -> None:
    """Errors and warnings of a case on stderr, a line each."""
    for line in outcome.messages:
        print(line, file=sys.stderr, flush=True)


def survey(
    source: Path, leave_out: Path | None = None, unread: dict[Path, str] | None = None
) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """All files below the input folder, relative to it, and those of them that are DICOM.

    Args:
        unread: takes what cannot be read, though it may be a scan or part of one, each with the reason.

    Raises:
        HemsegError: there is no such folder, or, without ``unread``, part of it cannot be read.
    """
    found = without_masks(walk(source, leave_out, unread))
    failed = unreadable_dicom(p for p in found if not suffix(p))
    if unread is not None:
        unread |= failed
    elif failed:
        path, reason = next(iter(failed.items()))
        raise HemsegError(f"{path}: {reason}")
    files = [PurePosixPath(p.relative_to(source)) for p in found]
    return files, [p for p in files if not suffix(Path(p)) and is_dicom(source / p)]


def plan_jobs(run_plan: RunPlan, source: Path, target: Path, predict: Path, sockets: Sockets) -> list[Job]:
    """What is to be written for each case.

    Raises:
        HemsegError: the DICOM files hold nothing to segment, or a socket's path does not go with the mode.
    """
    if run_plan.mode == "instance":
        return [Job(Path(scan), source / scan, predict / scan.name) for scan in run_plan.scans]
    found: list[Found] = [(Path(scan), source / scan, ()) for scan in run_plan.scans]
    if run_plan.mode == "legacy":
        found += find_studies(source, [source / p for p in run_plan.dicom], alone=not found)
        named = sorted((own_name(case, source), path, files) for case, path, files in found)
        return [Job(c, path, target / "images" / _mask_name(c, path, f), files=f) for c, path, f in named]
    if run_plan.dicom:  # the files of one socket are one case
        folder = Path(run_plan.dicom[0].parent)
        found = [(own_name(folder, source), source / folder, tuple(source / p for p in run_plan.dicom))]
    ((case, path, files),) = found
    mask = target / sockets.mask_path / OUTPUT
    heat_map = target / sockets.heat_map_path / OUTPUT if sockets.heat_map_path else None
    if run_plan.mode == "gc-generic":
        mask = target / "images" / _mask_name(case, path, files)
        if heat_map and PurePosixPath(sockets.heat_map_path).parts[0] == "images":
            raise HemsegError(
                f"heat_map_path {sockets.heat_map_path!r} lies in images, which the generic socket of the mask has to "
                "itself; use a segmentation socket of your own for the mask, or no heat map."
            )
        sockets.require_apart(
            {"the mask": PurePosixPath("images", mask.name), "the list of results": PurePosixPath(RESULTS)}
        )
    report = target / sockets.report_path if sockets.report_path else None
    return [Job(case, path, mask, report=report, probability=heat_map, files=files)]


def _mask_name(case: Path, path: Path, files: tuple[Path, ...]) -> str:
    return f"{case.name}.mha" if files else mask_name(path)


def results_entry(job: Job, error: str) -> dict[str, Any]:
    """The entry of a case in evalutils' ``results.json``."""
    return {
        "outputs": [] if error else [{"type": "metaio_image", "filename": job.mask.name}],
        "inputs": [{"type": "metaio_image", "filename": job.case.name}],
        "error_messages": [error] if error else [],
    }


def is_results(path: Path) -> bool:
    """Whether a file is a ``results.json`` as it is written here (and by evalutils): it may be replaced."""
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    keys = {"outputs", "inputs", "error_messages"}
    return isinstance(entries, list) and all(isinstance(entry, dict) and set(entry) == keys for entry in entries)


def check_mounts(source: Path, outputs: Iterable[Path]) -> None:
    """Raise HemsegError where an output folder is the input folder, by whatever path or mount."""
    for folder in outputs:
        same = folder.samefile(source) if folder.exists() and source.exists() else folder.resolve() == source.resolve()
        if same:
            raise HemsegError(f"{folder}: is the input folder, too; mount another one for the masks.")


def check_outputs(
    outputs: Iterable[Path], source: Path, files: Iterable[PurePosixPath], roots: Collection[Path]
) -> None:
    """Raise where an output would replace a file of the input, or lie in one of its folders that is mounted twice.

    Args:
        files: all of the input, relative to ``source``.
        roots: the folders that outputs are written to; that one of them lies in the input folder is no fault.

    Raises:
        HemsegError: so it is.
    """
    inputs = {identity: f for f in files if (identity := _identity(source / f))}
    folders = _folders(source, {root.resolve() for root in roots})
    for output in outputs:
        if scan := inputs.get(_identity(output) or (-1, -1)):
            raise HemsegError(f"{output}: would replace {source / scan}, a file of the input; mount another folder.")
        for parent in output.parents:
            if _identity(parent) in folders:
                raise HemsegError(f"{parent}: is a folder of the input, too; mount another one for the masks.")
            if parent in roots:
                break


def _folders(source: Path, leave_out: Collection[Path]) -> set[Identity]:
    found = set()
    for parent, folders, _ in os.walk(source):
        folders[:] = [f for f in folders if Path(parent, f).resolve() not in leave_out]
        if identity := _identity(Path(parent)):
            found.add(identity)
    return found


def _identity(path: Path) -> Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
