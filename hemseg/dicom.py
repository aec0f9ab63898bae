"""DICOM in: finds series in folders and zip archives, chooses the one to segment, and makes an even volume of it.

A CT series is a stack of slices, and nothing says that it is a regular one. With a tilted gantry each slice is shifted
in its own plane against the one before; gaps differ where the base of the skull was scanned more finely, or slices are
missing. The network wants an even volume: slices are shifted back by whole pixels (nothing is blurred, and the way back
is exact) and interpolated linearly to even steps along their normal. `Stack.to_slices` brings a mask back to the slices
as they are.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from hemseg.errors import HemsegError, first_line
from hemseg.memory import check_memory
from hemseg.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

MIN_SLICES = 5
AXIAL_DEGREES = 45.0  # gantries tilt by up to 30 degrees, heads by more
EVEN = 0.05  # gaps that differ by less than this share of the median count as even
COINCIDENT, MISSING = 0.3, 1.7  # gaps, as shares of the median, that are worth a warning
PADDING_HU = -1024.0
MAX_ZIP_BYTES = 4 * 2**30  # unpacked; beyond it an archive is no head CT
_FIELDS = (
    "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality",
    "ImageType", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns",
    "NumberOfFrames", "InstanceNumber", "ConvolutionKernel", "SliceThickness", "ContrastBolusAgent",
    "BodyPartExamined", "StudyDescription", "ProtocolName",
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
                if not self.member:
                    return pydicom.dcmread(self.path, **options)
                with zipfile.ZipFile(self.path) as archive:
                    return pydicom.dcmread(BytesIO(archive.read(self.member)), **options)
        except Exception as error:  # pydicom's own errors are many
            raise HemsegError(f"{self}: cannot be read as DICOM ({first_line(error)}).") from None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


@dataclass(frozen=True, eq=False)
class Instance:
    """One slice: where it lies, and what its header says. Vectors are (x, y, z), mm, LPS."""

    source: Source
    header: Dataset

    @cached_property
    def orientation(self) -> np.ndarray:
        """(2, 3): along a row, along a column."""
        return np.array(self.header.ImageOrientationPatient, dtype=float).reshape(2, 3)

    @cached_property
    def position(self) -> np.ndarray:
        """Of the first pixel."""
        return np.array(self.header.ImagePositionPatient, dtype=float)

    def get(self, name: str) -> str:
        """A header value as text, '' when it is absent."""
        value = self.header.get(name)
        return "" if value is None else str(value)


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
        kernel, thickness = first.get("ConvolutionKernel"), first.get("SliceThickness")
        number = first.get("SeriesNumber")
        words = [f"series {number}" if number else f"series {self.uid[-12:]}", f"{len(self.instances)} slices"]
        return ", ".join(words + [f"{thickness} mm"] * bool(thickness) + [f"kernel {kernel}"] * bool(kernel))


@dataclass(frozen=True, eq=False)
class Stack:
    """How the slices of a series lie in the even volume that was made of them.

    Attributes:
        series: the slices.
        nearest: for each of them the slice of the volume that is nearest to it.
        corner: (slice, 2), row and column of the volume where its first pixel lies.
        size: rows and columns of a slice.
    """

    series: Series
    nearest: np.ndarray
    corner: np.ndarray
    size: tuple[int, int]

    def to_slices(self, mask: np.ndarray) -> np.ndarray:
        """A mask (z, y, x) of the even volume on the slices as they are, (slice, row, column)."""
        rows, columns = self.size
        return np.stack([mask[z, y : y + rows, x : x + columns] for z, (y, x) in zip(self.nearest, self.corner)])


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def members(archive: Path) -> list[Source]:
    """The files of a zip archive that begin as DICOM files do. Nothing is unpacked to disk.

    Raises:
        HemsegError: it is no zip archive, or far too large.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = [i for i in opened.infolist() if i.filename and not i.is_dir()]
            if sum(i.file_size for i in infos) > MAX_ZIP_BYTES:
                limit = f"{MAX_ZIP_BYTES // 2**30} GiB"
                raise HemsegError(f"{archive}: would unpack to more than {limit}; unpack it yourself.")
            found = []
            for info in infos:
                with opened.open(info) as file:
                    if file.read(132)[128:] == b"DICM":
                        found.append(Source(archive, info.filename))
            return found
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise HemsegError(f"{archive}: cannot be read as a zip archive ({first_line(error)}).") from None


