"""Which scans a folder holds: images, zip archives, and DICOM files by study."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

from hemseg.dicom.reading import find_series, studies
from hemseg.dicom.source import Source, is_dicom, require_pydicom
from hemseg.errors import HemsegError
from hemseg.io.folders import unreadable_dicom, walk, without_masks
from hemseg.io.formats import SUFFIXES, suffix
from hemseg.names import printable

logger = logging.getLogger("hemseg")
Found = tuple[Path, Path, tuple[Path, ...]]  # case (relative to the folder), path, files of a DICOM study


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
    require_pydicom()
    try:
        return _studies(folder, instances)
    except HemsegError as error:
        if alone:
            raise HemsegError(f"{folder}: {error}") from None
        logger.warning("%s: %s", printable(str(folder)), error)
        return []


def _studies(folder: Path, instances: list[Path]) -> list[Found]:
    found = []
    damaged: dict[Path, str] = {}
    series = find_series((Source(p) for p in instances), damaged)
    for study in studies(series):
        paths = {p for one in study for p in one.paths}
        beside = {p.parent for p in paths}  # a damaged file is reported with the study in whose folder it lies
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


def own_name(case: Path, folder: Path) -> Path:
    """A case, or the folder's own name for the study whose files lie in the folder itself."""
    return Path(folder.resolve().name) if case == Path(".") else case
