"""What compressed pixels say of themselves, before a decoder believes it: decoders reserve the memory that a codestream
asks for, gigabytes for a few damaged bytes, and some end the process where they cannot have it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom import Dataset

JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (5, 6, 7, 8))  # how they begin, JPEG-LS among them
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 92, 93, 201, 202, 203))
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # of all kinds of JPEG; F7 is JPEG-LS
_SIZE_2000 = b"\xff\x4f\xff\x51"
MOST_BITS, MOST_TILES = 16, 4096


def check_codestreams(dataset: Dataset) -> None:
    """Raise if compressed pixels are not of the header's size, one value of at most 16 bits each.

    Raises:
        ValueError: they are not, or do not begin as their transfer syntax says.
        Exception: of pydicom's many kinds: the frames cannot be found.
    """
    from pydicom.encaps import generate_frames

    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if not (syntax in JPEG_2000 or syntax.startswith(JPEG)) or "PixelData" not in dataset:
        return
    number = int(dataset.get("NumberOfFrames") or 1)
    shape = (int(dataset.Rows), int(dataset.Columns))
    for frame in generate_frames(dataset.PixelData, number_of_frames=number):
        found = _of_jpeg_2000(frame) if syntax in JPEG_2000 else _of_jpeg(frame)
        if found is None:
            raise ValueError("the compressed pixels do not begin as they should")
        if found[:2] != shape:
            raise ValueError(
                f"the compressed pixels are {found[0]} x {found[1]}, the header says {shape[0]} x {shape[1]}"
            )
        if found[2] != 1 or not 1 <= found[3] <= MOST_BITS:
            raise ValueError(f"the compressed pixels have {found[2]} values of {found[3]} bits each")


def _of_jpeg(stream: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, values per pixel and bits per value by the first frame header; None if there is none."""
    at = 2
    if stream[:2] != b"\xff\xd8":
        return None
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        (length,) = struct.unpack_from(">H", stream, at + 2)
        if marker in _START_OF_FRAME:
            bits, rows, columns, values = struct.unpack_from(">BHHB", stream, at + 4)
            return rows, columns, values, bits
        if marker == 0xDA or length < 2:  # the voxels begin
            return None
        at += 2 + length
    return None


def _of_jpeg_2000(stream: bytes) -> tuple[int, int, int, int] | None:
    """As `_of_jpeg`, by the size segment; None too where there are so many tiles that their tables fill the memory."""
    at = stream.find(_SIZE_2000, 0, 4096)  # at once, or after the boxes of a JP2 file
    if at < 0 or len(stream) < at + 45:
        return None
    x, y, x0, y0, tile_x, tile_y, tile_x0, tile_y0, values, bits = struct.unpack_from(">8IHB", stream, at + 8)
    if min(tile_x, tile_y) == 0 or -(-(x - tile_x0) // tile_x) * -(-(y - tile_y0) // tile_y) > MOST_TILES:
        return None
    return y - y0, x - x0, values, (bits & 0x7F) + 1
