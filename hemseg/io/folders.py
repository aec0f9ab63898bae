"""What lies in a folder: which of its files may be scans, and which of them cannot be read."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.io.formats import suffix
from hemseg.io.marks import read_mark
from hemseg.io.output_folder import is_output_folder
from hemseg.names import printable

logger = logging.getLogger("hemseg")


def walk(folder: Path, leave_out: Path | None = None, unread: dict[Path, str] | None = None) -> list[Path]:
    """All files below a folder, in order.

    Hidden ones, the folder ``leave_out``, older output folders of hemseg, and what is no file (pipes, sockets, devices)
    are passed over, the latter two with a warning. Linked folders are followed once, linked files count under their own
    name.

    Args:
        unread: takes the folders and linked files that cannot be looked at, each with the reason.

    Raises:
        HemsegError: the folder is missing, or not a folder, or, without ``unread``, part of it cannot be read.
    """
    if not folder.exists():
        raise HemsegError(f"{folder}: there is no such folder.")
    if not folder.is_dir():
        raise HemsegError(f"{folder}: is not a folder.")
    without = leave_out.resolve() if leave_out else None
    seen: set[Path] = set()
    found: list[Path] = []
    failed: dict[Path, str] = {}
    passed: list[Path] = []

    def note(error: OSError) -> None:
        failed[Path(error.filename)] = f"may not be read ({error.strerror}); check its permissions."

    for parent, folders, files in os.walk(folder, onerror=note, followlinks=True):
        here = Path(parent).resolve()
        if here in seen or here == without:
            if here in seen:
                logger.warning("%s: leads to a folder that was searched already, passed over", printable(parent))
            folders.clear()
            continue
        seen.add(here)
        if Path(parent) != folder and is_output_folder(here):
            logger.warning("%s: is an output folder of hemseg, passed over", printable(parent))
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            path = Path(parent, name)
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
            except OSError as error:  # a link that leads nowhere
                if suffix(path) or path.suffix.lower() == ".zip" or may_be_dicom(path):
                    failed[path] = f"cannot be read ({error.strerror})."
                continue
            (found if regular else passed).append(path)
    if passed:
        names = ", ".join(printable(str(path)) for path in sorted(passed)[:3]) + ", ..." * (len(passed) > 3)
        logger.warning("%d pipes, sockets or devices are passed over: %s", len(passed), names)
    if failed and unread is None:
        path, reason = next(iter(failed.items()))
        raise HemsegError(f"{path}: {reason}")
    if unread is not None:
        unread |= failed
    return sorted(found)


def without_masks(paths: Iterable[Path]) -> list[Path]:
    """Files but for the masks and probability images that hemseg wrote: they are no scans; a warning names them."""
    paths = list(paths)
    masks = {p for p in paths if suffix(p) and (made := read_mark(p)) and made.voxels}
    if masks:
        names = ", ".join(printable(str(path)) for path in sorted(masks)[:3]) + ", ..." * (len(masks) > 3)
        logger.warning("%d masks that hemseg wrote are passed over: %s", len(masks), names)
    return [path for path in paths if path not in masks]


def may_be_dicom(path: Path) -> bool:
    """Whether a file's name is one that DICOM files have: no suffix, theirs, or the end of a UID or a number."""
    return path.suffix.lower() in ("", ".dcm", ".dicom", ".ima") or path.suffix[1:].isdigit()


def unreadable_dicom(paths: Iterable[Path]) -> dict[Path, str]:
    """Which files cannot be opened, though they may be DICOM by their names, and why."""
    found = {}
    for path in filter(may_be_dicom, paths):
        try:
            path.open("rb").close()
        except OSError as error:
            found[path] = f"may not be read ({error.strerror}); check its permissions."
    return found
