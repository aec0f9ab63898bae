"""DICOM files, in folders and in zip archives: which they are, and how they are opened."""

from __future__ import annotations

import logging
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemseg.errors import HemsegError, first_line
from hemseg.io.inflation import check_instance, check_members

if TYPE_CHECKING:
    from pydicom import Dataset

SUFFIXES = (".dcm", ".dicom", ".ima")  # a file of such a name is DICOM, or damaged
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"  # of one slice
_BEGIN = 140  # bytes that are looked at
_VRS = {
    b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"IS", b"LO", b"LT", b"OB", b"PN", b"SH", b"ST", b"TM", b"UI",
    b"UL", b"UN", b"US",
}  # fmt: skip

# Values that bend the standard are the rule, and the libraries would print them, the patient's among them, for each
# file. What matters is checked here. Filters by module hold for all threads, which `catch_warnings` does not.
warnings.filterwarnings("ignore", module=r"(pydicom|highdicom|hemseg\.(dicom|stack))")
for _name in ("pydicom", "highdicom"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
logging.getLogger("pydicom").disabled = True  # it sets its own level again when it is imported, later than this


@dataclass(frozen=True)
class Source:
    """Where an instance lies: a file, or a member of a zip archive."""

    path: Path
    member: str = ""

    @property
    def place(self) -> Path:
        """The folder that it lies in, in the archive's own terms for a member of one."""
        return self.path / Path(self.member).parent if self.member else self.path.parent

    def read(self, pixels: bool = True, fields: Sequence[str] = ()) -> Dataset:
        """Read it, or its header alone, or of that some fields.

        Raises:
            HemsegError: it is no DICOM, or would unpack to more than any CT does.
        """
        import pydicom
        from pydicom.errors import InvalidDicomError

        options: dict[str, Any] = {"stop_before_pixels": not pixels, "specific_tags": list(fields) or None}
        try:
            with BytesIO(_archive(self.path).read(self.member)) if self.member else self.path.open("rb") as file:
                check_instance(file, self)
                dataset = _dataset(file, options)
        except HemsegError:
            raise
        except InvalidDicomError:
            raise HemsegError(f"{self}: cannot be read as DICOM (it does not begin as DICOM does).") from None
        except OSError as error:
            raise HemsegError(f"{self}: cannot be read ({error.strerror or 'damaged'}).") from None
        except Exception as error:  # pydicom's own are many, and they quote what the header says
            kind = type(error).__name__
            raise HemsegError(f"{self}: cannot be read as DICOM (damaged or cut short, {kind}).") from None
        meta: Any = dataset.file_meta
        if "TransferSyntaxUID" not in meta:  # pixels are not decoded without; it is that of the header
            implicit, little = dataset.original_encoding
            uid = pydicom.uid
            explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
            meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
        return dataset if fields else _completed(dataset)

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


def _completed(dataset: Dataset) -> Dataset:
    """What a classic CT slice leaves out though it may only be empty, and what is empty though it may only be absent:
    other libraries ask for it.
    """
    if dataset.get("SOPClassUID") == CT_IMAGE and "SliceThickness" not in dataset:
        dataset.SliceThickness = None
    if "SpecificCharacterSet" in dataset and not dataset.SpecificCharacterSet:
        del dataset.SpecificCharacterSet
    return dataset


def _dataset(file: Any, options: dict[str, Any]) -> Dataset:
    import pydicom

    bare = _without_preamble(file.read(_BEGIN))
    file.seek(0)
    return pydicom.dcmread(file, force=bare, **options)


def _archive(path: Path) -> zipfile.ZipFile:
    """A zip archive, opened once for all of its members: its directory may be long."""
    state = path.stat()
    return _opened(path, (state.st_ino, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=4)
def _opened(path: Path, state: tuple[int, ...]) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, with or without their preamble, or is called one.

    What has a name that ends in ``.dcm`` counts, too: where it cannot be read, that is worth a sentence.
    """
    try:
        with path.open("rb") as file:
            return path.suffix.lower() in SUFFIXES or begins_as_dicom(file.read(_BEGIN))
    except OSError:
        return False


def begins_as_dicom(head: bytes) -> bool:
    """Whether these are the first bytes of a DICOM file (140 are enough)."""
    return head[128:132] == b"DICM" or _without_preamble(head)


def _without_preamble(head: bytes) -> bool:
    """Old archives leave preamble and ``DICM`` out: the first tag then is of group 0002 or 0008, its length small."""
    if head[128:132] == b"DICM" or len(head) < 8:
        return False
    group, element = struct.unpack("<HH", head[:4])
    if group in (0x0002, 0x0008) and element < 0x1200:
        (length,) = struct.unpack("<I", head[4:8])
        return head[4:6] in _VRS or (length <= 1024 and length % 2 == 0)
    return head[:2] == b"\x00\x08" and head[4:6] in _VRS  # big endian


def members(archive: Path) -> list[Source]:
    """The files of a zip archive that begin as DICOM files do, without hidden ones. Nothing is unpacked to disk.

    Raises:
        HemsegError: it is no zip archive, protected by a password, or far too large.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = [i for i in opened.infolist() if i.filename and not i.is_dir()]
            if any(i.flag_bits & 1 for i in infos):
                raise HemsegError(f"{archive}: is protected by a password; unpack it, and give the folder.")
            check_members(archive, infos)
            found = []
            for info in infos:
                if any(p.startswith(".") and p.strip(".") for p in Path(info.filename).parts):
                    continue  # hidden, as in a folder: a Mac puts such a file beside each slice
                with opened.open(info) as file:
                    named = Path(info.filename).suffix.lower() in SUFFIXES
                    if begins_as_dicom(file.read(_BEGIN)) or named:
                        found.append(Source(archive, info.filename))
            return found
    except NotImplementedError:
        raise HemsegError(
            f"{archive}: is compressed in a way that is not supported; unpack it, and give the folder."
        ) from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        raise HemsegError(f"{archive}: cannot be read as a zip archive ({first_line(error)}).") from None


def sources_of(path: Path) -> list[Source]:
    """The DICOM files of a folder (with its subfolders), of a zip archive, or the file itself."""
    if path.is_dir():
        from hemseg.io.folders import unreadable_dicom, walk

        files = walk(path)
        for file, reason in unreadable_dicom(files).items():  # slices would be missing
            raise HemsegError(f"{file}: {reason}")
        return [Source(p) for p in files if is_dicom(p)]
    return members(path) if path.suffix.lower() == ".zip" else [Source(path)]


def require_pydicom() -> None:
    """Raise HemsegError if pydicom is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError:
        raise HemsegError("DICOM needs pydicom; `pip install 'hemseg[dicom]'`.") from None
