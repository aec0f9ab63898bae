"""Files that appear whole or not at all, and what dead processes left behind."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

_PARTIAL = re.compile(r"\.hemseg-(?P<host>[^-]*)-(?P<pid>\d+)-[0-9a-f]{8}\.part")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path``, of the same suffixes, for the time of a `with` block.

    It is renamed to ``path`` when the block ends well, and removed when it does not. Missing folders are made.
    """
    host = socket.gethostname().replace("-", "_")
    suffixes = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
    partial = path.with_name(f".hemseg-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part{suffixes}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Remove the temporary files below a folder whose process, on this machine, is dead; returns how many."""
    host, removed = socket.gethostname().replace("-", "_"), 0
    for parent, _, names in os.walk(folder):
        for name in names:
            found = _PARTIAL.match(name)
            if found and found["host"] == host and not _alive(int(found["pid"])):
                with contextlib.suppress(OSError):
                    (Path(parent) / name).unlink()
                    removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
