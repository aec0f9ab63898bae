"""DICOM out: a segmentation object that refers to the source slices one by one."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hemseg import __version__
from hemseg.errors import HemsegError
from hemseg.io.files import write_with
from hemseg.io.marks import mark
from hemseg.kinds import CODES, KINDS, UNSURE, UNSURE_CODE
from hemseg.segmentation import Segmentation
from hemseg.volume import SliceStack

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger("hemseg")
_DATE, _TIME = r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?"
# of patient and study, required but allowed to be empty, and the form of a value: anonymisers like to remove them, and
# others write dates as their country does
MAY_BE_EMPTY = {
    "PatientID": r".{0,64}",
    "PatientName": r".{0,194}",
    "PatientBirthDate": _DATE,
    "PatientSex": r"[MFO]",
    "StudyID": r".{0,16}",
    "StudyDate": _DATE,
    "StudyTime": _TIME,
    "AccessionNumber": r".{0,16}",
    "ReferringPhysicianName": r".{0,194}",
}

HEMORRHAGE = ("1386000", "SCT", "Intracranial hemorrhage")
FINDINGS = {  # by kind; what is unsure is hemorrhage all the same, and intraventricular is said by where it lies
    "intraparenchymal": ("274100004", "SCT", "Cerebral hemorrhage"),
    "subarachnoid": ("21454007", "SCT", "Subarachnoid intracranial hemorrhage"),
    "subdural": ("35486000", "SCT", "Subdural hemorrhage"),
    "epidural": ("82999001", "SCT", "Epidural intracranial hemorrhage"),
}
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "PixelSpacing")

# what is kept in these groups of the file's own level; of what the scan says of its patient and study, the rest goes
_GROUPS = (0x0008, 0x0010, 0x0012, 0x0032, 0x0038, 0x0040)
KEPT_OF_PATIENT = (
    *MAY_BE_EMPTY, "IssuerOfPatientID", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)  # fmt: skip
_OWN = (
    "SpecificCharacterSet", "ImageType", "InstanceCreationDate", "InstanceCreationTime", "SOPClassUID",
    "SOPInstanceUID", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "Modality", "Manufacturer",
    "ManufacturerModelName", "SeriesDescription", "ReferencedSeriesSequence", "SourceImageSequence",
    "TimezoneOffsetFromUTC", "PixelPresentation", "VolumetricProperties", "VolumeBasedCalculationTechnique",
    "AcquisitionContextSequence", "ContentQualification",
    # of a structured report
    "ReferencedPerformedProcedureStepSequence", "ValueType", "ConceptNameCodeSequence", "ContinuityOfContent",
    "ContentTemplateSequence", "ContentSequence", "PerformedProcedureCodeSequence", "PreliminaryFlag",
    "CurrentRequestedProcedureEvidenceSequence", "CompletionFlag", "VerificationFlag",
)  # fmt: skip


def remove_free_text(dataset: Dataset) -> None:
    """Remove what highdicom takes over of the patient and the study beyond what the standard needs."""
    for element in list(dataset):
        if element.tag.group in _GROUPS and element.keyword not in (*KEPT_OF_PATIENT, *_OWN):
            del dataset[element.tag]
    if "ContributingEquipmentSequence" in dataset:  # the scanner, with its institution, station and department
        del dataset.ContributingEquipmentSequence


def _complete(dataset: Dataset) -> list[str]:
    """Make a header of a scan one that highdicom takes; returns which of its values were ill-formed and emptied."""
    emptied = ill_formed(dataset)
    for name in emptied:
        dataset[name].value = None
    for name in MAY_BE_EMPTY:
        if name not in dataset:
            setattr(dataset, name, None)
    if dataset.get("PatientIdentityRemoved") == "YES" and not dataset.get("DeidentificationMethod"):
        dataset.DeidentificationMethod = "not stated by the source"  # the standard wants one
    return emptied


def ill_formed(dataset: Dataset) -> list[str]:
    """The attributes of patient and study, allowed to be empty, whose values the standard does not allow."""
    found = []
    for name, form in MAY_BE_EMPTY.items():
        if name not in dataset:
            continue
        try:
            value: Any = dataset[name].value
            text = str(value if value is not None else "").strip()
            known = not text or re.fullmatch(form, text)
        except Exception:  # pydicom looks at a value when it is asked for
            known = None
        if not known:
            found.append(name)
    return found


def referenced_images(stack: SliceStack, voxels: np.ndarray) -> tuple[list[Dataset], np.ndarray, list[str]]:
    """The files that a segmentation or a parametric map refers to, and its frames in their order.

    Args:
        voxels: (z, y, x) of the even volume.

    Returns:
        The headers of the files, the frames (frame, row, column), and the attributes that were ill-formed in any of
        the headers and are empty now.
    """
    instances, slices = stack.series.instances, stack.to_slices(voxels)
    multiframe = instances[0].frame is not None
    headers = [instance.source.read(pixels=False) for instance in (instances[:1] if multiframe else instances)]
    emptied = list(dict.fromkeys(name for header in headers for name in _complete(header)))
    if not multiframe:
        return headers, slices, emptied
    frames = np.zeros((int(headers[0].NumberOfFrames), *slices.shape[1:]), slices.dtype)
    frames[np.array([instance.frame for instance in instances])] = slices
    return headers, frames, emptied


def require_highdicom(path: Path, result: Segmentation, kind: str) -> tuple[Any, Any, SliceStack]:
    """What an object that refers to DICOM slices is made with.

    Args:
        kind: of object, with its article, for the sentence.

    Returns:
        highdicom, its codes, and the slices of the scan.

    Raises:
        HemsegError: the scan is no DICOM series, or highdicom is not installed.
    """
    stack = result.volume.stack
    if stack is None:
        scan = result.volume.path or "this scan"
        raise HemsegError(f"{path}: {kind} refers to DICOM slices, but {scan} has none.")
    try:
        import highdicom
        from pydicom.sr.codedict import codes
    except ImportError:
        raise HemsegError(f"{kind} needs highdicom; `pip install 'hemseg[dicom]'`.") from None
    return highdicom, codes, stack


def equipment(series_number: int) -> dict[str, Any]:
    """The arguments of highdicom that say what made an object: new UIDs, and this program in place of a device."""
    from pydicom.uid import generate_uid

    return {
        "series_instance_uid": generate_uid(prefix=None),
        "series_number": series_number,
        "sop_instance_uid": generate_uid(prefix=None),
        "instance_number": 1,
        "manufacturer": "hemseg",
        "manufacturer_model_name": "hemseg",
        "software_versions": __version__,
        "device_serial_number": "0",
    }


def header_sentence(path: Path, kind: str, error: Exception, source: Dataset) -> str:
    """The sentence for an error of highdicom's, which would quote what the headers say."""
    needed = next((n for n in NEEDED if n in str(error) or not source.get(n)), type(error).__name__)
    return f"{path}: the scan's headers do not allow {kind} ({needed})."