def find_series(sources: Iterable[Source]) -> list[Series]:
    """Group instances into series. What is no axial-like CT slice is left out here: localizers, reports, dose pages.

    Raises:
        HemsegError: pydicom is not installed.
    """
    need_pydicom()
    frames = 0
    groups: dict[tuple[Any, ...], list[Instance]] = defaultdict(list)
    for source in sources:
        try:
            header = source.read(pixels=False, fields=_FIELDS)
        except HemsegError:
            continue
        if not all(header.get(name) is not None for name in _FIELDS[:3]) or header.get("Modality") != "CT":
            continue
        if "LOCALIZER" in [str(v).upper() for v in header.get("ImageType") or ()]:
            continue
        needed = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns")
        if int(header.get("NumberOfFrames") or 1) > 1:
            frames += 1
            continue
        if any(not header.get(name) for name in needed):
            continue
        instance = Instance(source, header)
        shape = (int(header.Rows), int(header.Columns), *(round(float(v), 4) for v in header.PixelSpacing))
        direction = tuple(np.round(instance.orientation.ravel(), 2) + 0.0)
        groups[header.StudyInstanceUID, header.SeriesInstanceUID, shape, direction].append(instance)
    if frames and not groups:
        raise HemsegError(
            "holds enhanced CT only (many slices in one DICOM file), which hemseg does not read; convert it to NIfTI, "
            "with dcm2niix for instance."
        )
    return [_series(instances) for instances in groups.values()]


