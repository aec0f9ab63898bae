"""What compressed pixels say of themselves, before a decoder believes it: decoders reserve the memory that a codestream
asks for, gigabytes for a few damaged bytes, and some end the process where they cannot have it.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from hemseg.streams import caught_library_lines

if TYPE_CHECKING:
    import numpy as np
    from pydicom import Dataset

JPEG = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (5, 6, 7, 8))  # how they begin, JPEG-LS among them
JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 92, 93, 201, 202, 203))
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # of all kinds of JPEG; F7 is JPEG-LS
_START_OF_SCAN, _END = 0xDA, b"\xff\xd9"
# what may stand between: tables, restart interval, application data, comment; F8 is JPEG-LS
_SEGMENTS = {0xC4, 0xCC, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xF8, 0xFE}
_LOSSY, _LOSSY_BITS = {*range(0xC0, 0xD0)} - {0xC3, 0xC7, 0xCB, 0xCF}, (8, 12)
_JFIF, _JFIF_VERSION = b"JFIF\0", 1
_SIZE_2000 = b"\xff\x4f\xff\x51"
MIN_BITS, MAX_BITS, MAX_TILES = 8, 16, 4096  # GDCM ends the process over fewer bits in a byte
ALLOCATED_BITS = (8, 16, 32)
GRAY = ("MONOCHROME1", "MONOCHROME2")
# how libjpeg (in GDCM) and OpenJPEG begin what they print on standard error; of the second kind, they give pixels all
# the same, made up from where the damage is. Bytes before the end (D9) are padding.
_DECODER_LINES = re.compile(
    "A marker ID|Bogus|Cannot|Caution|Corrupt JPEG|Didn't expect|Empty|Error |Fail|Huffman table|Improper|Inconsistent|"
    "Input|Insufficient|Invalid|Marker handler|Missing|Must downscale|Not |Premature end|Quantization|Requested|Sorry|"
    "Stream|Suspension|Tile|Too |Unexpected|Unknown|Unsupported|Warning|Wrong|read: |required"
)
_DAMAGE_LINES = re.compile(
    r"Corrupt JPEG data: (?!\d+ extraneous bytes before marker 0xd9)|Premature end|Fail(ed)? to (decode|read)|"
    "Stream too|Tile part length|read: segment"
)


def check_bits(dataset: Dataset) -> None:
    """Raise if there are no pixels, or the header's words about their bits contradict each other.

    Raises:
        ValueError: they do.
        Exception: of pydicom's many kinds: a value cannot be read.
    """
    if not any(dataset.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise ValueError("it holds none")
    if "PixelData" not in dataset:
        return
    allocated, stored = int(dataset.get("BitsAllocated") or 0), int(dataset.get("BitsStored") or 0)
    high = int(dataset.get("HighBit") or 0)
    if allocated not in ALLOCATED_BITS or not 1 <= stored <= allocated or not 0 <= high < allocated:
        raise ValueError("BitsAllocated, BitsStored and HighBit do not fit together")


def decode_pixels(dataset: Dataset) -> np.ndarray:
    """The stored values, (row, column) or (frame, row, column); decoders print nothing.

    Raises:
        ValueError: a decoder says that compressed pixels are damaged or cut short.
        Exception: of pydicom's many kinds: they cannot be decoded.
    """
    if not str(dataset.file_meta.TransferSyntaxUID).startswith((*JPEG, *JPEG_2000)):
        return dataset.pixel_array
    with caught_library_lines(_DECODER_LINES) as decoder_lines:
        stored = dataset.pixel_array
    if damage := next((line for line in decoder_lines if _DAMAGE_LINES.match(line)), ""):
        raise ValueError(damage)
    return stored


def check_codestreams(dataset: Dataset) -> None:
    """Raise if compressed pixels are not of the header's size, one value of 8 to 16 bits each, or not whole up to
    where the voxels begin: GDCM ends the process over what it does not expect there.

    Raises:
        ValueError: they are not, or do not begin as their transfer syntax says.
        Exception: of pydicom's many kinds: the frames cannot be found.
    """
    from pydicom.encaps import generate_frames

    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if not (syntax in JPEG_2000 or syntax.startswith(JPEG)) or "PixelData" not in dataset:
        return
    gray = int(dataset.SamplesPerPixel) == 1 and dataset.PhotometricInterpretation in GRAY
    bits = int(dataset.BitsAllocated) <= MAX_BITS and int(dataset.BitsStored) >= MIN_BITS
    if not gray or not bits or int(dataset.PixelRepresentation) not in (0, 1):
        raise ValueError(f"the header says that its compressed pixels are not gray, of {MIN_BITS} to {MAX_BITS} bits")
    number = int(dataset.get("NumberOfFrames") or 1)
    shape = (int(dataset.Rows), int(dataset.Columns))
    for frame in generate_frames(dataset.PixelData, number_of_frames=number):
        found = _jpeg_2000_size(frame) if syntax in JPEG_2000 else _jpeg_frame_header(frame)
        if found is None:
            raise ValueError("the compressed pixels do not begin as they should")
        if found[:2] != shape:
            raise ValueError(
                f"the compressed pixels are {found[0]} x {found[1]}, the header says {shape[0]} x {shape[1]}"
            )
        if found[2] != 1 or not MIN_BITS <= found[3] <= int(dataset.BitsAllocated):
            raise ValueError(f"the compressed pixels have {found[2]} values of {found[3]} bits each")


def _jpeg_frame_header(stream: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, values per pixel and bits per value by the frame header; None if there is not one, or anything
    but whole segments before the voxels begin.

    Raises:
        ValueError: the end is missing; decoders would make up what is.
    """
    at, found = 2, None
    if stream[:2] != b"\xff\xd8":
        return None
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        (length,) = struct.unpack_from(">H", stream, at + 2)
        inside = stream[at + 4 : at + 2 + length]
        if length < 2 or len(inside) < length - 2:
            return None
        if marker == _START_OF_SCAN:
            if stream.rfind(_END) < at:  # among voxels there is no such marker
                raise ValueError("the compressed pixels are cut short")
            return found
        if marker in _START_OF_FRAME:
            if found or len(inside) < 6:
                return None
            bits, rows, columns, values = struct.unpack_from(">BHHB", inside)
            if marker in _LOSSY and bits not in _LOSSY_BITS:
                return None
            found = rows, columns, values, bits
        elif marker not in _SEGMENTS or (inside[:5] == _JFIF and inside[5:6] != bytes([_JFIF_VERSION])):
            return None
        at += 2 + length
    return None


def _jpeg_2000_size(stream: bytes) -> tuple[int, int, int, int] | None:
    """As `_jpeg_frame_header`, by the size segment; None too where the tables of many tiles would fill the memory."""
    at = stream.find(_SIZE_2000, 0, 4096)  # at once, or after the boxes of a JP2 file
    if at < 0 or len(stream) < at + 45:
        return None
    x, y, x0, y0, tile_x, tile_y, tile_x0, tile_y0, values, bits = struct.unpack_from(">8IHB", stream, at + 8)
    if min(tile_x, tile_y) == 0 or -(-(x - tile_x0) // tile_x) * -(-(y - tile_y0) // tile_y) > MAX_TILES:
        return None
    return y - y0, x - x0, values, (bits & 0x7F) + 1
