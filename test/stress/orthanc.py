"""The DICOM node beside a real archive and real senders: Orthanc, and dcmtk's storescu, echoscu, findscu and dsrdump.

    make node

On Debian: `apt-get install orthanc dcmtk`. Where they are missing, every test here is skipped and says so. They are not
among the tests of `make test`, in which pynetdicom plays both.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from conftest import ROOT
from helpers.series import write_series
from pydicom.uid import MRImageStorage, generate_uid

from hemseg.volume import Volume

TOOLS = ("Orthanc", "storescu", "echoscu", "findscu", "dsrdump")
MISSING = [tool for tool in TOOLS if not shutil.which(tool)]
PATIENT_SECONDS = 600  # until something is there at last: the machine may be busy
QUIET_SECONDS = 3

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (Debian: orthanc, dcmtk)"),
]
pytest.importorskip("pynetdicom", reason="the extra [node] is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], Any], pause: float = 0.2) -> Any:
    """The first answer of a function that counts as true."""
    deadline = time.monotonic() + PATIENT_SECONDS
    while time.monotonic() < deadline:
        try:
            if answer := what():
                return answer
        except OSError:
            pass
        time.sleep(pause)
    raise AssertionError("it did not come")


class Orthanc:
    """An archive of its own in a folder."""

    def __init__(self, folder: Path, node_port: int) -> None:
        self.http, self.dicom = free_port(), free_port()
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"hemseg": ["HEMSEG", "127.0.0.1", node_port]},
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "Plugins": [],
        }
        folder.mkdir()
        (folder / "orthanc.json").write_text(json.dumps(settings))
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(["Orthanc", folder / "orthanc.json"], stdout=log, stderr=log)
        wait_for(lambda: self.get("/system"))

    def get(self, path: str) -> Any:
        """The answer to GET: JSON where it is, else bytes."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=60) as answer:
            content = answer.read()
            return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

    def post(self, path: str, body: bytes) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", body, method="POST")
        with urllib.request.urlopen(request, timeout=PATIENT_SECONDS) as answer:  # noqa: S310
            return json.loads(answer.read())

    def results(self, study: str) -> dict[str, str]:
        """The identifiers of what came back for a StudyInstanceUID, by modality; nothing until both are there."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study}, "Expand": True}
        found = {}
        for one in self.post("/tools/find", json.dumps(query).encode()):
            series = self.get(f"/series/{one['ParentSeries']}")
            found[series["MainDicomTags"]["Modality"]] = one["ID"]
        found.pop("CT", None)
        return found if {"SEG", "SR"} <= set(found) else {}


class Running:
    """The node as a process; `kill` it, and `start` it again."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.port, self.queue, self.log, self._weights = free_port(), folder / "queue", folder / "log", weights
        folder.mkdir()
        self.archive_port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["node", "--port", self.port, "--bind", "127.0.0.1", "--queue", self.queue, "--weights", self._weights]
        words += ["--return", f"127.0.0.1:{self.archive_port}:ORTHANC", "--quiet-seconds", QUIET_SECONDS]
        words += ["--allow", "CT@127.0.0.1", "--allow", "ORTHANC@localhost", "--device", "cpu"]
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "hemseg.cli", *map(str, words)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=os.environ)
        wait_for(lambda: socket.create_connection(("127.0.0.1", self.port)).close() is None)

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(PATIENT_SECONDS)

    def cases(self, state: str) -> list[Path]:
        return list((self.queue / state).iterdir())


@pytest.fixture(scope="module")
def pair(light: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Orthanc]]:
    folder = tmp_path_factory.mktemp("pair")
    node = Running(folder / "node", light)
    archive = Orthanc(folder / "orthanc", node.port)
    try:
        node.archive_port = archive.dicom
        node.start()
        yield node, archive
    finally:
        if node.process:
            assert node.kill(signal.SIGTERM) in (-signal.SIGTERM, 143)
        archive.process.terminate()
        archive.process.wait(PATIENT_SECONDS)
    said = node.log.read_text()
    assert "listens on port" in said
    assert "Traceback" not in said
    assert not [word for word in ("Secret", "PATIENT-ID", "1.2.826", "2.25") if word in said]


