"""hemseg's HTTP server as a process, called over a socket: health, invoke, faults, load and SIGTERM."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import ROOT, same_geometry

SCAN = ROOT / "test" / "cases" / "phantom-lobar.mha"
MASK = "images/hemorrhage-segmentation/output.mha"


class Server:
    """A running server with its input and output folders."""

    def __init__(self, folder: Path) -> None:
        self.source, self.target = folder / "input", folder / "output"
        (self.source / "images" / "ct").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        call = ("--mode", "serve", "--port", self.port, "--input", self.source, "--output", self.target)
        self.process = subprocess.Popen(
            [sys.executable, "process.py", *map(str, call)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(600):
            with_answer = self.process.poll() is None
            assert with_answer, self.process.communicate()
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def stop(self) -> tuple[int, str, str]:
        self.process.terminate()
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    running.process.kill()
    running.process.communicate()


def test_invoke_reads_input_and_writes_output(server: Server) -> None:
    image = server.source / "images" / "ct" / "u.mha"
    for body in (None, b"{}", b"garbage" * 1000):  # whatever the body says
        shutil.copy(SCAN, image)
        status, said = server.ask("POST", "/invoke", body)
        assert (status, "mL" in said) == (201, True)
        assert same_geometry(server.target / MASK, image)
        shutil.rmtree(server.target)
    assert server.ask("GET", "/invoke")[0] == 405
    assert server.ask("GET", "/other")[0] == 404
    code, out, err = server.stop()
    assert (code, err) == (0, "")
    assert out.count("weights ") == 1


def test_faults_get_a_sentence_and_the_server_lives_on(server: Server, tmp_path: Path) -> None:
    folder = server.source / "images" / "ct"
    status, said = server.ask("POST", "/invoke")
    assert (status, "one image" in json.loads(said)["detail"]) == (422, True)
    (folder / "u.mha").write_text("no scan")
    status, said = server.ask("POST", "/invoke")
    assert (status, "cannot be read" in said) == (422, True)
    (folder / "u.mha").unlink()
    shutil.copy(SCAN, tmp_path / "outside.mha")
    os.symlink(tmp_path / "outside.mha", folder / "u.mha")
    status, said = server.ask("POST", "/invoke")
    assert (status, "leaves the input folder" in said) == (422, True)
    (folder / "u.mha").unlink()
    (server.source / "inputs.json").write_text("{")
    status, said = server.ask("POST", "/invoke")
    assert (status, "inputs.json" in said) == (422, True)
    (server.source / "inputs.json").unlink()
    assert not server.target.exists()
    shutil.copy(SCAN, folder / "u.mha")
    assert server.ask("POST", "/invoke")[0] == 201


def test_too_many_requests_are_turned_away_and_the_rest_are_done(server: Server) -> None:
    shutil.copy(SCAN, server.source / "images" / "ct" / "u.mha")
    with ThreadPoolExecutor(60) as pool:
        answers = [status for status, _ in pool.map(lambda _: server.ask("POST", "/invoke"), range(60))]
    assert set(answers) == {201, 503}
    assert server.ask("GET", "/health")[0] == 200
    assert not [p for p in server.target.rglob("*") if p.name.startswith(".")]


def test_sigterm_lets_the_running_case_end(server: Server) -> None:
    image = sitk.ReadImage(str(SCAN))
    scan = server.source / "images" / "ct" / "u.mha"
    sitk.WriteImage(image, str(scan))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.ask, "POST", "/invoke")
        time.sleep(0.3)
        code, _, err = server.stop()
        assert answer.result()[0] == 201
    assert (code, err) == (0, "")
    assert same_geometry(server.target / MASK, scan)
