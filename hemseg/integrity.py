"""Are the voxels that a header declares really in the file? ITK takes some cut-off files without a word, and
fills them with zeros; others it refuses with messages that explain nothing."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

NIFTI_HEADER = 348  # bytes, before the voxels
CHUNK = 1 << 22


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
