"""Files that would fill the memory or never end, settings out of range, streams that are closed: a sentence each."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, hemseg_here, process
from helpers.series import write_series
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from hemseg import resources
from hemseg.checks import check_scan
from hemseg.dicom import source as dicom_source
from hemseg.dicom.source import Source, members
from hemseg.errors import HemsegError
from hemseg.folder import processes
from hemseg.grand_challenge.sockets import load_sockets, read_inputs
from hemseg.io import inflation
from hemseg.manifest import Manifest
from hemseg.model import Model
from hemseg.scan import read
from hemseg.volume import Volume
from training.data.phantom import Phantom


@pytest.fixture
def deflated(bleed: Phantom, tmp_path: Path) -> Path:
    """A deflated slice; its pixels are followed by 4 MiB of zeros."""
    (path, *_) = write_series(tmp_path / "study", bleed.volume)
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = inflation.DEFLATED
    dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    content = path.read_bytes()
    at = 144 + int.from_bytes(content[140:144], "little")
    plain = (
        zlib.decompress(content[at:], -zlib.MAX_WBITS)
        + b"\xfc\xff\xfc\xff"
        + b"OB\0\0"
        + (1 << 22).to_bytes(4, "little")
    )
    pack = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    path.write_bytes(content[:at] + pack.compress(plain + bytes(1 << 22)) + pack.flush())
    return path


def test_deflated_dicom_is_bounded_before_it_is_read(deflated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = deflated.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        file.write(deflated, "a.dcm")
    sources = [Source(deflated), Source(archive, "a.dcm")]
    for source in sources:
        assert source.read().Modality == "CT"
    monkeypatch.setattr(inflation, "MAX_INSTANCE_BYTES", 1 << 20)
    monkeypatch.setattr(dicom_source, "_opened", lambda path, state: zipfile.ZipFile(path))
    monkeypatch.setattr(zlib, "decompress", None)  # it must not come to that
    for source in sources:
        with pytest.raises(HemsegError, match="no CT does"):
            source.read()
        with pytest.raises(HemsegError, match="no CT does"):
            source.read(pixels=False)


@pytest.mark.parametrize(
    ("syntax", "size", "form", "offsets"),
    [
        (JPEG2000Lossless, b"\xff\x51", ">II", (6, 22)),
        (JPEGLSLossless, b"\xff\xf7", ">HH", (5,)),
        (JPEGLosslessSV1, b"\xff\xc3", ">HH", (5,)),
    ],
)
def test_codestreams_that_ask_for_gigabytes(
    tmp_path: Path, bleed: Phantom, syntax: str, size: bytes, form: str, offsets: tuple[int, ...]
) -> None:
    """The decoders of JPEG 2000 would reserve them, that of JPEG-LS would end the process."""
    scan = replace(bleed.volume, hu=bleed.volume.hu[:5])
    paths = write_series(tmp_path, scan, syntax=syntax)
    assert np.abs(read(tmp_path).hu - scan.hu).max() <= 0.5
    content = bytearray(paths[2].read_bytes())
    at = content.index(size)
    for offset in offsets:
        struct.pack_into(form, content, at + offset, 40000, 40000)
    paths[2].write_bytes(content)
    begun = resources.resident_bytes()
    with pytest.raises(
        HemsegError, match=r"003\.dcm: its pixels cannot be decoded \(the compressed pixels are 40000 x"
    ):
        read(tmp_path)
    assert resources.resident_bytes() - begun < 1 << 28


def test_members_of_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(3):
            file.writestr(f"{number}.dcm", bytes(128) + b"DICM" + bytes(1 << 20))
    assert len(members(archive)) == 3
    for name, limit, said in (
        ("MAX_INSTANCE_BYTES", 1 << 20, "no CT does"),
        ("MAX_ZIP_BYTES", 3 << 20, "would unpack to more than"),
        ("MAX_MEMBERS", 2, "holds 3 files"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(inflation, name, limit)
            with pytest.raises(HemsegError, match=said):
                members(archive)
    monkeypatch.setattr(inflation, "available_bytes", lambda: resources.resident_bytes() + (1 << 20))
    with pytest.raises(HemsegError, match="give it more memory"):
        members(archive)


def test_an_archive_is_opened_once(tmp_path: Path, bleed: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory is read anew with every opening: a thousand members would be a million."""
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in write_series(tmp_path / "study", bleed.volume):
            file.write(path, path.name)
    opened = []
    real = zipfile.ZipFile

    def counted(*arguments: Any) -> zipfile.ZipFile:
        opened.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(zipfile, "ZipFile", counted)
    assert read(archive).hu.shape == bleed.volume.hu.shape
    assert len(opened) <= 2