def _series(instances: list[Instance]) -> Series:
    """In order; of slices at one place the first is kept, and that is said."""
    normal = np.cross(*instances[0].orientation)
    ordered = sorted(instances, key=lambda i: (float(i.position @ normal), int(i.header.get("InstanceNumber") or 0)))
    kept = [ordered[0]]
    for instance in ordered[1:]:
        if np.abs(instance.position - kept[-1].position).max() > 1e-3:
            kept.append(instance)
    twice = len(ordered) - len(kept)
    said = (f"{twice} slices lie where another one lies and were left out.",) if twice else ()
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
        found = [s for s in series if s.uid.endswith(wanted) or s.instances[0].get("SeriesNumber") == wanted]
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
    thickness = first.get("SliceThickness")
    return (
        "ORIGINAL" not in first.get("ImageType").upper(),
        is_sharp(first.get("ConvolutionKernel")),
        bool(first.get("ContrastBolusAgent").strip()),
        head is None and bool(about.strip()),
        float(thickness) if thickness else 99.0,
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


def volume_of(series: Series, path: Path) -> Volume:
    """The even volume of a series, in HU; its `Volume.stack` leads back to the slices.

    Args:
        path: what the sentences of errors name, and `Volume.path`.

    Raises:
        HemsegError: slices cannot be decoded, or lie so that no volume can be made of them.
    """
    if len(series.instances) < 2:
        raise HemsegError(f"{path}: a volume needs at least two slices.")
    first = series.instances[0]
    along_row, along_column = first.orientation
    if abs(along_row @ along_column) > 1e-3 or np.abs(np.linalg.norm(first.orientation, axis=1) - 1).max() > 1e-3:
        raise HemsegError(f"{path}: ImageOrientationPatient is no pair of perpendicular unit vectors; mend it.")
    normal = np.cross(along_row, along_column)
    mm_y, mm_x = (float(v) for v in first.header.PixelSpacing)
    positions = np.stack([i.position for i in series.instances])
    depth = positions @ normal
    gaps = np.diff(depth)
    step = float(np.median(gaps))
    if not np.isfinite(positions).all() or min(step, mm_x, mm_y) <= 0:
        raise HemsegError(f"{path}: the positions or the pixel size of its slices make no sense; mend the headers.")
    said = list(series.warnings) + _gap_warnings(gaps, step, depth)
    voxels = len(positions) * int(first.header.Rows) * int(first.header.Columns)
    check_memory(path, voxels, np.dtype(np.float32).itemsize)
    hu = np.stack([_pixels(i) for i in series.instances])
    rows, columns = hu.shape[1:]

    moved = positions - positions[0]
    shift = np.stack([moved @ along_column / mm_y, moved @ along_row / mm_x], axis=1)
    corner = np.round(shift - shift.min(axis=0)).astype(int)  # whole pixels: row, column
    if (drift := np.abs(shift - shift.mean(axis=0)).max()) > max(hu.shape[1:]):
        raise HemsegError(f"{path}: its slices are shifted by up to {drift:.0f} pixels; they do not form one volume.")
    even = bool(np.abs(gaps - step).max() <= EVEN * step)
    if corner.any():
        lean = np.polyfit(depth, moved @ along_column, 1)[0]
        tilt = abs(np.degrees(np.arctan(lean)))
        said.append(f"The gantry was tilted by {tilt:.1f} degrees; slices were shifted back.")
        hu = _shifted(hu, corner)
    depths = depth
    if not even:
        said.append(f"Gaps between slices go from {gaps.min():.1f} to {gaps.max():.1f} mm; made even, {step:.2f} mm.")
        depths = depth[0] + step * np.arange(int(np.floor((depth[-1] - depth[0]) / step + 0.5)) + 1)
        hu = _interpolated(hu, depth, np.minimum(depths, depth[-1]))
    at = positions[0]
    if corner.any():
        low = shift.min(axis=0)
        at = at + along_column * (low[0] * mm_y) + along_row * (low[1] * mm_x)
    return Volume(
        hu=hu,
        spacing=(mm_x, mm_y, step),
        origin=tuple(float(v) for v in at),  # type: ignore[arg-type]
        direction=tuple(float(v) for v in np.stack([along_row, along_column, normal], axis=1).ravel()),
        path=path,
        warnings=tuple(said),
        stack=Stack(series, np.abs(depth[:, None] - depths).argmin(axis=1), corner, (rows, columns)),
    )


def _gap_warnings(gaps: np.ndarray, step: float, depth: np.ndarray) -> list[str]:
    """Sentences about slices that nearly coincide or are missing; positions in mm along the normal."""
    said = []
    around = ndimage.median_filter(gaps, size=5, mode="nearest")  # the plan may change on the way, from 4 to 7 mm, say
    odd = ((gaps < COINCIDENT * step, "nearly coincide"), (gaps > MISSING * around, "have others missing between them"))
    for near, what in odd:
        if near.any():
            places = ", ".join(f"{depth[k]:.1f} and {depth[k + 1]:.1f} mm" for k in np.flatnonzero(near)[:3])
            more = f" and {near.sum() - 3} more pairs" if near.sum() > 3 else ""
            said.append(f"Slices at {places}{more} {what}.")
    return said


def _pixels(instance: Instance) -> np.ndarray:
    """A slice in HU, float32 (row, column); padding becomes air."""
    dataset = instance.source.read()
    try:
        stored = dataset.pixel_array
    except (NotImplementedError, RuntimeError, ImportError) as error:
        name = getattr(dataset.file_meta.TransferSyntaxUID, "name", "unknown")
        raise HemsegError(
            f"{instance.source}: its pixels ({name}) cannot be decoded; `pip install 'hemseg[dicom]'` brings the "
            f"decoders ({first_line(error, 80)})."
        ) from None
    except Exception as error:  # cut short, or not what the header says
        raise HemsegError(f"{instance.source}: its pixels cannot be decoded ({first_line(error)}).") from None
    shape = int(instance.header.Rows), int(instance.header.Columns)
    if stored.shape != shape:
        raise HemsegError(f"{instance.source}: holds pixels of shape {stored.shape} instead of {shape}.")
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        raise HemsegError(f"{instance.source}: has no rescale slope and intercept; its pixels are not HU.")
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        limit = dataset.get("PixelPaddingRangeLimit", padding)
        low, high = sorted((int(padding), int(limit)))
        hu[(stored >= low) & (stored <= high)] = PADDING_HU
    return np.maximum(hu, PADDING_HU, out=hu)  # outside the field of view some scanners store -2000 and less


def _shifted(hu: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Slices (slice, row, column) on one canvas, each with its first pixel at its corner; air around them."""
    rows, columns = hu.shape[1:]
    canvas = np.full((len(hu), rows + corner[:, 0].max(), columns + corner[:, 1].max()), PADDING_HU, np.float32)
    for plane, slice_, (y, x) in zip(canvas, hu, corner):
        plane[y : y + rows, x : x + columns] = slice_
    return canvas


def _interpolated(hu: np.ndarray, depth: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Slices at the wanted depths, linearly between their neighbours."""
    above = np.clip(np.searchsorted(depth, wanted), 1, len(depth) - 1)
    share = ((wanted - depth[above - 1]) / (depth[above] - depth[above - 1])).astype(np.float32)
    return hu[above - 1] * (1 - share)[:, None, None] + hu[above] * share[:, None, None]


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
    volume = volume_of(series, path)
    return replace(volume, chosen=rule)


def sources_of(path: Path) -> list[Source]:
    """The DICOM files of a folder (with its subfolders), of a zip archive, or the file itself."""
    if path.is_dir():
        from hemseg.cohort import walk

        return [Source(p) for p in walk(path) if is_dicom(p)]
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
