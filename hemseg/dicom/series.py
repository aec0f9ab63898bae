"""DICOM slices to series: which are of one patient, one study, one series, and which could not be read or placed.

What stays out is counted, and stands among the warnings of the series.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hemseg.dicom.header import ENHANCED, FIELDS, IllFormedError, frame_headers, slice_header
from hemseg.dicom.source import Source, require_pydicom
from hemseg.dicom.stacks import Instance, Series, left_out_summary, stacks_of, study_of
from hemseg.errors import HemsegError

CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", *ENHANCED)


def find_series(sources: Iterable[Source], damaged: dict[Path, str] | None = None) -> list[Series]:
    """Group the CT slices of some files into series. Localizers and other modalities are passed over.

    Args:
        damaged: gets the files that could not be read, and why; every series has a warning of them, too.

    Raises:
        HemsegError: pydicom is not installed, there is nothing but damaged files, or no slice can be placed.
    """
    require_pydicom()
    damaged = {} if damaged is None else damaged
    found: list[Instance] = []
    for source in sources:
        try:
            found += _instances(source)
        except HemsegError as error:
            damaged[source.path] = str(error)
    _join_unknown_patients(found)
    groups: dict[tuple[object, ...], list[Instance]] = defaultdict(list)
    for instance in found:
        number = "" if instance.get("SeriesInstanceUID") else instance.get("SeriesNumber")
        own = str(instance.source) if instance.frame is not None else ""  # an enhanced CT is a series by itself
        groups[(*study_of(instance), instance.get("SeriesInstanceUID"), number, own)].append(instance)
    series: list[Series] = []
    lost: dict[tuple[str, ...], list[tuple[Instance, str]]] = defaultdict(list)  # by study, with the reason
    for instances in groups.values():
        stacks, unplaced = stacks_of(instances)
        series += stacks
        if not stacks:
            lost[study_of(instances[0])] += unplaced
    if not series and lost:
        counts = Counter(reason for unplaced in lost.values() for _, reason in unplaced)
        raise HemsegError(f"holds no CT series that can be read: {left_out_summary(counts)}.")
    if not series and damaged:
        raise HemsegError(next(iter(damaged.values())))
    warnings = _damage_warnings(damaged)
    return [_with_lost(one, warnings, lost.get(one.study, [])) for one in series]


def studies(series: Iterable[Series]) -> list[list[Series]]:
    """Series of one study of one patient together; stacks that only their folders separate are studies, too."""
    groups: dict[tuple[str, ...], list[Series]] = defaultdict(list)
    for one in series:
        groups[one.study].append(one)
    found: list[list[Series]] = []
    for together in groups.values():
        places = sorted({one.place for one in together if one.place})
        parts: dict[Path | None, list[Series]] = defaultdict(list)
        for one in together:
            near = [p for p in places if all(p == q or p in q.parents for q in (s.place for s in one.sources))]
            parts[one.place or next(iter(near or places), None)].append(one)
        found += parts.values()
    return found


def _damage_warnings(damaged: dict[Path, str]) -> tuple[str, ...]:
    if not damaged:
        return ()
    count = f"{len(damaged)} DICOM file{'s' * (len(damaged) != 1)}"
    return (f"{count} could not be read, and stayed out: {next(iter(damaged.values()))}",)


def _with_lost(series: Series, warnings: tuple[str, ...], lost: list[tuple[Instance, str]]) -> Series:
    """A series that also warns of damaged files, and of other series of its study that could not be used at all.

    Pictures of dose pages and the like, which are no slices, are not worth a word.
    """
    counts = Counter(reason for instance, reason in lost if "SECONDARY" not in instance.get("ImageType").upper())
    if counts:
        warnings = (*warnings, f"Of other series of the study stayed out: {left_out_summary(counts)}.")
    left_out = (*series.left_out, *(instance.source for instance, _ in lost))
    return replace(series, warnings=(*warnings, *series.warnings), left_out=left_out) if warnings or lost else series


def _instances(source: Source) -> list[Instance]:
    """The CT slices of a file: one, or the frames of an enhanced CT; none of a localizer or of another modality.

    Raises:
        HemsegError: it is no DICOM, or its header is damaged.
    """
    dataset = source.read(pixels=False, fields=tuple(FIELDS))
    try:
        kind = str(dataset.get("SOPClassUID") or "")
        if (dataset.get("Modality") or ("CT" if kind in CT_CLASSES else "")) != "CT":
            return []
        picture = "ImagePositionPatient" not in dataset and not dataset.get("NumberOfFrames")
        if kind and kind not in CT_CLASSES and picture:
            return []  # secondary captures, reports and the like
        if kind in ENHANCED:
            found = [Instance(source, h, number) for number, h in enumerate(frame_headers(source.read(pixels=False)))]
        else:
            found = [Instance(source, slice_header(dataset))]
    except IllFormedError as error:
        raise HemsegError(f"{source}: its DICOM header is damaged ({error} is ill-formed).") from None
    except HemsegError as error:
        reason = str(error)
        raise HemsegError(
            reason if str(source) in reason else f"{source}: its DICOM header is damaged ({reason})."
        ) from None
    except Exception as error:  # pydicom's own are many, and they quote what the header says
        raise HemsegError(f"{source}: its DICOM header is damaged ({type(error).__name__}).") from None
    return [i for i in found if "LOCALIZER" not in i.get("ImageType").upper()]


def _join_unknown_patients(instances: Iterable[Instance]) -> None:
    """Slices without a PatientID are the patient's whose ID the others of their study have, if that is one.

    Where none of a study has one, their names keep patients apart.
    """
    by_study: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_study[instance.get("StudyInstanceUID")].append(instance)
    for uid, together in by_study.items():
        ids = {instance.get("PatientID") for instance in together} - {""}
        if uid and len(ids) == 1:
            for instance in together:
                instance.header["PatientID"] = next(iter(ids))
        elif not ids and len({instance.get("PatientName").casefold() for instance in together}) > 1:
            for instance in together:
                instance.header["PatientID"] = f"named {instance.get('PatientName').casefold()}"
