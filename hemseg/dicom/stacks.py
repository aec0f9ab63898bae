"""Slices with one SeriesInstanceUID to the stacks that they form, and what stays out of them, with the reason.

A SeriesInstanceUID promises one stack and often holds more: two kernels or phases at the same positions, two tilts, a
copy. Slices are grouped with a tolerance, and what cannot be of one stack is kept apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np

from hemseg.dicom.codestream import GRAY
from hemseg.dicom.header import ILL_FORMED, Header
from hemseg.dicom.source import Source

NEEDED = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
# direction cosines, and pixel spacing relative, that differ by less are the same
COSINE_TOLERANCE, SPACING_TOLERANCE = 1e-2, 1e-3
COINCIDENT_MM = 0.05  # slices nearer than this lie at one place
MAX_STACKS = 64  # of one SeriesInstanceUID: perfusion has some 30 phases
COMPLETE = 1.5  # gaps of at most so many thicknesses: no slice is missing between
OVERLAPPING = 0.75  # steps of less than so many thicknesses
NO_AGENT = ("", "no", "none", "n", "na", "n/a", "0", "nein", "without")  # as ContrastBolusAgent
MANY_FRAMES = "with many slices in one file that is not enhanced CT (convert it to NIfTI, with dcm2niix for instance)"
# what separates the reconstructions and phases of one SeriesInstanceUID, in this order, and its name in a sentence
STACK_ATTRIBUTES: tuple[tuple[str, Callable[[Instance], object]], ...] = (
    ("convolution kernel", lambda i: i.get("ConvolutionKernel")),
    ("contrast agent", lambda i: i.contrast),
    ("image type", lambda i: i.get("ImageType")),
    ("slice thickness", lambda i: i.header.get("SliceThickness")),
    ("acquisition", lambda i: i.header.get("AcquisitionNumber")),
    ("description", lambda i: i.get("SeriesDescription")),
    ("folder", lambda i: i.source.place),
)


@dataclass(frozen=True, eq=False)
class Instance:
    """One slice: where it lies, and what its header says. Vectors are (x, y, z), mm, LPS.

    Attributes:
        frame: of an enhanced CT, which of the file's slices it is, from 0; None for a file of its own.
    """

    source: Source
    header: Header
    frame: int | None = None

    @cached_property
    def orientation(self) -> np.ndarray:
        """(2, 3): along a row, along a column."""
        return np.array(self.header["ImageOrientationPatient"]).reshape(2, 3)

    @cached_property
    def position(self) -> np.ndarray:
        """Of the first pixel."""
        return np.array(self.header["ImagePositionPatient"])

    @property
    def contrast(self) -> bool:
        """Whether the header names a contrast agent."""
        return self.get("ContrastBolusAgent").lower() not in NO_AGENT

    def get(self, name: str) -> str:
        """A header value as text, '' when it is absent."""
        return str(self.header.get(name, ""))


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one series that form one stack, in the order of their normal.

    Attributes:
        warnings: what was left out or looks odd.
        left_out: where the slices lie that have the same SeriesInstanceUID and are not of this stack.
        place: the folder, where that alone separates this stack from another one of the same SeriesInstanceUID.
    """

    instances: tuple[Instance, ...]
    warnings: tuple[str, ...] = ()
    left_out: tuple[Source, ...] = ()
    place: Path | None = None

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self.instances[0].get("SeriesInstanceUID")

    @property
    def study(self) -> tuple[str, ...]:
        """What separates its study from another one: PatientID, StudyInstanceUID, and the folder where that is missing.

        Never for a message.
        """
        return study_of(self.instances[0])

    @property
    def patient(self) -> tuple[str, ...]:
        """What separates its patient from others: PatientID, or the study where that is missing; not for messages."""
        return (self.study[0],) if self.study[0] else self.study

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once, those with slices that were left out among them."""
        return tuple(dict.fromkeys(source.path for source in self.sources))

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where all slices of this SeriesInstanceUID lie."""
        return tuple(dict.fromkeys([*(i.source for i in self.instances), *self.left_out]))

    def describe(self) -> str:
        """One line for people. Nothing in it names the patient."""
        first = self.instances[0]
        kernel, thickness = first.get("ConvolutionKernel"), first.header.get("SliceThickness")
        number = first.get("SeriesNumber")
        words = [f"series {number}" if number else f"series {self.uid[-12:]}", slices(len(self.instances))]
        words += [f"{thickness:g} mm"] if thickness else []
        return ", ".join(words + [f"kernel {kernel}"] * bool(kernel))


