"""Options that several commands of ``hemseg`` share: declared once, so that they are spelled and explained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hemseg import choices
from hemseg.names import given_path


def path(text: str) -> Path:
    """A path from a command line, as a parser of arguments and options.

    Raises:
        typer.BadParameter: it is empty.
    """
    try:
        return given_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Weights = Annotated[
    Path | None,
    typer.Option(parser=path, help="Folder with manifest.json; by default, the weights shipped with hemseg."),
]
Device = Annotated[
    choices.Device,
    typer.Option(help="auto: CUDA if it works, otherwise CPU; cuda: CUDA, or an error if it does not work."),
]
Series = Annotated[
    str, typer.Option(help="DICOM series to use (number or SeriesInstanceUID) instead of the automatic choice.")
]
Overlay = Annotated[
    bool, typer.Option("--overlay", help="Also write <case>.png, a picture of each case with the outlined hemorrhage.")
]
Report = Annotated[
    bool, typer.Option("--report", help="Also write <case>/report.html (a viewer for the browser) and report.json.")
]
Redo = Annotated[bool, typer.Option("--redo", help="Repeat cases that are already done.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files that hemseg did not write; scans are never replaced.")
]
