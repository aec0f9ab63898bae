"""Studies on the disk, from the first slice until the results are sent: what is under way survives whatever happens.

A study is a folder ``<state>/<number>-<key>`` with ``images/``, later ``results/``; it changes its state by being
renamed. Numbers are the only names that leave this folder; the key is a hash of the StudyInstanceUID.

- ``incoming``: slices still come.
- ``waiting``: none came for a while; waits for its turn.
- ``segmenting``: has its turn. One that is found here at the start was interrupted, and waits again.
- ``sending``: the results are there, and were not taken yet.
- ``failed``: cannot be done; ``reason.txt`` says why.
- ``done``: is being removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.io.files import atomic_write, remove_leftovers
from hemseg.io.inflation import MAX_MEMBERS, MAX_ZIP_BYTES

INCOMING, WAITING, SEGMENTING, SENDING, FAILED, DONE = "incoming", "waiting", "segmenting", "sending", "failed", "done"
logger = logging.getLogger("hemseg")
STATES = (INCOMING, WAITING, SEGMENTING, SENDING, FAILED, DONE)
MAX_ATTEMPTS = 3  # at a study that takes the process down with it, or whose results cannot be written
FREE_BYTES = 1 << 30  # of the disk that are left alone
IMAGES, RESULTS, ATTEMPTS, REASON, NUMBER = "images", "results", "attempts", "reason.txt", "last_number"
_NAME = re.compile(r"(\d{6,})-([0-9a-f]{16})")


class FullError(HemsegError):
    """There is no room for more: of the disk, or of what one study may have."""


@dataclass
class Case:
    """A study in the queue.

    Attributes:
        number: the name that people see.
        key: of its study.
        count, size: of its images, files and bytes.
        arrived: when its last image came, by the queue's clock.
    """

    number: int
    key: str
    state: str
    count: int = 0
    size: int = 0
    arrived: float = 0.0

    def __str__(self) -> str:
        return f"case {self.number}"

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.number:06}-{self.key}"


class StudyQueue:
    """The studies below one folder, which one process has to itself. Its methods may be called from any thread.

    Args:
        folder: made if it is missing, for its owner alone: it holds images of patients.
        quiet_seconds: without a new image, after which a study is whole.
        clock: seconds that only grow.

    Raises:
        HemsegError: the folder cannot be used.
    """

    def __init__(self, folder: Path, quiet_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self.quiet_seconds, self._clock = folder, quiet_seconds, clock
        self._lock = threading.RLock()
        self._cases: dict[int, Case] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for state in STATES:
                (folder / state).mkdir(mode=0o700, exist_ok=True)
            remove_leftovers(folder)
            self._last = self._number_on_disk()
            for state in STATES:
                for path in sorted((folder / state).iterdir()):
                    if found := _NAME.fullmatch(path.name):
                        self._register_existing(int(found[1]), found[2], state)
        except OSError as error:
            raise HemsegError(f"{folder}: cannot be used for the queue ({error.strerror}).") from None

    def cases(self, state: str) -> list[Case]:
        """Those of a state, in the order of their numbers."""
        with self._lock:
            return sorted((c for c in self._cases.values() if c.state == state), key=lambda c: c.number)

    def path(self, case: Case) -> Path:
        """Its folder, as long as it keeps its state."""
        return self.folder / case.state / case.name

    def images(self, case: Case) -> list[Path]:
        """Its files."""
        folder = self.path(case) / IMAGES
        return sorted(p for p in folder.iterdir() if p.suffix == ".dcm") if folder.is_dir() else []

    def results(self, case: Case) -> list[Path]:
        """What goes back."""
        return sorted((self.path(case) / RESULTS).glob("*.dcm"))

    def add(self, study: str, instance: str, content: bytes) -> Case:
        """Put an image on the disk; when this returns, it is there.

        An image of a study that waits or is being segmented makes the study incoming again. One of a study that was
        segmented already makes a new case, with the earlier images as far as they are still there.

        Args:
            study, instance: UIDs.
            content: a DICOM file.

        Raises:
            FullError: there is no room.
            OSError: it cannot be written.
        """
        key, name = _hash(study), f"{_hash(instance)}.dcm"
        with self._lock:
            if shutil.disk_usage(self.folder).free < FREE_BYTES + len(content):
                raise FullError(f"{self.folder}: the disk is full.")
            case = self._case_of(key)
            path = self.path(case) / IMAGES / name
            replaced = path.stat().st_size if path.exists() else None
            if case.size + len(content) > MAX_ZIP_BYTES or case.count >= MAX_MEMBERS:
                raise FullError(f"{case} has {case.count} files with {case.size / 1e9:.1f} GB: no head CT has more.")
            with atomic_write(path) as partial:
                partial.write_bytes(content)
            case.count += replaced is None
            case.size += len(content) - (replaced or 0)
            case.arrived = self._clock()
            if case.state == WAITING:
                self._move(case, INCOMING)
            return case

    def queue_quiet_studies(self) -> list[Case]:
        """Let the studies wait for their turn that have been quiet for long enough; returns them."""
        with self._lock:
            quiet = [c for c in self.cases(INCOMING) if self._clock() - c.arrived >= self.quiet_seconds]
            for case in quiet:
                self._move(case, WAITING if case.count else DONE)
                if not case.count:  # its first image could not be written
                    self._remove_done(case)
            return [case for case in quiet if case.count]

    def start_next(self) -> tuple[Case, list[Path]] | None:
        """The next study's turn begins, and counts as an attempt; its files, and None where no study waits.

        One that took the process down with it too often has failed.
        """
        with self._lock:
            for case in self.cases(WAITING):
                if self._attempts(case) >= MAX_ATTEMPTS:
                    reason = f"it was begun {MAX_ATTEMPTS} times, and the process ended each time before it was done."
                    logger.error("%s: given up: %s", case, reason)
                    self.fail(case, reason)
                    continue
                self._move(case, SEGMENTING)
                with (self.path(case) / ATTEMPTS).open("ab") as file:
                    file.write(b".")
                    os.fsync(file.fileno())
                shutil.rmtree(self.path(case) / RESULTS, ignore_errors=True)
                return case, self.images(case)
            return None

    def finish(self, case: Case, files: Sequence[Path]) -> bool:
        """The results of a study are written: they can be sent.

        Returns:
            Whether they were made of all images. Where others came meanwhile it is incoming again, without results.
        """
        with self._lock:
            if self.images(case) != list(files):
                self._reopen(case)
                return False
            self._move(case, SENDING)
            return True

    def put_back(self, case: Case, files: Sequence[Path], reason: str) -> bool:
        """A study could not be done for a reason that may pass: it waits again, unless that was its last attempt.

        Returns:
            Whether it waits.
        """
        with self._lock:
            if self._attempts(case) >= MAX_ATTEMPTS:
                self.fail(case, reason, files)
                return False
            self._move(case, WAITING)
            return True

    def fail(self, case: Case, reason: str, files: Sequence[Path] | None = None) -> bool:
        """A study cannot be done; it is kept, with the reason.

        Args:
            files: those that were looked at. Where others came meanwhile it is incoming again.

        Returns:
            Whether it has failed.
        """
        with self._lock:
            if files is not None and self.images(case) != list(files):
                self._reopen(case)
                return False
            with atomic_write(self.path(case) / REASON) as partial:
                partial.write_text(f"{reason}\n", encoding="utf-8", errors="backslashreplace")
            self._move(case, FAILED)
            return True

    def remove(self, case: Case) -> None:
        """The results have arrived: images and results are removed."""
        with self._lock:
            self._move(case, DONE)
            self._remove_done(case)

    def _reopen(self, case: Case) -> None:
        (self.path(case) / ATTEMPTS).unlink(missing_ok=True)
        self._move(case, INCOMING)

    def _remove_done(self, case: Case) -> None:
        del self._cases[case.number]
        shutil.rmtree(self.path(case), ignore_errors=True)  # what stays is removed at the next start

    def _case_of(self, key: str) -> Case:
        """The case that a study's image belongs to."""
        same = sorted((c for c in self._cases.values() if c.key == key), key=lambda c: c.number)
        for case in same:
            if case.state in (INCOMING, WAITING, SEGMENTING):
                return case
        case = Case(self._next_number(), key, INCOMING, arrived=self._clock())
        self.path(case).mkdir(mode=0o700)
        self._cases[case.number] = case
        before = next((c for c in reversed(same) if (self.path(c) / IMAGES).is_dir()), None)
        if before:
            os.replace(self.path(before) / IMAGES, self.path(case) / IMAGES)
            case.count, case.size, before.count, before.size = before.count, before.size, 0, 0
        else:
            (self.path(case) / IMAGES).mkdir(mode=0o700)
        return case

    def _register_existing(self, number: int, key: str, state: str) -> None:
        """A case that is there at the start."""
        case = self._cases[number] = Case(number, key, state, arrived=self._clock())
        self._last = max(self._last, number)
        sizes = [path.stat().st_size for path in self.images(case)]
        case.count, case.size = len(sizes), sum(sizes)
        if state == SEGMENTING:
            self._move(case, WAITING)
        elif state == DONE or (state == INCOMING and not sizes):  # ended before its first image was there
            self._remove_done(case)

    def _number_on_disk(self) -> int:
        with suppress(FileNotFoundError, ValueError):
            return int((self.folder / NUMBER).read_text())
        return 0

    def _next_number(self) -> int:
        self._last += 1
        with atomic_write(self.folder / NUMBER) as partial:  # a number is not given twice, also after its case is gone
            partial.write_text(str(self._last))
        return self._last

    def _attempts(self, case: Case) -> int:
        with suppress(FileNotFoundError):
            return (self.path(case) / ATTEMPTS).stat().st_size
        return 0

    def _move(self, case: Case, state: str) -> None:
        old = self.path(case)
        os.replace(old, self.folder / state / case.name)
        case.state = state
        for folder in (self.folder / state, old.parent):
            with suppress(OSError):  # not every file system has it for folders
                descriptor = os.open(folder, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)


def _hash(uid: str) -> str:
    return hashlib.sha256(uid.encode(errors="backslashreplace")).hexdigest()[:16]