def slices(count: int) -> str:
    """A number of slices in words."""
    return f"{count} slice{'s' * (count != 1)}"


def study_of(instance: Instance) -> tuple[str, ...]:
    """PatientID and StudyInstanceUID, or the folder where that is missing: keeps studies apart; not for messages."""
    uid = instance.get("StudyInstanceUID")
    return (instance.get("PatientID"), uid) if uid else (instance.get("PatientID"), "", str(instance.source.place))


def left_out_summary(counts: Counter[str]) -> str:
    """Numbers of slices, each with the reason why they stayed out, in words."""
    files = {reason: f"{n} file{'s' * (n != 1)}" for reason, n in counts.items() if reason == MANY_FRAMES}
    return ", ".join(f"{files.get(reason) or slices(count)} {reason}" for reason, count in sorted(counts.items()))


def stacks_of(instances: Sequence[Instance]) -> tuple[list[Series], list[tuple[Instance, str]]]:
    """The stacks that slices with one SeriesInstanceUID form, and the slices that cannot be placed, with the reason."""
    unplaced = [(instance, reason) for instance in instances if (reason := _cannot_be_placed(instance))]
    clusters: list[list[Instance]] = []
    for instance in instances:
        if _cannot_be_placed(instance):
            continue
        same = next((c for c in clusters if not _difference(c[0], instance)), None)
        if same is None:
            clusters.append([instance])
        else:
            same.append(instance)
    found = []
    for cluster in clusters:
        if len(cluster) > 2 and len(_places(cluster)) == 1:  # their positions say nothing
            unplaced += [(instance, "at one and the same position") for instance in cluster]
            continue
        counts = Counter(_difference(cluster[0], i) for c in clusters if c is not cluster for i in c)
        counts += Counter(reason for _, reason in unplaced)
        warnings = (f"Of the same series stayed out: {left_out_summary(counts)}.",) if counts else ()
        parts = _split_into_stacks(cluster)
        for part, differ in parts:
            why = f"The series holds {len(parts)} stacks in one place that differ ({', '.join(differ)}); "
            own = (*warnings, f"{why}one of {slices(len(part))} was taken.") if differ else warnings
            stack, place = _series(part, own), part[0].source.place if "folder" in differ else None
            here = {instance.source for instance in stack.instances}
            others = (i.source for i in instances if i.source not in here and place in (None, i.source.place))
            found.append(replace(stack, left_out=tuple(others), place=place))
    return found, unplaced


def _cannot_be_placed(instance: Instance) -> str:
    """Why a slice has no place in a volume; '' if it has."""
    if instance.frame is None and instance.header.get("NumberOfFrames", 1) > 1:
        return MANY_FRAMES
    if instance.get("PhotometricInterpretation") not in ("", *GRAY):
        return "in color"
    return next((f"without {name}" for name in NEEDED if not instance.header.get(name)), "")


def _difference(a: Instance, b: Instance) -> str:
    """How the pixel grids of two slices differ, as the end of a sentence; '' if they do not but for rounding."""
    if any(a.header[name] != b.header[name] for name in ("Rows", "Columns")):
        return "of another matrix"
    if not np.allclose(a.header["PixelSpacing"], b.header["PixelSpacing"], rtol=SPACING_TOLERANCE, atol=0):
        return "of another pixel spacing"
    return "at another angle" if np.abs(a.orientation - b.orientation).max() > COSINE_TOLERANCE else ""


