"""What the headers of NIfTI, MetaImage and NRRD say, and do not say, where ITK would assume something in silence.

ITK takes 1 mm for a spacing that is missing or 0, the patient's left for the right where no orientation is given, one
of two orientations that disagree, and it does not apply every slope. A scan whose voxels have no size is refused here;
one whose orientation is not sure is read, with a warning, and without sides.
"""

from __future__ import annotations

import gzip
import logging
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_SHEAR = 0.01  # cosine between axes, up to which they count as perpendicular
MIN_AXIS_COSINE = 0.05  # least cosine between an axis and the direction that a letter gives it
SPACING_TOLERANCE = 0.01  # relative difference of two spacings
POSITION_TOLERANCE_MM, DIRECTION_TOLERANCE = 1.0, 0.01  # between qform and sform; less is rounding
MIN_OFFSET = 352  # of the voxels in a NIfTI
MAX_OFFSET = 1 << 31  # beyond it ITK's number is another one
HEADER_BYTES = 1 << 20  # of text, at most
CHUNK = 1 << 22
TILTED = "are not at right angles: probably a tilted gantry; give the DICOM series, whose slices can be shifted back"
_UNKNOWN_ORIENTATION = "The file does not say how the patient lies in it ({}): the side of a lesion is unknown."
_ANATOMICAL = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")
MILLIMETRES = ("", "?", "???", "mm", "millimeter", "millimeters", "millimetre", "millimetres")
_CODES = ("RL", "AP", "IS")  # where the axes of LPS come from: increasing, decreasing
_FLIP = np.diag([-1.0, -1.0, 1.0])  # NIfTI's RAS to LPS


class HeaderError(ValueError):
    """What a header says, or does not say, makes a scan useless; ``str(error)`` goes on after "its header"."""


@dataclass(frozen=True)
class Orientation:
    """How sure a header is of the patient's orientation.

    Attributes:
        known: whether it says, once, which side is which.
        warnings: what it does not say, or says twice differently, in sentences.
        direction: row-major 3x3 cosines (LPS) to take in place of what ITK takes, if any.
    """

    known: bool = True
    warnings: tuple[str, ...] = ()
    direction: tuple[float, ...] | None = None


def nifti_orientation(path: Path) -> Orientation:
    """Look at a NIfTI's header before ITK does.

    Raises:
        HeaderError: it gives no spacing, two that disagree, axes that lean, or a slope that ITK would not apply.
        OSError, EOFError, zlib.error: the file is damaged.
    """
    import nibabel  # takes a while, and only NIfTI needs it

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what matters is looked at here
    opened: Any = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rb") as file:
        block = file.read(348)
    if len(block) < 348:
        raise EOFError(f"it holds {len(block)} bytes, and a header has 348")
    if 540 in struct.unpack("<i", block[:4]) + struct.unpack(">i", block[:4]):
        raise HeaderError("is of NIfTI-2, which is not read; convert it to NIfTI-1 (nibabel, nifti_tool)")
    header: Any = nibabel.Nifti1Header(block, check=False)  # type: ignore[no-untyped-call]
    sizes = np.abs(header["pixdim"][1:4].astype(float))
    if not np.isfinite(sizes).all() or (sizes == 0).any():
        raise HeaderError("does not give the spacing of its voxels (pixdim is 0 or no number); fix it")
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if (slope == 0 or not np.isfinite(slope)) and np.isfinite(intercept) and intercept != 0:
        raise HeaderError("has a slope of 0 and an intercept (scl_slope, scl_inter): are voxels scaled or not? Fix it")
    if np.isfinite(slope) and slope != 0 and not np.isfinite(intercept):
        raise HeaderError("has a slope and an intercept that are not numbers (scl_slope, scl_inter); fix it")
    if not MIN_OFFSET <= float(header["vox_offset"]) < MAX_OFFSET:  # not for NaN either
        raise HeaderError(
            f"does not say where its voxels begin (vox_offset is below {MIN_OFFSET} or no number); fix it"
        )
    codes = int(header["qform_code"]), int(header["sform_code"])
    if codes[0] <= 0 and codes[1] <= 0:
        return Orientation(False, (_UNKNOWN_ORIENTATION.format("qform_code and sform_code are 0"),))
    try:
        qform, sform = header.get_qform() if codes[0] > 0 else None, header.get_sform() if codes[1] > 0 else None
    except Exception:  # its quaternion is none
        raise HeaderError("has a qform that makes no sense; fix it") from None
    if sform is None:
        return Orientation()
    columns = sform[:3, :3].astype(float)
    norms = np.linalg.norm(columns, axis=0)
    if (
        not np.isfinite(sform).all()
        or (norms == 0).any()
        or np.abs(norms / sizes - 1).max() > SPACING_TOLERANCE + MAX_SHEAR**2
    ):
        if not np.isfinite(sform).all():
            raise HeaderError("has an sform that makes no sense; fix it")
        # a shear makes columns longer: the step between slices along their normal is what pixdim gives then
        if (norms > 0).all() and _shear(columns / norms) > MAX_SHEAR:
            return _orientation_without_sform(qform, sizes)
        raise HeaderError(
            f"gives voxels of {_mm(sizes)} by its pixdim and of {_mm(norms)} by its sform; fix one of them"
        )
    if _shear(columns / norms) > MAX_SHEAR:
        return _orientation_without_sform(qform, sizes)
    return Orientation() if qform is None else _compare_forms(qform, sform)


