"""Read any scan: one image file (`hemseg.io.images`), or a series of DICOM (`hemseg.dicom.reading`)."""

from __future__ import annotations

import os
from pathlib import Path

from hemseg.dicom.reading import read_series
from hemseg.dicom.source import is_dicom, sources_of
from hemseg.io.formats import suffix
from hemseg.io.images import read_image
from hemseg.volume import Volume


def read(path: str | Path, series: str = "") -> Volume:
    """Read a NIfTI, MetaImage or NRRD file, or the CT series of a DICOM folder, zip archive or file.

    Args:
        series: of a DICOM study: a SeriesInstanceUID (or its end) or number, in place of the rule of
            `hemseg.dicom.reading`.

    Raises:
        HemsegError: the file is missing, unreadable, damaged, or not one 3D volume of numbers.
    """
    path = Path(path)
    return read_series(sources_of(path), path, series) if holds_dicom(path) else read_image(path)


def holds_dicom(path: Path) -> bool:
    """Whether a path is a folder, a zip archive, or a file without an image's suffix that begins as DICOM does."""
    if os.path.isdir(path) or path.suffix.lower() == ".zip":  # for a name that is too long pathlib raises
        return os.path.isdir(path) or os.path.isfile(path)
    return not suffix(path) and os.path.isfile(path) and is_dicom(path)
