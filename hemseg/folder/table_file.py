"""A table of an output folder as a file: read as far as its lines are whole, and written line by line."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.names import to_value_cell


def whole_lines(path: Path) -> str | None:
    """The text of a table without a last line that was being written when the process died; None: there is no file.

    Raises:
        HemsegError: it is no file, or cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise HemsegError(f"{path}: is not a file; give another folder for the output.")
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HemsegError(f"{path}: cannot be read ({error.strerror}).") from None
    return text[: text.rfind("\n") + 1]


def delimiter_of(text: str) -> str:
    """What separates the cells of a table's first line: spreadsheets save with other ones."""
    return max(",;\t", key=text.partition("\n")[0].count)


def append_lines(path: Path, lines: Iterable[Iterable[str]]) -> None:
    """Append lines to a table.

    Raises:
        HemsegError: it cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(map(to_value_cell, line) for line in lines)
    except OSError as error:
        raise HemsegError(f"{path}: cannot be written ({error.strerror}).") from None
