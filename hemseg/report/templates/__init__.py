"""The HTML pages, as files with places to be filled, ``@@NAME``; some share their head, their style and a script."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from string import Template


class Page(Template):
    """A page whose styles and scripts may hold ``$`` and ``@``."""

    delimiter = "@@"
    idpattern = "[A-Z]+"
    flags = re.VERBOSE  # names in capitals alone


def filled(name: str, values: Mapping[str, object]) -> str:
    """The text of a page. Values are put in as they are, in one pass: what looks like a place in one of them stays.

    Args:
        name: of the file in this package.
        values: by the name of their place; all that comes from files or headers is escaped already.
    """
    head = Page(_text("head.html")).substitute(MARK=values["MARK"])
    shared = {"HEAD": head, "STYLE": _text("slices.css"), "SLICES": _text("slices.js")}
    return Page(_text(name)).substitute(shared | dict(values))


def sides(known: bool) -> dict[str, str]:
    """What a page says about right and left, by the names of its places.

    Args:
        known: whether the right of its pictures is the patient's left.
    """
    if not known:
        return {"SIDES": "", "RIGHT": "Which side is the patient's right is not known."}
    marks = '<span style="left: .6rem">R</span><span style="right: .6rem">L</span>'
    return {"SIDES": marks, "RIGHT": "The patient's right is on the left."}


def _text(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