@pytest.mark.parametrize(
    ("spacing", "good"),
    [((0.5, 0.5, 5), True), ((5, 5, 20), True), ((0.1, 0.1, 0.1), True), ((10, 10, 5), False), ((30, 30, 5), False),
     ((0.5, 0.5, 21), False), ((0.01, 0.5, 5), False), ((0.5, 0.5, 0.05), False), ((0.5, 6, 5), False)],
)  # fmt: skip
def test_spacing_is_limited(spacing: tuple[float, float, float], good: bool, model: Model) -> None:
    hu = np.random.default_rng(0).normal(-300, 300, (4, 40, 40)).astype(np.float32)
    settings = model.manifest.preprocessing
    if good:
        check_scan(Volume(hu, spacing), settings)
    else:
        with pytest.raises(HemsegError, match="Correct the spacing"):
            check_scan(Volume(hu, spacing), settings)


def test_the_working_grid_counts(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse pixels: the grid is larger than the scan."""
    hu = np.random.default_rng(0).normal(-300, 300, (40, 200, 200)).astype(np.float32)
    taken = max(resources.PROCESS_BYTES, resources.resident_bytes())
    monkeypatch.setattr(resources, "available_bytes", lambda: taken + (200 << 20))
    check_scan(Volume(hu[:, :20, :20], (1.0, 1.0, 5.0)), model.manifest.preprocessing)
    with pytest.raises(HemsegError, match="is the header's spacing right"):
        check_scan(Volume(hu, (5.0, 5.0, 5.0)), model.manifest.preprocessing)


@pytest.mark.parametrize(
    "change",
    [
        {"patch": [0, 1, 1]}, {"patch": "big"}, {"patch": [32, 192]}, {"patch": [1.5, 2, 3]}, {"patch": [1024] * 3},
        {"threshold": "0.5"}, {"threshold": 2}, {"threshold": None}, {"threshold": True}, {"threshold": float("nan")},
        {"min_peak": -1}, {"min_lesion_ml": float("inf")}, {"max_median_hu": [1]}, {"sha256": "abc"}, {"sha256": 5},
        {"file": "../hemseg.onnx"}, {"file": "/etc/passwd"}, {"file": 7}, {"name": []}, {"provenance": "x"},
        {"preprocessing": {"in_plane_mm": 0}}, {"preprocessing": {"in_plane_mm": 1e-9}},
        {"preprocessing": {"slice_mm": -5}}, {"preprocessing": {"bilateral_diameter": 10**6}},
        {"preprocessing": {"bilateral_diameter": 2.5}}, {"preprocessing": {"hu_range": [100, -20]}},
        {"preprocessing": {"hu_range": [-20]}}, {"preprocessing": {"channels": []}}, {"preprocessing": {"channels": 3}},
        {"preprocessing": {"skull_percentile": "x"}}, {"preprocessing": 5}, {"format": -1}, {"format": True},
    ],
)  # fmt: skip
def test_manifests_out_of_range(light: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    values = json.loads((light / "manifest.json").read_text())
    inner = change.get("preprocessing", {})
    if isinstance(inner, dict):
        change = change | {"preprocessing": values["preprocessing"] | inner}
    (tmp_path / "manifest.json").write_text(json.dumps(values | change))
    with pytest.raises(HemsegError, match="manifest") as error:
        Manifest.read(tmp_path)
    assert "Traceback" not in str(error.value)


def test_deep_json_and_yaml(light: Path, tmp_path: Path) -> None:
    deep = "[" * 100_000
    for name in ("manifest.json", "inputs.json", "sockets.yaml"):
        (tmp_path / name).write_text(deep)
    with pytest.raises(HemsegError, match="cannot be read as a manifest"):
        Manifest.read(tmp_path)
    with pytest.raises(HemsegError, match="cannot be read as JSON"):
        read_inputs(tmp_path)
    with pytest.raises(HemsegError, match="cannot be read as YAML"):
        load_sockets({}, tmp_path)


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_ports_that_do_not_exist(port: int, tmp_path: Path) -> None:
    assert "give another one with --port" in process("--mode", "serve", "--port", port, check=1).stderr
    assert "mode serve never replaces" in process("--mode", "serve", "--port", port, "--overwrite", check=1).stderr


def shell(command: str, light: Path, scan: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = f"{sys.executable} -m hemseg.cli segment '{scan}' '{out}' --weights '{light}' {command}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", words], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_standard_streams_that_are_closed_or_full(scan: Path, light: Path, tmp_path: Path) -> None:
    for number, (command, code) in enumerate([(">&- 2>&- <&-", 0), ("| true", 0), (">/dev/full", 1)]):
        done = shell(command, light, scan, tmp_path / str(number))
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr
        assert read(tmp_path / str(number) / "case.nii.gz").hu.max() == 1  # and nothing was printed into it
    assert "could not be printed" in done.stderr


def test_without_shared_memory(scan: Path, tmp_path: Path, light: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(processes, "ProcessPoolExecutor", missing)
    (scan.parent / "b.nii.gz").write_bytes(scan.read_bytes())
    said = hemseg_here("segment", scan.parent, tmp_path / "out", "--jobs", 2, "--weights", light, check=1).stderr
    assert "--jobs needs shared memory (/dev/shm)" in said


def test_a_stream_in_memory_is_checked_as_a_file_is(deflated: Path) -> None:
    file = BytesIO(deflated.read_bytes())
    inflation.check_instance(file, "name")
    assert file.tell() == 0
    assert os.path.getsize(deflated) == len(file.getvalue())
