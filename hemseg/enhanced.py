"""Enhanced CT: one DICOM file that holds the slices of a series as its frames.

What a classic slice says of itself stands in functional groups there, shared by all frames or of each (DICOM PS3.3,
A.38 and C.7.6.16). `frames` tells it as the headers of classic slices, so that `hemseg.dicom` needs not know the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

STORAGE = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")  # enhanced CT, and legacy converted
GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTImageFrameTypeSequence": ("FrameType",),
}


def frames(header: Dataset, fields: Sequence[str]) -> list[Dataset]:
    """The header of each frame, in the order of the file, as a classic CT slice would have it.

    Args:
        header: of the file, without its pixels.
        fields: what the file says for all frames and is taken over. What a frame lacks is absent, too.
    """
    from pydicom import Dataset

    common = {name: header[name].value for name in fields if name in header and name != "NumberOfFrames"}
    if header.get("ContrastBolusAgentSequence"):
        common["ContrastBolusAgent"] = "yes"
    shared = _first(header, "SharedFunctionalGroupsSequence")
    found = []
    for number, own in enumerate(header.get("PerFrameFunctionalGroupsSequence") or (), start=1):
        values = common | {"InstanceNumber": number}
        for sequence, names in GROUPS.items():
            group = _first(own, sequence) or _first(shared, sequence)
            values |= {name: group[name].value for name in names if name in group}
        values["ImageType"] = values.pop("FrameType", None) or values.get("ImageType")
        frame = Dataset()
        for name, value in values.items():
            setattr(frame, name, value)
        found.append(frame)
    return found


def _first(dataset: Dataset, sequence: str) -> Dataset:
    """The first item of a sequence; an empty dataset where there is none."""
    items = dataset.get(sequence)
    return items[0] if items else type(dataset)()
