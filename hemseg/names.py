"""Names that come from files, made safe for where they go: the terminal, a table, a file system."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095  # of every file system that is met on Linux
# they change how the text around them is shown; joiners of Arabic, Indic scripts and emoji stay as they are
_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # a cell that begins so is run by spreadsheets


def printable(text: str) -> str:
    """A text without characters that a terminal obeys or that cannot be encoded: they become ``\\x1b``, ``\\u202e``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(c) if _is_control(c) else c for c in text)


def _is_control(character: str) -> bool:
    return character in _BIDIRECTIONAL or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"


def case_name(case: Path) -> str:
    """A case in tables and messages: printable, and different for different cases."""
    return printable(str(case).replace("\\", "\\\\"))


def to_cell(text: str) -> str:
    """A text as the cell of a table: printable, and never a formula; `from_cell` undoes the latter."""
    text = printable(text)
    return f"'{text}" if text.startswith((*_FORMULA, "'")) else text


def to_value_cell(text: str) -> str:
    """As `to_cell`, but a negative number stays a number: no spreadsheet runs that as a formula."""
    return text if _NUMBER.fullmatch(text) else to_cell(text)


def from_cell(text: str) -> str:
    """The text of a cell that `to_cell` made."""
    return text[1:] if text.startswith("'") and text[1:].startswith((*_FORMULA, "'")) else text


def name_problem(*paths: Path) -> str:
    """Why files of these names cannot be read or written; empty where they can."""
    for path in paths:
        try:
            encoded = str(path).encode()
        except UnicodeEncodeError:
            return "its name is not valid UTF-8; rename it."
        if len(path.name.encode()) > MAX_NAME_BYTES or len(encoded) > MAX_PATH_BYTES:
            return f"its name is too long for an output's ({path.name[-30:]}); rename it."
    return ""


def given_path(text: str) -> Path:
    """A path from a command line.

    Raises:
        ValueError: it is empty, which would be the current folder: most often a variable that was not set.
    """
    if not text:
        raise ValueError("it is empty: is a variable not set? The current folder is .")
    return Path(text)
