"""DICOM out, complete: a segmentation with a segment for each lesion, and a structured report (TID 1500) of figures
that refers to it.

An empty result is a result: its segmentation has one segment without a voxel, and its report says that hemorrhage is
absent.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hemseg import __version__
from hemseg.components import numbered_components
from hemseg.dicom_out.seg import (
    FINDINGS,
    HEMORRHAGE,
    build_segmentation,
    equipment,
    header_sentence,
    remove_free_text,
    require_highdicom,
)
from hemseg.errors import HemsegError
from hemseg.io.files import write_with
from hemseg.io.marks import mark
from hemseg.lesions import MeasuredLesion

if TYPE_CHECKING:
    from pydicom import Dataset

    from hemseg.segmentation import Segmentation

NOTICE = "Research only. Not a medical device."
_KIND = "a DICOM structured report"
_SERIES_NUMBER = 9002
_PROCEDURE = ("24725-4", "LN", "CT Head")
_MILLILITER = ("mL", "UCUM", "milliliter")
_ABC2 = ("ABC2", "99HEMSEG", "ABC/2, Kothari et al. 1996")  # there is no code of a standard
_VALUE_DIGITS = 3


def write_segmentation_and_report(result: Segmentation, path: Path, report: Path) -> None:
    """Write both; the segmentation last: where there is one, there is its report.

    Args:
        path: of the DICOM SEG.
        report: of the DICOM SR.

    Raises:
        HemsegError: the scan is no DICOM series, highdicom is not installed, or the headers do not allow it.
        OutputError: a file cannot be written.
    """
    require_highdicom(report, result, _KIND)
    numbers, sizes = numbered_components(result.mask)
    segment_labels = [f"{HEMORRHAGE[2]} {number}" for number in range(1, len(sizes) + 1)] or [HEMORRHAGE[2]]
    segmentation, sources = build_segmentation(result, path, numbers.astype(np.uint16), segment_labels)
    written = build_report(result, report, result.measured, segmentation, sources)
    write_with(written.save_as, report, "the structured report")
    write_with(segmentation.save_as, path, "the segmentation")


def build_report(
    result: Segmentation, path: Path, lesions: Sequence[MeasuredLesion], segmentation: Dataset, sources: list[Dataset]
) -> Dataset:
    """The structured report: for the scan presence and volume, for each lesion volume, ABC/2, mean HU and side.

    Args:
        path: for the sentences of errors.
        lesions: in the order of the segments.
        segmentation: with a segment for each lesion.
        sources: headers of the slices that it refers to.

    Raises:
        HemsegError: the headers do not allow it.
    """
    hd, codes, _ = require_highdicom(path, result, _KIND)
    from pydicom.uid import generate_uid

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["hemseg", __version__]),
        name="hemseg",
        manufacturer_name="hemseg",
        model_name=f"hemseg {__version__}",
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    groups = [_of_scan(result, segmentation)]
    series = str(sources[0].SeriesInstanceUID)
    groups += [_of_lesion(n, lesion, result, segmentation, series) for n, lesion in enumerate(lesions, start=1)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values in the source headers that bend the standard
            content = hd.sr.MeasurementReport(
                observation_context=hd.sr.ObservationContext(observer_device_context=observer),
                procedure_reported=hd.sr.CodedConcept(*_PROCEDURE),
                imaging_measurements=groups,
                title=codes.DCM.ImagingMeasurementReport,
            )
            made_by = equipment(_SERIES_NUMBER)
            versions = made_by.pop("software_versions"), made_by.pop("manufacturer_model_name")
            serial_number = made_by.pop("device_serial_number")
            written = hd.sr.ComprehensiveSR(
                evidence=[segmentation, *sources], content=content, is_complete=True, is_verified=False, **made_by
            )
    except (ValueError, AttributeError, KeyError, TypeError) as error:  # they quote what the headers say
        raise HemsegError(header_sentence(path, _KIND, error, sources[0])) from None
    written.SoftwareVersions, written.ManufacturerModelName = versions
    written.DeviceSerialNumber = serial_number
    written.SeriesDescription = "Intracranial hemorrhage: figures (research only)"
    remove_free_text(written)
    return written  # type: ignore[no-any-return]


def _of_scan(result: Segmentation, segmentation: Dataset) -> Any:
    """What was found in the whole scan (TID 1501), with what is odd about it."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    absent = not result.lesions and not result.doubtful_slices
    findings = [codes.DCM.Present] * bool(result.lesions) + [
        codes.DCM.Absent
    ] * absent  # neither where slices are doubtful
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking("All hemorrhage"),
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_type=hd.sr.CodedConcept(*HEMORRHAGE),
        finding_sites=[hd.sr.FindingSite(codes.SCT.Intracranial)],
        algorithm_id=_algorithm(result),
        measurements=[_measurement(codes.SCT.Volume, result.volume_ml, hd.sr.CodedConcept(*_MILLILITER))],
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(codes.DCM.PresenceOfProperty, one) for one in findings],
        source_images=[
            hd.sr.SourceImageForMeasurementGroup(segmentation.SOPClassUID, segmentation.SOPInstanceUID),
        ],
    )
    nothing = ("No hemorrhage was found.",) if absent else ()
    for text in (*nothing, *result.implausible, *result.volume.warnings, NOTICE):
        comment = hd.sr.TextContentItem(codes.DCM.Comment, text, hd.sr.RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(comment)
    return group


def _of_lesion(number: int, measured: MeasuredLesion, result: Segmentation, segmentation: Dataset, series: str) -> Any:
    """The measurements of a lesion (TID 1411), which is segment ``number``."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    lesion, abc2 = measured.lesion, measured.abc2
    kind = result.kinds[number - 1].name if result.kinds else ""
    site = codes.SCT.BrainVentricle if kind == "intraventricular" else codes.SCT.Intracranial
    milliliter, method = hd.sr.CodedConcept(*_MILLILITER), hd.sr.CodedConcept(*_ABC2)
    side: dict[str, Any] = {
        "left": {"laterality": codes.SCT.Left},
        "right": {"laterality": codes.SCT.Right},
        "midline": {"topographical_modifier": codes.DCM.Median},
    }.get(lesion.side, {})
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(f"Hemorrhage {number}"),
        referenced_segment=hd.sr.ReferencedSegment(
            segmentation.SOPClassUID,
            segmentation.SOPInstanceUID,
            number,
            source_series=hd.sr.SourceSeriesForSegmentation(series),
        ),
        finding_category=codes.SCT.MorphologicallyAbnormalStructure,
        finding_type=hd.sr.CodedConcept(*FINDINGS.get(kind, HEMORRHAGE)),
        finding_sites=[hd.sr.FindingSite(site, **side)],
        algorithm_id=_algorithm(result),
        measurements=[
            _measurement(codes.SCT.Volume, lesion.volume_ml, milliliter),
            _measurement(codes.DCM.VolumeOfEllipsoid, abc2.volume_ml, milliliter, method=method),
            _measurement(codes.SCT.LongAxis, abc2.a_cm, codes.UCUM.Centimeter, method=method),
            _measurement(codes.SCT.ShortAxis, abc2.b_cm, codes.UCUM.Centimeter, method=method),
            _measurement(codes.SCT.Length, abc2.c_cm, codes.UCUM.Centimeter, method=method),
            _measurement(
                codes.DCM.AttenuationCoefficient, lesion.mean_hu, codes.UCUM.HounsfieldUnit, derivation=codes.SCT.Mean
            ),
        ],
    )


def _measurement(name: Any, value: float, unit: Any, **more: Any) -> Any:
    import highdicom as hd

    return hd.sr.Measurement(name, round(value, _VALUE_DIGITS), unit, **more)


def _tracking(identifier: str) -> Any:
    import highdicom as hd

    return hd.sr.TrackingIdentifier(hd.UID(), identifier)


def _algorithm(result: Segmentation) -> Any:
    """Which program; its parameter is the mark that says from which scan."""
    import highdicom as hd

    return hd.sr.AlgorithmIdentification("hemseg", __version__, parameters=[mark(result.volume.content)])
