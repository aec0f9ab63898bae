"""Are the voxels that a header declares really in the file, and are they numbers? ITK takes some cut-off files without
a word and fills them with zeros, as it does with the NaN of NIfTI; others it refuses with messages that say nothing.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from hemseg.errors import first_line

NIFTI_HEADER = 348  # bytes, before the voxels
CHUNK = 1 << 22
HEADER_BYTES = 1 << 20  # of text, at most


def stored_bytes(path: Path, kind: str) -> int | None:
    """How many bytes of voxels a file holds, after decompression; None where ITK itself tells (NRRD).

    Args:
        kind: the file's image suffix, one of ``hemseg.volume.SUFFIXES``.

    Raises:
        OSError, EOFError, zlib.error, ValueError: the file is damaged.
    """
    if kind == ".nii":
        return path.stat().st_size - NIFTI_HEADER
    if kind == ".nii.gz":
        with gzip.open(path) as file:
            return sum(len(chunk) for chunk in iter(lambda: file.read(CHUNK), b"")) - NIFTI_HEADER
    if kind in (".mha", ".mhd"):
        return _meta_bytes(path)
    return None


def _meta_bytes(path: Path) -> int | None:
    """MetaImage: text header, then the voxels, here (``LOCAL``) or in a file of their own; perhaps compressed."""
    header: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in header:
            line = file.readline(1 << 16)
            if b"=" not in line:
                raise ValueError("its header is incomplete")
            key, value = line.decode(errors="replace").split("=", 1)
            header[key.strip()] = value.strip()
        start = file.tell()
    dimensions = header.get("NDims", "")
    if not re.fullmatch("[1-9]", dimensions):  # ITK crashes over a number beyond its integers
        raise ValueError(f"its header says NDims = {dimensions[:40]}")
    where = header["ElementDataFile"]
    data = path if where.upper() == "LOCAL" else path.parent / where
    if where.upper() == "LIST" or "%" in where:
        return None  # one file a slice: ITK tells
    if not data.is_file():
        raise ValueError(f"its voxels should be in {data.name}, which is missing")
    start = start if data == path else max(0, int(header.get("HeaderSize", 0)))
    if header.get("CompressedData", "False").lower() != "true":
        return data.stat().st_size - start
    inflate, size = zlib.decompressobj(), 0
    with data.open("rb") as file:
        file.seek(start)
        while chunk := file.read(CHUNK):
            while chunk:  # a few bytes may hold gigabytes: never more than one piece in memory
                size += len(inflate.decompress(chunk, CHUNK))
                chunk = inflate.unconsumed_tail
    return size


def check_stays_in_folder(path: Path, kind: str) -> None:
    """A header may name the files that hold its voxels: they must lie beside or below it.

    Raises:
        OSError, ValueError: they do not, or the file cannot be read.
    """
    if kind not in (".mha", ".mhd", ".nrrd"):
        return
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES).decode(errors="replace").replace("\r", "")
    lines = (header.split("\n\n")[0] if kind == ".nrrd" else header).splitlines()
    names = []
    for number, line in enumerate(lines):
        key, _, value = line.partition(":" if kind == ".nrrd" else "=")
        if key.strip().lower().replace(" ", "") in ("datafile", "elementdatafile"):
            names = [value] + (lines[number + 1 :] if value.strip().upper().startswith("LIST") else [])
            break
    for name in names:
        where = PurePath(name.strip())
        if where.is_absolute() or ".." in where.parts:
            raise ValueError(f"its voxels should be in {name.strip()[:80]}, outside of its folder")


def all_finite(path: Path, kind: str) -> bool:
    """Whether a NIfTI file of floating-point numbers holds numbers alone; true for other kinds, where ITK keeps NaN.

    Raises:
        ValueError: its header makes no sense.
    """
    if kind not in (".nii", ".nii.gz"):
        return True
    import nibabel  # takes a while

    try:
        stored: Any = nibabel.load(path)  # type: ignore[attr-defined]
        voxels = stored.dataobj.get_unscaled()
    except Exception as error:  # it has many kinds of its own, and numpy's besides
        raise ValueError(first_line(error)) from None
    return voxels.dtype.kind != "f" or bool(np.isfinite(voxels).all())
