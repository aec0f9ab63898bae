"""Files that appear whole or not at all, what dead processes left behind, and folders that one process has to itself.

Locks that the kernel drops with their process (``flock``) show who is alive; names and process numbers do not: they
mean nothing in another container. A file system without such locks is used without them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hemseg.errors import HemsegError, OutputError

_PARTIAL = re.compile(r"\.hemseg-[0-9a-f]{16}\.part")
_live: set[Path] = set()  # temporary files of this process
_abandoned = False
MAX_WRITE_SECONDS = 24 * 3600  # where there are no locks, a temporary file this old is a dead one's


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, of the same suffixes, for the time of a `with` block.

    When the block ends well it is on the disk, and renamed to ``path``: a machine that fails then leaves the file whole
    or not there, never empty. When it does not, it is removed. Missing folders are made.
    """
    suffixes = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()  # writers know these
    partial = path.with_name(f".hemseg-{uuid.uuid4().hex[:16]}.part{suffixes}")
    path.parent.mkdir(parents=True, exist_ok=True)
    _live.add(partial)
    if _abandoned:
        raise OSError(errno.ECANCELED, "the process ends")
    alive = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)  # writers open it again, by its name
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield partial
        _sync(partial)
        os.replace(partial, path)
        with contextlib.suppress(OSError):  # not every file system has it for folders
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        _live.discard(partial)
        os.close(alive)


def write_with(write: Callable[[Path], object], path: Path, what: str = "the file") -> None:
    """Write a file, all or nothing, by a function that is given the path to write to.

    Args:
        what: the sentence of the error calls it.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with atomic_write(path) as partial:
            write(partial)
    except OSError as error:
        raise OutputError(f"{path}: {what} could not be written ({error.strerror}).") from None


def write_bytes(content: bytes, path: Path, what: str = "the file") -> None:
    """Write bytes, all or nothing; arguments and errors as for `write_with`."""
    write_with(lambda partial: partial.write_bytes(content), path, what)


def write_text(text: str, path: Path) -> None:
    """Write text as UTF-8, all or nothing; errors as for `write_bytes`."""
    write_bytes(text.encode(errors="backslashreplace"), path)


def write_json(values: Any, path: Path) -> None:
    """Write JSON, all or nothing; errors as for `write_bytes`."""
    write_text(json.dumps(values, indent=1, ensure_ascii=False), path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files() -> None:
    """Remove this process's temporary files and let it create no others: before an exit that waits for no thread."""
    global _abandoned
    _abandoned = True
    for partial in list(_live):
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Remove the temporary files below a folder whose process is dead; returns how many."""
    removed = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if _PARTIAL.match(name):
                with contextlib.suppress(OSError):
                    removed += _remove_if_dead(Path(parent) / name)
    return removed


def _remove_if_dead(partial: Path) -> bool:
    descriptor = os.open(partial, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            if time.time() - partial.stat().st_mtime < MAX_WRITE_SECONDS:
                return False
        partial.unlink()
        return True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive_access(folder: Path) -> Iterator[None]:
    """For the time of a `with` block no other process has this folder; it is made if it is missing.

    Raises:
        HemsegError: another one has it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise HemsegError(f"{folder}: cannot be used as a folder ({error.strerror}).") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HemsegError(
                f"{folder}: another hemseg is writing there; wait for it, or give another folder."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
