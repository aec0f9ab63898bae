"""DICOM in: finds series in folders and archives and chooses the one to segment; `hemseg.stack` makes it a volume."""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hemseg.dicom_header import ENHANCED, FIELDS, Header, of_frames, of_slice
from hemseg.errors import HemsegError, first_line
from hemseg.inflation import check_instance, check_members
from hemseg.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

MIN_SLICES = 5
AXIAL_DEGREES = 45.0  # gantries tilt by up to 30 degrees, heads by more
_NEEDED = (
    "StudyInstanceUID", "SeriesInstanceUID", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows",
    "Columns",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Where an instance lies: a file, or a member of a zip archive."""

    path: Path
    member: str = ""

    def read(self, pixels: bool = True, fields: Sequence[str] = ()) -> Dataset:
        """Read it, or its header alone, or of that some fields.

        Raises:
            HemsegError: it is no DICOM.
        """
        import pydicom

        options: dict[str, Any] = {"stop_before_pixels": not pixels, "specific_tags": list(fields) or None}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about values that bend the standard; what matters is checked here
                with BytesIO(_archive(self.path).read(self.member)) if self.member else self.path.open("rb") as file:
                    check_instance(file, self)
                    return pydicom.dcmread(file, **options)
        except HemsegError:
            raise
        except Exception as error:  # pydicom's own errors are many
            raise HemsegError(f"{self}: cannot be read as DICOM ({first_line(error)}).") from None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


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

    def get(self, name: str) -> str:
        """A header value as text, '' when it is absent."""
        return str(self.header.get(name, ""))


@dataclass(frozen=True, eq=False)
class Series:
    """Slices of one series with one orientation and size, in the order of their normal.

    Attributes:
        warnings: what was left out or looks odd.
    """

    instances: tuple[Instance, ...]
    warnings: tuple[str, ...] = ()

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return self.instances[0].get("SeriesInstanceUID")

    @property
    def study(self) -> str:
        """StudyInstanceUID."""
        return self.instances[0].get("StudyInstanceUID")

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(i.source.path for i in self.instances))

    def describe(self) -> str:
        """One line for people. Nothing in it names the patient."""
        first = self.instances[0]
        kernel, thickness = first.get("ConvolutionKernel"), first.header.get("SliceThickness")
        number = first.get("SeriesNumber")
        words = [f"series {number}" if number else f"series {self.uid[-12:]}", f"{len(self.instances)} slices"]
        return ", ".join(words + [f"{thickness:g} mm"] * bool(thickness) + [f"kernel {kernel}"] * bool(kernel))


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip archive, opened once for all of its members: its directory may be long."""
    state = path.stat()
    return _opened(path, (state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=4)
def _opened(path: Path, state: tuple[int, ...]) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def members(archive: Path) -> list[Source]:
    """The files of a zip archive that begin as DICOM files do. Nothing is unpacked to disk.

    Raises:
        HemsegError: it is no zip archive, or far too large.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = [i for i in opened.infolist() if i.filename and not i.is_dir()]
            check_members(archive, infos)
            found = []
            for info in infos:
                with opened.open(info) as file:
                    if file.read(132)[128:] == b"DICM":
                        found.append(Source(archive, info.filename))
            return found
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise HemsegError(f"{archive}: cannot be read as a zip archive ({first_line(error)}).") from None


def find_series(sources: Iterable[Source], damaged: dict[Path, str] | None = None) -> list[Series]:
    """Group instances into series. What is no axial-like CT slice is left out here: localizers, reports, dose pages.

    Args:
        damaged: is told of the files that could not be read, and why; every series has a warning of them, too.

    Raises:
        HemsegError: pydicom is not installed, or there is nothing but damaged files, or of a kind that is not read.
    """
    need_pydicom()
    unread, damaged = 0, {} if damaged is None else damaged
    groups: dict[tuple[Any, ...], list[Instance]] = defaultdict(list)
    for source in sources:
        try:
            found = _instances(source)
        except HemsegError as error:
            damaged[source.path] = str(error)
            continue
        for instance in found:
            header = instance.header
            if header.get("NumberOfFrames", 1) > 1:
                unread += 1
                continue
            if not all(header.get(name) for name in _NEEDED):
                continue
            shape = (header["Rows"], header["Columns"], *(round(v, 4) for v in header["PixelSpacing"]))
            direction = tuple(round(v, 2) + 0.0 for v in header["ImageOrientationPatient"])  # no -0
            own = str(source) if instance.frame is not None else ""  # an enhanced CT is a series by itself
            groups[header["StudyInstanceUID"], header["SeriesInstanceUID"], own, shape, direction].append(instance)
    if unread and not groups:
        raise HemsegError(
            "holds DICOM files with many slices that are no enhanced CT, which hemseg does not read; convert them to "
            "NIfTI, with dcm2niix for instance."
        )
    if not damaged:
        return [_series(instances, ()) for instances in groups.values()]
    first = next(iter(damaged.values()))
    if not groups:
        raise HemsegError(first)
    said = f"{len(damaged)} DICOM file{'s' * (len(damaged) != 1)} could not be read, and stayed out: {first}"
    return [_series(instances, (said,)) for instances in groups.values()]


def _instances(source: Source) -> list[Instance]:
    """The CT slices of a file: one, or the frames of an enhanced CT; none of a localizer or of another modality.

    Raises:
        HemsegError: it is no DICOM, or its header is damaged.
    """
    dataset = source.read(pixels=False, fields=tuple(FIELDS))
    try:
        if dataset.get("Modality") != "CT":
            return []
        if dataset.get("SOPClassUID") in ENHANCED:
            found = [Instance(source, h, number) for number, h in enumerate(of_frames(source.read(pixels=False)))]
        else:
            found = [Instance(source, of_slice(dataset))]
    except HemsegError:
        raise
    except Exception as error:  # pydicom looks at values when they are asked for, and has many errors
        raise HemsegError(f"{source}: its DICOM header is damaged ({first_line(error)}).") from None
    return [i for i in found if "LOCALIZER" not in i.get("ImageType").upper()]


def _series(instances: list[Instance], said: tuple[str, ...]) -> Series:
    """In order; of slices at one place the first is kept, and that is said."""
    normal = np.cross(*instances[0].orientation)
    ordered = sorted(instances, key=lambda i: (float(i.position @ normal), i.header.get("InstanceNumber", 0)))
    kept = [ordered[0]]
    for instance in ordered[1:]:
        if np.abs(instance.position - kept[-1].position).max() > 1e-3:
            kept.append(instance)
    twice = len(ordered) - len(kept)
    if twice:
        said = (*said, f"{twice} slices lie where another one lies and were left out.")
    return Series(tuple(kept), said)


def choose(series: Sequence[Series], wanted: str = "") -> tuple[Series, str]:
    """The series of a study to segment, and the rule in words.

    Of the axial series with at least five slices: original before derived images, a soft kernel before a sharp one,
    without contrast agent before with, a head before anything else, then the thinnest slices, the most slices, the
    lowest series number.

    Args:
        wanted: a SeriesInstanceUID (or the end of one), or a series number, that overrides the rule.

    Raises:
        HemsegError: there is none.
    """
    if wanted:
        found = [s for s in series if s.instances[0].get("SeriesNumber") == wanted]
        found = found or [s for s in series if s.uid.endswith(wanted)]
        if len({s.uid for s in found}) > 1:
            raise HemsegError(f"series {wanted} may be any of: {'; '.join(s.uid for s in found)}; give more of it.")
        if not found:
            there = "; ".join(s.describe() for s in series) or "none"
            raise HemsegError(f"there is no series {wanted}; there are: {there}.")
        return max(found, key=lambda s: len(s.instances)), f"{wanted} was asked for"
    axial = [s for s in series if len(s.instances) >= MIN_SLICES and _is_axial(s)]
    if not axial:
        there = "; ".join(s.describe() for s in series) or "none"
        raise HemsegError(f"there is no axial CT series of {MIN_SLICES} slices or more; there are: {there}.")
    best = min(axial, key=_rank)
    rule = f"{best.describe()}; of {len(axial)} axial series: original, soft kernel, no contrast agent, head, thinnest"
    return best, rule if len(axial) > 1 else f"{best.describe()}; the only axial series"


def _is_axial(series: Series) -> bool:
    normal = np.cross(*series.instances[0].orientation)
    return bool(abs(normal[2]) >= np.cos(np.radians(AXIAL_DEGREES)) * max(1e-9, float(np.linalg.norm(normal))))


def _rank(series: Series) -> tuple[Any, ...]:
    first = series.instances[0]
    texts = ("BodyPartExamined", "SeriesDescription", "StudyDescription", "ProtocolName")
    about = " ".join(first.get(name) for name in texts)
    head = re.search(r"head|brain|skull|cran|neuro|kopf|sch[aä]del|cerebr", about, re.IGNORECASE)
    number = first.get("SeriesNumber")
    return (
        "ORIGINAL" not in first.get("ImageType").upper(),
        is_sharp(first.get("ConvolutionKernel")),
        bool(first.get("ContrastBolusAgent").strip()),
        head is None and bool(about.strip()),
        first.header.get("SliceThickness") or 99.0,
        -len(series.instances),
        int(number) if number else 10**9,
        series.uid,
    )


def is_sharp(kernel: str) -> bool:
    """Whether a convolution kernel is one for bone or lung: by the names that GE, Siemens, Philips and Canon give."""
    name = kernel.upper()
    if re.search(r"BONE|EDGE|LUNG|SHARP|ULTRA|DETAIL", name):
        return True
    if found := re.search(r"\b[BHJUITQ][A-Z]?(\d\d)", name):  # Siemens: H31s, Hr60, J70h; from 50 on they are sharp
        return int(found[1]) >= 50
    if found := re.search(r"\bFC(\d\d)", name):  # Canon: FC30 and FC80 families are for bone, FC50 for lung
        return found[1][0] in "358"
    return bool(re.fullmatch(r"Y[ABCD]|[DEL]", name.strip("'[] ")))  # Philips


def read_series(sources: Iterable[Source], path: Path, wanted: str = "") -> Volume:
    """Find, choose and read: the even volume of a study's series.

    Raises:
        HemsegError: there is no series to be segmented, or it cannot be read.
    """
    sources = list(sources)
    if not sources:
        raise HemsegError(f"{path}: holds no DICOM files; give a scan, or the folder of a DICOM study.")
    try:
        series, rule = choose(find_series(sources), wanted)
    except HemsegError as error:
        raise error if str(path) in str(error) else HemsegError(f"{path}: {error}") from None
    from hemseg.stack import volume_of

    return replace(volume_of(series, path), chosen=rule)


def sources_of(path: Path) -> list[Source]:
    """The DICOM files of a folder (with its subfolders), of a zip archive, or the file itself."""
    if path.is_dir():
        from hemseg.folders import unreadable_dicom, walk

        files = walk(path)
        for file, reason in unreadable_dicom(files).items():  # slices would be missing
            raise HemsegError(f"{file}: {reason}")
        return [Source(p) for p in files if is_dicom(p)]
    return members(path) if path.suffix.lower() == ".zip" else [Source(path)]


def studies(series: Iterable[Series]) -> list[list[Series]]:
    """Series of one study together."""
    groups: dict[str, list[Series]] = defaultdict(list)
    for one in series:
        groups[one.study].append(one)
    return list(groups.values())


def need_pydicom() -> None:
    """Raise HemsegError if pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise HemsegError("DICOM needs pydicom; `pip install 'hemseg[dicom]'`.") from None
