"""Compressed pixels of DICOM that are damaged: a sentence, before a decoder ends the process or makes pixels up."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.series import transcode, write_series
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1

from hemseg.errors import HemsegError
from hemseg.scan import read
from hemseg.streams import caught_library_lines
from hemseg.volume import Volume

TABLE, FRAME, SCAN = b"\xff\xc4", b"\xff\xc3", b"\xff\xda"  # of a lossless JPEG
JFIF = b"\xff\xe0\x00\x10JFIF\x00%b\x01\x00\x00\x01\x00\x01\x00\x00"
HU = np.random.default_rng(0).integers(-1000, 1000, (1, 32, 30)).astype(np.float32)
Change = Callable[[bytes], bytes]


def compressed(folder: Path, syntax: str, change: Change | None = None, **header: object) -> Path:
    """A slice whose compressed pixels are changed, and its header."""
    (path,) = write_series(folder, Volume(HU, (4.0, 4.5, 5.0)))
    transcode(path, syntax)
    dataset = pydicom.dcmread(path)
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    if change:
        frame = change(frame)
        dataset.PixelData = encapsulate([frame + b"\0" * (len(frame) % 2)])
    for name, value in header.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    return path


def before(marker: bytes, more: bytes) -> Change:
    return lambda frame: frame.replace(marker, more + marker, 1)


def cut(share: float, end: bytes = b"") -> Change:
    return lambda frame: frame[: int(share * len(frame))] + end


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless])
def test_what_is_whole_is_read(tmp_path: Path, syntax: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert np.array_equal(read(compressed(tmp_path / "0", syntax)).hu, HU)
    if syntax == JPEGLosslessSV1:  # filling, a comment and an older JFIF are as they may be
        fine = before(TABLE, b"\xff\xff\xff\xfe\x00\x04ok" + JFIF % b"\x01")
        assert np.array_equal(read(compressed(tmp_path / "1", syntax, fine)).hu, HU)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "change",
    [
        before(TABLE, b"\0\0\0"),  # over each of these GDCM ended the process, or could
        before(SCAN, b"\x17"),
        before(TABLE, JFIF % b"\x02"),
        before(SCAN, b"\xff\xc3\x00\x0b\x10\x00\x20\x00\x1e\x01\x01\x11\x00"),
        before(TABLE, b"\xff\xfe\xff\xff"),
        before(TABLE, b"\xff\x17\x00\x02"),
        before(TABLE, b"\xff\xfe\x00\x01"),
        lambda frame: frame.replace(FRAME + b"\x00\x0b\x10", b"\xff\xc0\x00\x0b\x09", 1),
        lambda frame: frame[: frame.index(SCAN) + 3],
        lambda frame: bytes(2),
    ],
)
def test_segments_that_are_not_whole(tmp_path: Path, change: Change) -> None:
    path = compressed(tmp_path, JPEGLosslessSV1, change)
    with pytest.raises(
        HemsegError, match=r"001\.dcm: its pixels cannot be decoded \(the compressed pixels do not begin"
    ):
        read(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"HighBit": 70}, "BitsAllocated, BitsStored and HighBit do not fit together"),
        ({"BitsStored": 40}, "BitsAllocated, BitsStored and HighBit do not fit together"),
        ({"BitsStored": 0}, "BitsAllocated, BitsStored and HighBit do not fit together"),
        ({"BitsAllocated": 12}, "BitsAllocated, BitsStored and HighBit do not fit together"),
        ({"BitsAllocated": 32}, "not gray, of 8 to 16 bits"),
        ({"BitsStored": 1}, "not gray, of 8 to 16 bits"),
        ({"PixelRepresentation": 2}, "not gray, of 8 to 16 bits"),
        ({"SamplesPerPixel": 3}, "not gray, of 8 to 16 bits"),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "1 values of 16 bits each"),
    ],
)
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless])
def test_headers_that_contradict_the_pixels(tmp_path: Path, header: dict, said: str, syntax: str) -> None:
    path = compressed(tmp_path, syntax, **header)
    with pytest.raises(HemsegError, match=rf"001\.dcm: its pixels cannot be decoded \(.*{said}"):
        read(path)


@pytest.mark.parametrize("high", [15, 31, 70])
def test_bits_of_plain_pixels(tmp_path: Path, high: int) -> None:
    (path,) = write_series(tmp_path, Volume(HU, (4.0, 4.5, 5.0)), HighBit=high)
    if high == 15:
        assert np.array_equal(read(path).hu, HU)
    else:
        with pytest.raises(HemsegError, match="HighBit do not fit together"):
            read(path)


@pytest.mark.parametrize(
    ("syntax", "change"),
    [
        (JPEGLosslessSV1, cut(0.6, b"\xff\xd9")),
        (JPEGLosslessSV1, cut(0.6)),
        (JPEG2000Lossless, cut(0.6)),
        (JPEG2000Lossless, cut(0.9, b"\xff\xd9")),
    ],
)
def test_pixels_that_are_cut_short(
    tmp_path: Path, syntax: str, change: Change, capfd: pytest.CaptureFixture[str]
) -> None:
    """Decoders make the rest up, and say so on standard error alone."""
    path = compressed(tmp_path, syntax, change)
    with pytest.raises(HemsegError, match=r"001\.dcm: its pixels .*cannot be decoded.*(damaged|cut short|premature)"):
        read(path)
    assert capfd.readouterr().err == ""


def test_only_lines_of_libraries_are_kept_back(capfd: pytest.CaptureFixture[str]) -> None:
    with caught_library_lines(re.compile("Corrupt JPEG")) as said:
        os.write(2, b"Corrupt JPEG data: 1\nwarning: ours\nCorrupt JPEG data: 2\nno end")
    assert said == ["Corrupt JPEG data: 1", "Corrupt JPEG data: 2"]
    assert capfd.readouterr().err == "warning: ours\nno end"
