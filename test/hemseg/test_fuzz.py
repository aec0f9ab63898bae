"""A small part of what `make soak` does, and what it has found, one test each."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from stress.fuzz import REFUSED, corpus, fuzz

from hemseg.checks import require_head_ct
from hemseg.errors import HemsegError
from hemseg.io.image_header import CHUNK
from hemseg.io.integrity import metaimage_bytes
from hemseg.scan import read


def test_broken_files_are_read_or_refused() -> None:
    outcomes, findings = fuzz(1500, seed=1_000_000, workers=1)
    assert not findings
    assert outcomes["read"] > 100
    assert outcomes["refused"] > 500


def test_what_is_broken_was_whole(tmp_path: Path) -> None:
    """Were the files refused as they are, breaking them would show nothing."""
    for path in corpus(tmp_path):
        if path.name in REFUSED:
            with pytest.raises(HemsegError):
                read(path)
        else:
            require_head_ct(read(path))


@pytest.mark.parametrize("number", ["-1", "0", "1e38", "4294967296", "99999999999999999999", ""])
def test_dimensions_over_which_itk_crashes(tmp_path: Path, number: str) -> None:
    path = tmp_path / "scan.mha"
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkInt16), str(path))
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", f"NDims = {number}".encode()))
    with pytest.raises(HemsegError, match=r"scan\.mha: cannot be read"):
        read(path)


def test_no_voxels(tmp_path: Path) -> None:
    path = tmp_path / "scan.mha"
    sitk.WriteImage(sitk.Image([5, 6, 7], sitk.sitkInt16), str(path))
    path.write_bytes(path.read_bytes().replace(b"DimSize = 5 6 7", b"DimSize = 5 6 0"))
    with pytest.raises(HemsegError, match=r"scan\.mha"):
        read(path)


def test_a_damaged_member_of_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.dcm", np.random.default_rng(0).bytes(4000))
    content = bytearray(path.read_bytes())
    content[40:60] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(HemsegError, match="cannot be read as a zip archive"):
        read(path)


def test_a_bomb_is_counted_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zlib

    path = tmp_path / "bomb.mha"
    header = b"ObjectType = Image\nNDims = 3\nCompressedData = True\nDimSize = 5 6 7\nElementDataFile = LOCAL\n"
    path.write_bytes(header + zlib.compress(bytes(64 << 20), 9))
    pieces: list[int] = []
    make = zlib.decompressobj

    class Counting:
        def __init__(self) -> None:
            self.inflate = make()

        def decompress(self, data: bytes, most: int) -> bytes:
            pieces.append(len(out := self.inflate.decompress(data, most)))
            return out

        @property
        def unconsumed_tail(self) -> bytes:
            return self.inflate.unconsumed_tail

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    assert metaimage_bytes(path) == 64 << 20
    assert max(pieces) <= CHUNK


def test_a_member_without_a_name(tmp_path: Path) -> None:
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"not DICOM")
    content = bytearray(path.read_bytes())
    lengths = content.index(b"PK\x01\x02") + 28  # of the name and of what follows it, in the archive's directory
    content[lengths : lengths + 4] = b"\x00\x00\x01\x00"
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [""]
    with pytest.raises(HemsegError, match=r"study\.zip"):
        read(path)