def _depths(instances: Sequence[Instance], normal: np.ndarray) -> np.ndarray:
    return np.array([instance.position @ normal for instance in instances])


def _places(instances: Sequence[Instance]) -> list[list[Instance]]:
    """Slices by position along their normal, those at one place together."""
    normal = np.cross(*instances[0].orientation)
    depths = _depths(instances, normal)
    places: list[list[Instance]] = []
    last = -np.inf
    for k in np.argsort(depths, kind="stable"):
        if depths[k] - last > COINCIDENT_MM:
            places.append([])
            last = depths[k]
        places[-1].append(instances[k])
    return places


def _split_into_stacks(instances: list[Instance]) -> list[tuple[list[Instance], tuple[str, ...]]]:
    """The reconstructions or phases among slices of one grid, each with what separates them; () if there is one."""
    for name, key in STACK_ATTRIBUTES:
        groups: dict[object, list[Instance]] = defaultdict(list)
        for instance in instances:
            groups[key(instance)].append(instance)
        parts = list(groups.values())
        if not 1 < len(parts) <= max(2, min(MAX_STACKS, len(instances) // 3)):
            continue  # a value of its own for each slice separates nothing
        if any(_are_separate_stacks(a, b, name) for a, b in combinations(parts, 2)):
            return [(inner, (name, *also)) for part in parts for inner, also in _split_into_stacks(part)]
    return [(instances, ())]


def _are_separate_stacks(a: list[Instance], b: list[Instance], name: str) -> bool:
    """Whether slices that differ in an attribute are stacks of their own: at the same positions, or in between."""
    few, many = sorted((a, b), key=len)
    normal = np.cross(*many[0].orientation)
    x, y = np.sort(_depths(few, normal)), np.sort(_depths(many, normal))
    same = int((np.abs(x[:, None] - y).min(axis=1) <= COINCIDENT_MM).sum())
    if same >= max(1, len(few) / 2):
        if name != "folder":
            return True
        copies = {i.get("SOPInstanceUID") for i in few} & {i.get("SOPInstanceUID") for i in many}
        return len(copies - {""}) < same / 2  # copies in another folder are no stack of their own
    inside = int(((x > y[0]) & (x < y[-1])).sum())
    if inside < max(2, len(few) / 2) or name == "folder":
        return False
    thickness = many[0].header.get("SliceThickness") or 0.0
    if name == "acquisition" and np.median(np.diff(np.sort([*x, *y]))) >= OVERLAPPING * thickness:
        return False  # taken in turns, odd and even slices: together they are the stack
    return _is_complete_stack(x, thickness) and _is_complete_stack(y, thickness)


def _is_complete_stack(depths: np.ndarray, thickness: float) -> bool:
    """Whether slices at these depths (sorted, mm) are a stack by themselves, rather than what is missing in another."""
    gaps = np.diff(depths)
    if thickness <= 0:
        thickness = float(np.median(gaps))
    return bool((gaps <= COMPLETE * thickness).mean() >= COMPLETE / 2)


def _series(instances: list[Instance], warnings: tuple[str, ...]) -> Series:
    """In order; of slices at one place the first is kept, with a warning."""
    kept = [min(place, key=lambda i: i.header.get("InstanceNumber", 0)) for place in _places(instances)]
    if duplicates := len(instances) - len(kept):
        lie, were = ("lies", "was") if duplicates == 1 else ("lie", "were")
        warnings = (*warnings, f"{slices(duplicates)} {lie} where another one lies and {were} left out.")
    ill_formed = Counter(name for i in kept for name in i.header.get(ILL_FORMED, ()))
    warnings = (
        *warnings,
        *(f"{name} is ill-formed in {slices(n)} and counts as missing." for name, n in ill_formed.items()),
    )
    missing = [n for n in ("StudyInstanceUID", "SeriesInstanceUID") if not kept[0].get(n)]
    if missing:
        warnings = (
            *warnings,
            f"The header has no {' and no '.join(missing)}: slices of one folder were taken for one study.",
        )
    return Series(tuple(kept), warnings)