def storescu(node: Running, *files: Path, title: str = "CT") -> list[str]:
    return ["storescu", "-aet", title, "-aec", "HEMSEG", "127.0.0.1", str(node.port), *map(str, files)]


def write_study(folder: Path, volume: Volume) -> tuple[str, list[Path]]:
    uid = generate_uid()
    return uid, write_series(folder, volume, study=uid, PatientName="Secret^Name", PatientID="PATIENT-ID")


def test_from_orthanc_and_back(pair: tuple[Running, Orthanc], bleed: Any, tmp_path: Path) -> None:
    node, archive = pair
    uid, files = write_study(tmp_path, bleed.volume)
    for path in files:
        sent = archive.post("/instances", path.read_bytes())
    archive.post("/modalities/hemseg/store", json.dumps([sent["ParentStudy"]]).encode())
    results = wait_for(lambda: archive.results(uid))
    picture = archive.get(f"/instances/{results['SEG']}/preview")
    assert picture.startswith(b"\x89PNG")
    tags = archive.get(f"/instances/{results['SR']}/simplified-tags")
    assert tags["PatientID"] == "PATIENT-ID"
    assert tags["StudyInstanceUID"] == uid
    report = tmp_path / "sr.dcm"
    report.write_bytes(archive.get(f"/instances/{results['SR']}/file"))
    shown = subprocess.run(["dsrdump", report], check=True, capture_output=True, text=True).stdout
    assert "Intracranial hemorrhage" in shown
    assert "Volume of ellipsoid" in shown
    found = subprocess.run(
        ["findscu", "-S", "-aec", "ORTHANC", "127.0.0.1", str(archive.dicom), "-k", "QueryRetrieveLevel=SERIES",
         "-k", f"StudyInstanceUID={uid}", "-k", "Modality"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    said = found.stdout + found.stderr
    assert all(f"CS [{kind}" in said for kind in ("CT", "SEG", "SR")), said
    wait_for(lambda: not node.cases("sending"))
    assert not list(node.queue.rglob("*.dcm"))  # nothing of the patient is left


def test_killed_in_the_middle(pair: tuple[Running, Orthanc], bleed: Any, tmp_path: Path) -> None:
    node, archive = pair
    uid, files = write_study(tmp_path, bleed.volume)
    subprocess.run(storescu(node, *files), check=True)
    node.kill()
    assert len(list(node.queue.rglob("images/*.dcm"))) == len(files)
    node.start()
    wait_for(lambda: node.cases("segmenting"), pause=0.002)
    node.kill()
    assert not archive.results(uid)
    node.start()
    assert wait_for(lambda: archive.results(uid))


def test_two_studies_at_once(pair: tuple[Running, Orthanc], bleed: Any, tmp_path: Path) -> None:
    node, archive = pair
    studies = [write_study(tmp_path / name, bleed.volume) for name in "ab"]
    sending = [subprocess.Popen(storescu(node, *files)) for _, files in studies]
    assert [process.wait(PATIENT_SECONDS) for process in sending] == [0, 0]
    found = [wait_for(lambda uid=uid: archive.results(uid)) for uid, _ in studies]
    assert found[0]["SEG"] != found[1]["SEG"]


def test_no_ct_and_no_stranger(pair: tuple[Running, Orthanc], bleed: Any, tmp_path: Path) -> None:
    node, archive = pair
    uid, (path, *_) = write_study(tmp_path, bleed.volume)
    other = pydicom.dcmread(path)
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = MRImageStorage
    other.Modality = "MR"
    other.save_as(path)
    subprocess.run(storescu(node, path), check=True)
    time.sleep(QUIET_SECONDS + 2)
    assert not [path for path in node.queue.rglob("*.dcm") if "failed" not in path.parts]
    assert not archive.results(uid)
    assert "what is not CT is passed over" in node.log.read_text()
    echo = ["echoscu", "-aec", "HEMSEG", "127.0.0.1", str(node.port), "-aet"]
    assert subprocess.run([*echo, "CT"], check=False).returncode == 0
    assert subprocess.run([*echo, "STRANGER"], check=False).returncode != 0
    assert subprocess.run(storescu(node, path, title="STRANGER"), check=False).returncode != 0
