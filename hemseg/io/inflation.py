"""Compressed files that would fill the memory: how large they become is known before they are read."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import IO
from zipfile import ZipInfo

from hemseg.errors import HemsegError
from hemseg.resources import available_bytes, resident_bytes

MAX_INSTANCE_BYTES = 1 << 30  # an enhanced CT of two thousand slices
MAX_ZIP_BYTES = 4 << 30  # unpacked; beyond it an archive is no head CT
MAX_MEMBERS = 100_000
MAX_RATIO = 1032  # of deflate
CHUNK = 1 << 22
DEFLATED = "1.2.840.10008.1.2.1.99"


def check_members(archive: Path, infos: list[ZipInfo]) -> None:
    """Raise for a zip archive that is no head CT by what its members would take.

    Raises:
        HemsegError: they are too many or too large.
    """
    if len(infos) > MAX_MEMBERS:
        raise HemsegError(f"{archive}: holds {len(infos)} files, more than {MAX_MEMBERS}; unpack it yourself.")
    if sum(info.file_size for info in infos) > MAX_ZIP_BYTES:
        raise HemsegError(f"{archive}: would unpack to more than {MAX_ZIP_BYTES >> 30} GiB; unpack it yourself.")
    largest = max(infos, key=lambda info: info.file_size, default=None)
    if largest:
        _check_size(f"{archive}:{largest.filename}", largest.file_size)


def check_instance(file: IO[bytes], name: object) -> None:
    """Raise for a deflated DICOM file that would become too large. The file is at its beginning, before and after.

    Raises:
        HemsegError: it would.
        Exception: of pydicom's many kinds: its file meta information is damaged.
    """
    from pydicom.filereader import read_dataset

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size * MAX_RATIO <= MAX_INSTANCE_BYTES:
        return
    if file.read(132)[128:] != b"DICM":
        file.seek(0)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)  # type: ignore[arg-type]
    if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
        inflate, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := file.read(CHUNK):
            while chunk:
                inflated += len(inflate.decompress(chunk, CHUNK))
                chunk = inflate.unconsumed_tail
                if inflated > MAX_INSTANCE_BYTES:
                    break
            if inflated > MAX_INSTANCE_BYTES:
                break
        _check_size(name, inflated)
    file.seek(0)


def _check_size(name: object, size: int) -> None:
    room = available_bytes()
    if size > MAX_INSTANCE_BYTES:
        raise HemsegError(f"{name}: would unpack to more than {MAX_INSTANCE_BYTES >> 30} GiB: no CT does.")
    if room is not None and resident_bytes() + 2 * size > room:  # as bytes, and as pixels
        raise HemsegError(
            f"{name}: unpacks to {size / 1e9:.1f} GB, twice as much as this process can have beside what it has; "
            "give it more memory, or fewer --jobs."
        )
