"""DICOM in: the CT series of a folder, an archive or some files, as a volume.

`hemseg.dicom.source` finds and opens files, `hemseg.dicom.header` reads what they say, `hemseg.dicom.series` and
`hemseg.dicom.stacks` group slices, `hemseg.dicom.choice` chooses among series, `hemseg.dicom.stack` makes one a volume.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hemseg.dicom.choice import choose_series, require_one_patient, series_warnings
from hemseg.dicom.series import find_series, studies
from hemseg.dicom.source import Source, is_dicom, require_pydicom, sources_of
from hemseg.dicom.stack import build_volume
from hemseg.errors import HemsegError
from hemseg.volume import Volume

__all__ = ["Source", "find_series", "is_dicom", "read_series", "require_pydicom", "sources_of", "studies"]


def read_series(sources: Iterable[Source], path: Path, requested: str = "") -> Volume:
    """Find, choose and read: the even volume of a study's series.

    Raises:
        HemsegError: there is no series to be segmented, there are several patients, or it cannot be read.
    """
    sources = list(sources)
    if not sources:
        raise HemsegError(f"{path}: holds no DICOM files; give a scan, or the folder of a DICOM study.")
    try:
        found = find_series(sources)
        if not requested:
            require_one_patient(found, path)
        series, rule = choose_series(found, requested)
    except HemsegError as error:
        raise error if str(path) in str(error) else HemsegError(f"{path}: {error}") from None
    warnings = (*series.warnings, *series_warnings(series, found))
    if not requested and (several := len(studies(found))) > 1:
        warnings = (f"It holds {several} studies of the patient; a series of one of them was taken.", *warnings)
    return replace(build_volume(replace(series, warnings=warnings), path), chosen=rule)
