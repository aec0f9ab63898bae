"""Standard output and error that are closed, full, or read by nobody: a sentence at most, never a traceback."""

from __future__ import annotations

import logging
import os
import sys

_failed: OSError | None = None


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