def _orientation_without_sform(qform: np.ndarray | None, sizes: np.ndarray) -> Orientation:
    """Where the axes of the sform lean: the qform's are taken if there is one."""
    if qform is None:
        raise HeaderError(f"has axes in its sform that {TILTED}")
    cosines = _FLIP @ qform[:3, :3] / sizes
    warning = f"The sform and the qform disagree, and the axes of the sform {TILTED}; the qform was taken."
    return Orientation(True, (warning,), tuple(float(v) for v in cosines.ravel()))


def _compare_forms(qform: np.ndarray, sform: np.ndarray) -> Orientation:
    """What the two say of the patient; where they disagree, the sform counts, with a warning."""
    q, s = (form[:3, :3] / np.linalg.norm(form[:3, :3], axis=0) for form in (qform, sform))
    if np.abs(q - s).max() > DIRECTION_TOLERANCE:
        same_side = _axes(q) == _axes(s)
        side = "" if same_side else "; the side of a lesion is unknown"
        warning = f"The qform and the sform turn the patient differently; the sform was taken{side}."
        return Orientation(same_side, (warning,))
    if np.abs(qform[:3, 3] - sform[:3, 3]).max() > POSITION_TOLERANCE_MM:
        return Orientation(True, ("The qform and the sform place the scan differently; the sform was taken.",))
    return Orientation()


def _axes(cosines: np.ndarray) -> str:
    """The patient's directions that the image's axes come from, in MetaImage's letters; cosines are LPS."""
    nearest = [int(np.argmax(np.abs(column))) for column in cosines.T]
    return "".join(_CODES[patient][int(cosines[patient, image] < 0)] for image, patient in enumerate(nearest))


def _follow(cosines: np.ndarray, letters: str) -> bool:
    """Whether axes run from where letters say, as nearly as oblique ones can."""
    for column, letter in zip(cosines.T, letters, strict=True):
        patient = next(i for i, pair in enumerate(_CODES) if letter in pair)
        if column[patient] * (1 if _CODES[patient][0] == letter else -1) < MIN_AXIS_COSINE:
            return False
    return True


def _shear(cosines: np.ndarray) -> float:
    return float(np.abs(cosines.T @ cosines - np.eye(3)).max())


def _mm(sizes: np.ndarray) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"


def meta_header(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a MetaImage's header, and where it ends.

    Raises:
        OSError, ValueError: it cannot be read, or is not complete.
    """
    header: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in header:
            line = file.readline(1 << 16)
            if b"=" not in line or file.tell() > HEADER_BYTES:
                raise ValueError("its header is incomplete")
            key, value = (part.strip() for part in line.decode(errors="replace").split("=", 1))
            if header.get(key, value) != value and key != "Comment":
                raise ValueError("a field of its header is there twice, with two values")
            header[key] = value
        return header, file.tell()


def require_dimensions(header: dict[str, str]) -> None:
    """Raise ValueError for a MetaImage's number of dimensions that is none: ITK crashes beyond its integers."""
    dimensions = header.get("NDims", "")
    if not re.fullmatch("[1-9]", dimensions):
        raise ValueError(f"its header says NDims = {dimensions[:40]}")


def is_true(value: str) -> bool:
    """Whether ITK takes the value of a MetaImage's field for true: by its first letter."""
    return value[:1] in ("T", "t", "1")


def metaimage_orientation(path: Path) -> Orientation:
    """As `nifti_orientation`, of a MetaImage."""
    header, _ = meta_header(path)
    sizes = _numbers(header.get("ElementSpacing") or header.get("ElementSize") or "")
    if (len(sizes) < 3 or not np.isfinite(sizes).all() or 0 in sizes) and header.get("NDims", "3") == "3":
        raise HeaderError("does not give the spacing of its voxels (ElementSpacing is missing, or 0); add it")
    scaled = _numbers(header.get("ElementToIntensityFunctionSlope", "1"))
    scaled += _numbers(header.get("ElementToIntensityFunctionOffset", "0"))
    if scaled != [1, 0]:
        raise HeaderError("has a slope or an offset (ElementToIntensityFunction) that would not be applied; store HU")
    if header.get("DistanceUnits", "mm") not in ("mm", "?", ""):
        raise HeaderError(
            "gives its spacing in another unit than mm (DistanceUnits), which ITK ignores; convert it to mm"
        )
    if not is_true(header.get("BinaryData", "True")):
        raise HeaderError("says that its voxels are text (BinaryData); store them as binary")
    local = header["ElementDataFile"].upper() == "LOCAL"
    if local and header.get("HeaderSize", "0") != "0":
        raise HeaderError("has a HeaderSize, but its voxels follow it; remove one of them")
    if is_true(header.get("CompressedData", "")) and local:
        size, rest = header.get("CompressedDataSize", ""), path.stat().st_size - meta_header(path)[1]
        if not size.isdecimal():
            raise HeaderError("lacks CompressedDataSize, without which ITK misreads it; save it again")
        if not 0 < int(size) <= rest:
            raise EOFError(f"it holds {rest} of {size[:20]} bytes")
    given = next((header[k] for k in ("TransformMatrix", "Orientation", "Rotation") if header.get(k)), "")
    letters = header.get("AnatomicalOrientation", "").upper()
    letters = letters if len(letters) == 3 and set(letters) <= set("RLAPIS") else ""
    if not given and letters != "RAI":
        return Orientation(False, (_UNKNOWN_ORIENTATION.format("TransformMatrix is missing"),))
    matrix = _numbers(given)
    stands = len(matrix) == 9 and np.isfinite(matrix).all() and np.any(matrix)
    if letters and stands and not _follow(np.array(matrix).reshape(3, 3).T, letters):
        warning = (
            "TransformMatrix and AnatomicalOrientation disagree; the former was taken; the side of a lesion is unknown."
        )
        return Orientation(False, (warning,))
    return Orientation()


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split()]
    except ValueError:
        return []


