"""The mark that every output carries: that hemseg wrote it, from which scan, and, in a mask, which voxels.

By it a run knows what it may replace, wherever the file lies and whatever became of the run that wrote it. A mask that
was edited since, or one that took over our header, does not count as ours: its voxels are not those of the mark.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hemseg import __version__

if TYPE_CHECKING:
    import numpy as np

_MARK = re.compile(rb"hemseg [0-9][0-9A-Za-z.+-]{0,15} scan ([0-9a-f]{16}|-)(?: voxels ([0-9a-f]{16}))?")
_HEAD_BYTES = 1 << 12  # of a picture, a page, a report or an image's header
_DICOM_BYTES = 1 << 26


@dataclass(frozen=True)
class Mark:
    """What a mark says.

    Attributes:
        scan: the first 16 digits of the scan's content hash; ``-`` where there is no file, or not one alone.
        voxels: of a mask, an image of kinds or a probability image, `voxel_hash`.
    """

    scan: str
    voxels: str = ""


def mark(content: str = "", voxels: str = "") -> str:
    """The text of a mark, at most 80 characters.

    Args:
        content: of the scan, `hemseg.io.fingerprint.Fingerprint.content`.
    """
    return f"hemseg {__version__} scan {content[:16] or '-'}{f' voxels {voxels}' if voxels else ''}"


def voxel_hash(voxels: np.ndarray) -> str:
    """Of a mask (z, y, x) of 0 and 1, or of the codes of kinds, uint8, or of a probability image, float32."""
    import numpy as np

    if voxels.dtype == np.uint8:
        content = np.packbits(voxels) if voxels.max(initial=0) <= 1 else np.ascontiguousarray(voxels)
    else:
        content = np.ascontiguousarray(voxels, "<f4")
    return hashlib.sha256(repr(voxels.size).encode() + content.tobytes()).hexdigest()[:16]


def read_mark(path: Path) -> Mark | None:
    """The mark of a file; None if it has none, or is an image that was changed since hemseg wrote it."""
    name = path.name.lower()
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        with gzip.open(path) if name.endswith(".gz") else path.open("rb") as file:
            found = _MARK.search(file.read(_DICOM_BYTES if name.endswith(".dcm") else _HEAD_BYTES))
    except (OSError, EOFError, zlib.error):
        return None
    if not found:
        return None
    made = Mark(found[1].decode(), (found[2] or b"").decode())
    return made if not made.voxels or _holds(path, made.voxels) else None


def _holds(path: Path, voxels: str) -> bool:
    """Whether an image's voxels are those of a mark."""
    import numpy as np
    import SimpleITK as sitk

    from hemseg.errors import HemsegError
    from hemseg.io.formats import suffix
    from hemseg.io.images import read_image

    try:  # with all checks where it is an image: ITK alone ends the process over some names and headers
        stored = read_image(path).hu if suffix(path) else sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except (HemsegError, RuntimeError, ValueError, TypeError):
        return False
    whole = stored.min() >= 0 and stored.max() <= 255 and np.array_equal(codes := stored.astype(np.uint8), stored)
    if whole and voxel_hash(codes) == voxels:
        return True
    return voxel_hash(np.asarray(stored, np.float32)) == voxels  # a probability image; it may be 0 everywhere


def marked_png(png: bytes, text: str) -> bytes:
    """A PNG with a comment, the first of its chunks after the header."""
    chunk = b"tEXtComment\0" + text.encode("latin-1")
    size, check = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    return png[:33] + size + chunk + check + png[33:]  # signature: 8 bytes, IHDR: 25


def marked_jpeg(jpeg: bytes, text: str) -> bytes:
    """A JPEG with a comment."""
    comment = text.encode("latin-1")
    return jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + jpeg[2:]