def build_segmentation(
    result: Segmentation,
    path: Path,
    labels: np.ndarray,
    segment_labels: Sequence[str],
    kinds: Sequence[str] = (),
    series_number: int = 9000,
) -> tuple[Dataset, list[Dataset]]:
    """A DICOM SEG: binary, SNOMED-coded, in the frame of reference of the scan.

    Args:
        path: for the sentences of errors.
        labels: integers (z, y, x) on the scan's grid: 0, or the number of a segment.
        segment_labels: of the segments 1, 2, ...; a segment may be empty.
        kinds: of the segments, where they are known.
        series_number: of the object.

    Returns:
        The object, and the headers of the files that it refers to.

    Raises:
        HemsegError: the scan is no DICOM series, highdicom is not installed, or the headers do not allow it.
    """
    hd, codes, stack = require_highdicom(path, result, "a DICOM segmentation")
    sources, frames, emptied = referenced_images(stack, labels)
    if emptied:
        logger.warning("%s: %s: ill-formed in the scan, left empty here", path, ", ".join(emptied))
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=hd.sr.CodedConcept(*FINDINGS.get(kind, HEMORRHAGE)),
            anatomic_regions=[codes.SCT.BrainVentricle] if kind == "intraventricular" else None,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=hd.AlgorithmIdentificationSequence(
                name="hemseg", version=__version__, family=codes.DCM.ArtificialIntelligence
            ),
        )
        for number, (label, kind) in enumerate(zip(segment_labels, kinds or [""] * len(segment_labels), strict=True), 1)
    ]
    try:
        segmentation = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            **equipment(series_number=series_number),
            series_description="Intracranial hemorrhage (research only)",
            content_label="HEMORRHAGE",
            content_description=mark(result.volume.content),
            omit_empty_frames=bool(frames.any()),
        )
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise HemsegError(header_sentence(path, "a DICOM segmentation", error, sources[0])) from None
    remove_free_text(segmentation)
    return segmentation, sources


def write_segmentation(result: Segmentation, path: Path) -> Path:
    """Write the mask as DICOM SEG with one segment.

    Raises:
        HemsegError: the scan is no DICOM series, highdicom is not installed, or the file cannot be written.
    """
    segmentation, _ = build_segmentation(result, path, result.mask, [HEMORRHAGE[2]])
    write_with(segmentation.save_as, path, "the segmentation")
    return path


def write_kind_segmentation(result: Segmentation, path: Path) -> Path:
    """Write the mask of kinds as DICOM SEG, with a segment for each kind that was found.

    Raises:
        HemsegError: see `write_segmentation`.
    """
    found = [name for name in (*KINDS, UNSURE) if any(kind.name == name for kind in result.kinds)]
    labels = np.zeros_like(result.kind_mask)  # segments are numbered without gaps
    for number, name in enumerate(found, start=1):
        labels[result.kind_mask == CODES.get(name, UNSURE_CODE)] = number
    names = [f"{HEMORRHAGE[2]}, kind unsure" if n == UNSURE else f"{n.capitalize()} hemorrhage" for n in found]
    segmentation, _ = build_segmentation(result, path, labels, names or [HEMORRHAGE[2]], found, series_number=9004)
    write_with(segmentation.save_as, path, "the segmentation of kinds")
    return path
