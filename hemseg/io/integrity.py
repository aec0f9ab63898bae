"""Are the voxels that a header declares really in the file, and are they numbers? ITK takes some cut-off files without
a word and fills them with zeros, as it does with the NaN of NIfTI; others it refuses with messages that say nothing.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np

from hemseg.errors import first_line
from hemseg.io.image_header import CHUNK, HEADER_BYTES, inflated, meta_header, require_dimensions

OFFSET_BYTES = 108  # of a NIfTI's header, before the number that says where its voxels begin


def nifti_bytes(path: Path) -> int:
    """How many bytes of voxels a NIfTI holds, after decompression.

    Raises:
        OSError, EOFError, zlib.error, ValueError: the file is damaged.
    """
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            return path.stat().st_size - _begin(file.read(348))
    with gzip.open(path) as file:
        head = file.read(348)
        return len(head) + sum(len(chunk) for chunk in iter(lambda: file.read(CHUNK), b"")) - _begin(head)


def _begin(head: bytes) -> int:
    """Where a NIfTI's voxels begin, by its header, in its byte order."""
    if len(head) < 348:
        raise EOFError(f"it holds {len(head)} bytes, and a header has 348")
    order = "<" if head[:4] == struct.pack("<i", 348) else ">"
    (begin,) = struct.unpack_from(f"{order}f", head, OFFSET_BYTES)
    return int(begin)


def metaimage_bytes(path: Path) -> int | None:
    """As `nifti_bytes`, of a MetaImage: its voxels follow the header (``LOCAL``), or have a file of their own.

    Returns:
        None for a list or a pattern of files, where ITK itself looks.
    """
    header, start = meta_header(path)
    require_dimensions(header)
    where = header["ElementDataFile"]
    data = path if where.upper() == "LOCAL" else path.parent / where
    if where.upper() == "LIST" or "%" in where:
        return None
    if not data.is_file():
        raise ValueError(f"its voxels should be in {data.name}, which is missing")
    if found := inflated(path):
        return found[0]
    return data.stat().st_size - (start if data == path else max(0, int(header.get("HeaderSize", 0))))


def voxel_files(path: Path) -> list[Path]:
    """The files that hold the voxels of a header, but for the header's own; empty for other kinds of file.

    They must lie beside or below it, links followed. Every place in it that could name one counts, however it is
    spelled: libraries differ in what they take for a line and for a key.

    Raises:
        OSError, ValueError: they do not, the header is longer than any real one, or the file cannot be read.
    """
    kind = "nrrd" if path.name.lower().endswith(".nrrd") else "meta"
    if kind == "meta" and path.suffix.lower() not in (".mha", ".mhd"):
        return []
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
        more = bool(file.read(1))
    if more and (path.suffix.lower() == ".mhd" or not _HEADER_END[kind].search(header)):
        raise ValueError(f"its header is longer than {HEADER_BYTES >> 20} MiB")
    names: list[str] = []
    expected: list[str] = []
    for found in _DATA_FILE[kind].finditer(header.lower()):
        value = os.fsdecode(header[found.start(1) : found.end(1)]).strip()
        if value[:4].upper() == "LIST":
            if more:
                raise ValueError(f"its list of files is longer than {HEADER_BYTES >> 20} MiB")
            listed = os.fsdecode(header[found.end() :]).split("\n")
            names += listed
            expected += listed if kind == "meta" else []  # ITK says of each on stderr that it is missing
        elif value.lower() != "local":
            names.append(value)
    files = []
    for name in dict.fromkeys(name.strip() for name in names if name.strip()):
        files += _files_inside(path.parent, name)
    _raise_for_missing(path.parent, expected)
    return [file for file in dict.fromkeys(files) if file != path]


def _raise_for_missing(folder: Path, names: list[str]) -> None:
    for name in (name.strip() for name in names):
        if name and not os.path.lexists(folder / name):
            raise ValueError(f"its voxels should be in {name[:80]}, which is missing")


def _spelled(word: str) -> bytes:
    return rb"[\0- ]*".join(re.escape(letter.encode()) for letter in word)


_DATA_FILE = {  # in lower case
    "meta": re.compile(_spelled("elementdatafile") + rb"[\0- ]*[=:]([^\n]*)"),
    "nrrd": re.compile(_spelled("datafile") + rb"[\0- ]*:([^\n]*)"),
}
_HEADER_END = {"meta": re.compile(rb"^ElementDataFile[ \t]*=[^\n]*\n", re.MULTILINE), "nrrd": re.compile(rb"\n\r?\n")}
_NUMBERED = re.compile(r"%[-+ #0-9.]*[a-zA-Z]")


def _files_inside(folder: Path, name: str) -> list[Path]:
    """The files of a name in a header, several if it is a pattern (``slice%03d.raw 1 28 1``).

    Raises:
        ValueError: it leads, or could lead, out of the folder.
    """
    spelled = name.replace("\\", "/")
    outside = ValueError(f"its voxels should be in {name[:80]}, outside of its folder")
    if PurePath(spelled).is_absolute() or PureWindowsPath(name).drive or ".." in PurePath(spelled).parts:
        raise outside
    if spelled.startswith("~") or any(ord(c) < 32 for c in name):
        raise outside
    where = [folder / name]
    if "%" in name:
        pattern = _NUMBERED.sub("*", re.sub(r"([\[\]*?])", r"[\1]", name))
        where += [p for words in (pattern, pattern.split()[0]) for p in folder.glob(words)]
    home = folder.resolve()
    if any(not Path(os.path.realpath(file)).is_relative_to(home) for file in where):  # takes links in a circle
        raise outside
    if any(file.exists() and not file.is_file() for file in where):  # a pipe would be waited for
        raise ValueError(f"its voxels should be in {name[:80]}, which is not a file")
    return [file for file in where if file.is_file()]


def nifti_is_finite(path: Path) -> bool:
    """Whether a NIfTI file of floating-point numbers holds numbers alone; in other formats ITK keeps NaN.

    Raises:
        ValueError: its header makes no sense.
    """
    import nibabel  # takes a while

    try:
        stored: Any = nibabel.load(path)  # type: ignore[attr-defined]
        voxels = stored.dataobj.get_unscaled()
    except Exception as error:  # it has many kinds of its own, and numpy's besides
        raise ValueError(first_line(error)) from None
    return voxels.dtype.kind != "f" or bool(np.isfinite(voxels).all())