def inflated(path: Path) -> tuple[int, int] | None:
    """Size and CRC-32 of the voxels of a compressed MetaImage; None of any other.

    ITK has a reader of its own: what it gives is compared with this.

    Raises:
        OSError, ValueError, zlib.error: the file is damaged.
    """
    header, start = meta_header(path)
    require_dimensions(header)
    if not is_true(header.get("CompressedData", "")):
        return None
    data = path if header["ElementDataFile"].upper() == "LOCAL" else path.parent / header["ElementDataFile"]
    if not data.is_file():
        return None
    inflate, size, crc = zlib.decompressobj(), 0, 0
    with data.open("rb") as file:
        file.seek(start if data == path else 0)
        while chunk := file.read(CHUNK):
            while chunk:  # a few bytes may hold gigabytes: never more than one chunk of them in memory
                voxels = inflate.decompress(chunk, CHUNK)
                size, crc = size + len(voxels), zlib.crc32(voxels, crc)
                chunk = inflate.unconsumed_tail
    return size, crc


def voxel_crc(voxels: np.ndarray, path: Path) -> int:
    """CRC-32 of voxels in the byte order that a MetaImage's header declares."""
    header, _ = meta_header(path)
    order = header.get("BinaryDataByteOrderMSB") or header.get("ElementByteOrderMSB") or ""
    stored = voxels.astype(voxels.dtype.newbyteorder(">" if is_true(order) else "<"), copy=False)
    return zlib.crc32(np.ascontiguousarray(stored).data.cast("B"))


def nrrd_header(path: Path) -> tuple[bytes, dict[str, bytes]]:
    """The first line of an NRRD's header, and the lines of its fields by their names; comments and keys are left out.

    The lines are as they stand there, but for their ends. The names are made one where ITK takes several for one: they
    are in small letters and without spaces (``Space Origin``, ``spaceorigin``).

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        magic, *lines = file.read(HEADER_BYTES).replace(b"\r\n", b"\n").split(b"\n\n")[0].split(b"\n")
    fields = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon and not line.startswith(b"#") and not value.startswith(b"="):
            fields[name.decode(errors="replace").lower().replace(" ", "")] = line
    return magic, fields


def nrrd_orientation(path: Path) -> Orientation:
    """As `nifti_orientation`, of an NRRD."""
    _, lines = nrrd_header(path)
    fields = {name: line.decode(errors="replace").partition(":")[2].strip() for name, line in lines.items()}
    spacings = _numbers(fields.get("spacings", ""))
    vectors = fields.get("spacedirections", "")
    volume = fields.get("dimension", "3") == "3"
    if volume and not vectors and (len(spacings) < 3 or not np.isfinite(spacings).all()):
        raise HeaderError("does not give the spacing of its voxels (neither spacings nor space directions); add it")
    if volume and ("nan" in vectors.lower() or "none" in vectors):
        raise HeaderError("does not give the spacing of its voxels (space directions without numbers); fix it")
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits", "") + fields.get("units", ""))
    if any(unit.strip().lower() not in MILLIMETRES for unit in units):
        raise HeaderError("gives its spacing in another unit than mm (units), which ITK ignores; convert it to mm")
    if fields.get("space", "").lower() not in _ANATOMICAL or not vectors:
        return Orientation(False, (_UNKNOWN_ORIENTATION.format("no anatomical space with directions"),))
    return Orientation()
