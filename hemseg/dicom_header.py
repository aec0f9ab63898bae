"""What DICOM headers say of CT slices, as plain values: whatever is wrong with them is found out here, and not later.

In enhanced CT one file holds the slices of a series as its frames; what a classic slice says of itself stands in
functional groups there, shared by all frames or of each (DICOM PS3.3, A.38 and C.7.6.16). `of_frames` tells it as
classic headers do, so that `hemseg.dicom` needs not know the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

Header = dict[str, Any]
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # enhanced CT, and legacy converted


def _number(value: Any) -> float:
    found = float(value)
    if not np.isfinite(found):
        raise ValueError(f"{value} is no number")
    return found


def _vector(length: int) -> Callable[[Any], tuple[float, ...]]:
    def convert(value: Any) -> tuple[float, ...]:
        found = tuple(_number(v) for v in value)
        if len(found) != length:
            raise ValueError(f"{value} is not {length} numbers")
        return found

    return convert


# every field that is looked at, and how its value becomes a plain one; vectors are (x, y, z), mm, LPS
FIELDS: dict[str, Callable[[Any], Any]] = {
    "SOPClassUID": str,
    "StudyInstanceUID": str,
    "SeriesInstanceUID": str,
    "SeriesNumber": str,
    "SeriesDescription": str,
    "StudyDescription": str,
    "ProtocolName": str,
    "BodyPartExamined": str,
    "Modality": str,
    "ImageType": str,
    "ConvolutionKernel": str,
    "ContrastBolusAgent": str,
    "InstanceNumber": int,
    "NumberOfFrames": int,
    "Rows": int,
    "Columns": int,
    "ImageOrientationPatient": _vector(6),  # along a row, along a column
    "ImagePositionPatient": _vector(3),  # of the first pixel
    "PixelSpacing": _vector(2),  # mm between rows, between columns
    "SliceThickness": _number,
    "RescaleSlope": _number,
    "RescaleIntercept": _number,
    "PixelRepresentation": int,  # says how to read the two below
    "PixelPaddingValue": int,
    "PixelPaddingRangeLimit": int,
}
GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTImageFrameTypeSequence": ("FrameType",),
}


def of_slice(dataset: Dataset) -> Header:
    """The header of a classic CT slice; what is absent or empty is absent.

    Raises:
        Exception: of many kinds, pydicom's own among them: a value is not what it should be.
    """
    return _plain({name: dataset.get(name) for name in FIELDS})


def of_frames(dataset: Dataset) -> list[Header]:
    """The header of each frame of an enhanced CT, in the order of the file, as its slice would have it in classic CT.

    Raises:
        Exception: as `of_slice`.
    """
    common = {name: dataset.get(name) for name in FIELDS if name != "NumberOfFrames"}
    if dataset.get("ContrastBolusAgentSequence"):
        common["ContrastBolusAgent"] = "yes"
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    found = []
    for number, own in enumerate(dataset.get("PerFrameFunctionalGroupsSequence") or (), start=1):
        values = common | {"InstanceNumber": number}
        for sequence, names in GROUPS.items():
            group = _first(own, sequence) or _first(shared, sequence)
            values |= {name: group[name].value for name in names if name in group}
        values["ImageType"] = values.pop("FrameType", None) or values["ImageType"]
        found.append(_plain(values))
    if len(found) != int(dataset.get("NumberOfFrames") or 0):
        raise ValueError(f"it tells of {len(found)} frames and claims to have {dataset.get('NumberOfFrames')}")
    return found


def _plain(values: dict[str, Any]) -> Header:
    return {name: FIELDS[name](value) for name, value in values.items() if value is not None and value != ""}


def _first(dataset: Dataset, sequence: str) -> Dataset:
    """The first item of a sequence; an empty dataset where there is none."""
    from pydicom import Dataset

    items = dataset.get(sequence)
    return items[0] if items else Dataset()
