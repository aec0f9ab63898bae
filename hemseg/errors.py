"""The exceptions that people see: a sentence that names the file and says what to do."""

import re
from collections.abc import Iterable

from hemseg.names import printable

MAX_LINE_CHARACTERS = 2000  # characters; log readers skip lines that are much longer


class HemsegError(Exception):
    """A mistake in the input, the weights or the set-up. ``str(error)`` is one clear sentence for the user.

    It can be printed and written anywhere: what a terminal would obey in it, and bytes that are no UTF-8 (names of
    files may hold both), appear escaped.

    Args:
        message: the sentence.
        details: further lines, where all that is wrong is listed at once.
    """

    def __init__(self, message: object = "", details: Iterable[str] = ()) -> None:
        self.details = tuple(details)
        super().__init__(message, *((self.details,) if self.details else ()))

    def __str__(self) -> str:
        return "\n  ".join(printable(str(line)) for line in (self.args[0], *self.details))


class OutputError(HemsegError):
    """An output could not be written: the disk or the permissions are at fault, not the scan."""


def system_error(error: OSError) -> str:
    """What the system refuses, for a sentence: the file, if it names one, and why, without the error's number."""
    file = f"{error.filename}: " if error.filename else ""
    return printable(f"{file}{error.strerror or error}")


def first_line(error: BaseException, most: int = 120) -> str:
    """What a library's error says, cut to one line for a sentence; its type when it says nothing."""
    return str(error).splitlines()[0][:most] if str(error) else type(error).__name__


def one_line(text: str) -> str:
    """A text on one line: line breaks become spaces, other control characters are escaped, the end may be cut."""
    flat = re.sub(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text.strip())
    shown = printable(flat)
    return shown if len(shown) <= MAX_LINE_CHARACTERS else f"{shown[: MAX_LINE_CHARACTERS - 3]}..."
