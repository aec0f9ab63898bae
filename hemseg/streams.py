"""Standard output and error that are closed, full, or read by nobody: a sentence at most, never a traceback."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

_failed: OSError | None = None
_catching = threading.Lock()  # the process has one standard error


def open_standard_streams() -> None:
    """Give closed standard streams a place: else the next file that is opened, a mask, would get what is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  stays open
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    logging.raiseExceptions = False  # no traceback about a line that nobody reads


def print_text(text: str) -> None:
    """Print to standard output; where that fails, `flush_standard_output` reports it in the end."""
    global _failed
    try:
        sys.stdout.write(text)
    except OSError as error:  # here already, where Python does not buffer
        _failed = error


def flush_standard_output() -> bool:
    """Write what is buffered; whether it could be. A pipe whose reader has gone has had what it wanted."""
    try:
        sys.stdout.flush()
        if _failed:
            raise _failed
        return True
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes again at its end
        if isinstance(error, BrokenPipeError):
            return True
        print(f"error: the output could not be printed ({error.strerror}); the masks are written.", file=sys.stderr)
        return False


@contextlib.contextmanager
def caught_library_lines(known: re.Pattern[str]) -> Iterator[list[str]]:
    """The lines that C libraries print on standard error in a `with` block and that ``known`` matches at their
    beginning, in a list that is filled when it ends. They are not shown; all else is, then.
    """
    caught: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_catching)
        try:
            shown = os.dup(2)
        except OSError:  # it is closed
            yield caught
            return
        stack.callback(os.close, shown)
        if hasattr(os, "memfd_create"):  # no disk, which may be full or not be there
            file: IO[bytes] = stack.enter_context(os.fdopen(os.memfd_create("stderr"), "w+b"))
        else:
            file = stack.enter_context(tempfile.TemporaryFile())
        os.dup2(file.fileno(), 2)
        try:
            yield caught
        finally:
            os.dup2(shown, 2)
            file.seek(0)
            for line in file.read().splitlines(keepends=True):
                text = line.decode(errors="replace").strip()
                if known.match(text):
                    caught.append(text)
                else:
                    os.write(2, line)
