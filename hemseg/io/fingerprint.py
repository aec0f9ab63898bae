"""What a scan was when it was read: a case is done if its scan is still the same, by content.

The bytes of all files that make a scan are hashed. So that the same command on a large folder need not read all of it
again, the files' state (inode, size, times of content and of inode) is kept, too: a file whose state is the same has
the same content, and where the state differs the content decides.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.io.integrity import voxel_files

SETTLED_SECONDS = 2.0  # a file changed so shortly before it was read could change again within a tick of its clock


@dataclass(frozen=True)
class Fingerprint:
    """Of the files of a scan.

    Attributes:
        content: SHA-256 of their contents, in whatever order they come and whatever their names are.
        state: a hash of their inodes, sizes and times; empty if those were too fresh to be trusted.
    """

    content: str
    state: str = ""

    def __str__(self) -> str:
        return f"sha256:{self.content} state:{self.state}"

    @classmethod
    def parse(cls, text: str) -> Fingerprint | None:
        """The fingerprint of a text that `str` made; None for another text."""
        content, _, state = text.removeprefix("sha256:").partition(" state:")
        known = len(content) == 64 and set(content + state) <= set("0123456789abcdef")
        return cls(content, state) if known and text == str(cls(content, state)) else None


def scan_files(scan: Path) -> list[Path]:
    """The files that a scan is read from: a folder's, or the image's own and those that its header names."""
    if scan.is_dir():
        return sorted(path for path in scan.rglob("*") if path.is_file())
    try:
        return [scan, *voxel_files(scan)]
    except (OSError, ValueError):  # reading it will say what is wrong
        return [scan]


def content_of(paths: Sequence[Path]) -> str:
    """`Fingerprint.content` of files.

    Raises:
        OSError: one cannot be read.
    """
    found = []
    for path in paths:
        if not path.is_file():  # a pipe would be waited for
            raise OSError(errno.EINVAL, "is not a file", str(path))
        with path.open("rb") as file:
            found.append(hashlib.file_digest(file, "sha256").digest())
    return found[0].hex() if len(found) == 1 else hashlib.sha256(b"".join(sorted(found))).hexdigest()


def is_same(paths: Sequence[Path], known: Fingerprint) -> bool:
    """Whether files still have a fingerprint; false if they cannot be read."""
    try:
        return (known.state != "" and _state(_stats(paths)) == known.state) or content_of(paths) == known.content
    except OSError:
        return False


@contextmanager
def unchanged(paths: Sequence[Path], what: Path) -> Iterator[Fingerprint | None]:
    """The fingerprint of files that are read in the `with` block: of what is read there, and of nothing else.

    It is None where one of them cannot be read: reading it in the block says why.

    Raises:
        HemsegError: at the end, if one of them was changed or replaced meanwhile.
    """
    begun = time.time()
    try:
        before = _stats(paths)
        state, content = _state(before), content_of(paths)
    except OSError:
        yield None
        return
    settled = all(max(s.st_mtime, s.st_ctime) < begun - SETTLED_SECONDS for s in before)
    yield Fingerprint(content, state if settled else "")
    try:
        same = _state(_stats(paths)) == state
    except OSError:
        same = False
    if not same:
        raise HemsegError(f"{what}: was changed while it was being read; run the same command again.")


def _stats(paths: Sequence[Path]) -> list[os.stat_result]:
    return [path.stat() for path in paths]


def _state(stats: Sequence[os.stat_result]) -> str:
    values = sorted((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
