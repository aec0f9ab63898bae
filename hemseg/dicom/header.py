"""What DICOM headers say of CT slices, as plain values: whatever is wrong with them is found here, and not later.

In enhanced CT one file holds the slices of a series as its frames; what a classic slice says of itself stands in
functional groups there, shared by all frames or of each (DICOM PS3.3, A.38 and C.7.6.16). `frame_headers` gives it as
classic headers do, so that `hemseg.dicom.reading` needs not know the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hemseg.errors import HemsegError, first_line

if TYPE_CHECKING:
    from pydicom import Dataset

Header = dict[str, Any]
ENHANCED = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # enhanced CT, and legacy converted


class IllFormedError(ValueError):
    """A value without which a slice is of no use cannot be read. ``str(error)`` is the attribute's name alone: values
    may be the patient's, and appear in no message.
    """


def _number(value: Any) -> float:
    found = float(value)
    if not np.isfinite(found):
        raise ValueError("no number")
    return found


def _whole(value: Any) -> int:
    found = _number(value)
    if not found.is_integer():
        raise ValueError("no whole number")
    return int(found)


def _text(value: Any) -> str:
    return str(value).strip()


def _vector(length: int) -> Callable[[Any], tuple[float, ...]]:
    def convert(value: Any) -> tuple[float, ...]:
        found = tuple(_number(v) for v in value)
        if len(found) != length:
            raise ValueError(f"not {length} numbers")
        return found

    return convert


# every field that is looked at, and how its value becomes a plain one; vectors are (x, y, z), mm, LPS
FIELDS: dict[str, Callable[[Any], Any]] = {
    "SOPClassUID": _text,
    "SOPInstanceUID": _text,
    "PatientID": _text,  # keeps patients apart, and where it is missing their names do; in no message
    "PatientName": _text,
    "StudyInstanceUID": _text,
    "SeriesInstanceUID": _text,
    "SeriesNumber": _text,
    "SeriesDescription": _text,
    "StudyDescription": _text,
    "ProtocolName": _text,
    "BodyPartExamined": _text,
    "Modality": _text,
    "ImageType": _text,
    "ConvolutionKernel": _text,
    "ContrastBolusAgent": _text,
    "BurnedInAnnotation": _text,
    "AcquisitionNumber": _whole,
    "InstanceNumber": _whole,
    "NumberOfFrames": _whole,
    "PhotometricInterpretation": _text,
    "Rows": _whole,
    "Columns": _whole,
    "ImageOrientationPatient": _vector(6),  # along a row, along a column
    "ImagePositionPatient": _vector(3),  # of the first pixel
    "PixelSpacing": _vector(2),  # mm between rows, between columns
    "SliceThickness": _number,
    "SpacingBetweenSlices": _number,
    "RescaleSlope": _number,
    "RescaleIntercept": _number,
    "RescaleType": _text,
    "PixelRepresentation": _whole,  # says how to read the two below
    "PixelPaddingValue": _whole,
    "PixelPaddingRangeLimit": _whole,
}
# without these a slice cannot be placed or scaled; any other that cannot be read counts as absent, with a warning
REQUIRED = (
    "NumberOfFrames", "Rows", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
    "RescaleSlope", "RescaleIntercept", "PixelRepresentation",
)  # fmt: skip
_QUOTED = re.compile(r"(?<!\w)'[^']*'?|\"[^\"]*\"?")  # to the end where a message was cut
MAX_TEXT_BYTES = 1 << 16  # bytes; pixels are no text
ILL_FORMED = "ill-formed"  # key of a header for the names of the attributes that count as absent
GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "FrameContentSequence": ("FrameAcquisitionNumber",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTImageFrameTypeSequence": ("FrameType",),
}


def slice_header(dataset: Dataset) -> Header:
    """The header of a classic CT slice; what is absent or empty is absent.

    Raises:
        IllFormedError: of a value that must be there.
    """
    return _convert_values({name: _value(dataset, name) for name in FIELDS})


def frame_headers(dataset: Dataset) -> list[Header]:
    """The header of each frame of an enhanced CT, in the order of the file, as its slice would have it in classic CT.

    Raises:
        IllFormedError: as `slice_header`.
        Exception: of many kinds, pydicom's own among them: the functional groups are damaged.
    """
    common = {name: _value(dataset, name) for name in FIELDS if name != "NumberOfFrames"}
    if dataset.get("ContrastBolusAgentSequence"):
        common["ContrastBolusAgent"] = "yes"
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    found = []
    for number, own in enumerate(dataset.get("PerFrameFunctionalGroupsSequence") or (), start=1):
        values = common | {"InstanceNumber": number}
        for sequence, names in GROUPS.items():
            group = _first(own, sequence) or _first(shared, sequence)
            values |= {name: _value(group, name) for name in names if name in group}
        values["ImageType"] = values.pop("FrameType", None) or values["ImageType"]
        values["AcquisitionNumber"] = values.pop("FrameAcquisitionNumber", None) or values["AcquisitionNumber"]
        found.append(_convert_values(values))
    claimed = _convert_values({"NumberOfFrames": _value(dataset, "NumberOfFrames")}).get("NumberOfFrames", 0)
    if len(found) != claimed:
        raise HemsegError(f"it describes {len(found)} frames and claims to have {claimed}")
    return found


def redacted_error(error: BaseException, dataset: Dataset, most: int = 120) -> str:
    """A library's error about a dataset, for a sentence, without the text of any value: that may be the patient's.

    Args:
        most: characters.
    """
    message = _QUOTED.sub("...", first_line(error, most))
    return type(error).__name__ if any(text in message for text in _texts(dataset)) else message


def _texts(dataset: Dataset) -> Iterator[str]:
    """The values with letters in them, as they are stored."""
    for tag in dataset.keys():  # noqa: SIM118  its items would be parsed, and may not be what they claim
        value = dataset.get_item(tag).value
        text = value.decode("latin-1") if isinstance(value, bytes) and len(value) < MAX_TEXT_BYTES else value
        if isinstance(text, str) and re.search("[^\\W\\d_]{2}", text):
            yield text.strip(" \0")


def _value(dataset: Dataset, name: str) -> Any:
    """A value, or the error that pydicom has with it: it looks at values when they are asked for."""
    try:
        return dataset.get(name)
    except Exception as error:  # of many kinds
        return error


def _convert_values(values: dict[str, Any]) -> Header:
    header: Header = {}
    ill_formed = []
    for name, value in values.items():
        try:
            if isinstance(value, Exception):
                raise value
            if value is not None and str(value).strip() not in ("", "[]"):
                header[name] = FIELDS[name](value)
        except Exception:  # what is wrong with it would show its value
            if name in REQUIRED:
                raise IllFormedError(name) from None
            ill_formed.append(name)
    if ill_formed:
        header[ILL_FORMED] = tuple(ill_formed)
    return header


def _first(dataset: Dataset, sequence: str) -> Dataset:
    """The first item of a sequence; an empty dataset where there is none."""
    from pydicom import Dataset

    items = dataset.get(sequence)
    return items[0] if items else Dataset()
