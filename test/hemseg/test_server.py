"""hemseg's HTTP server as a process, called over a socket: health, invoke, faults, load and SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import SimpleITK as sitk
from conftest import ROOT, same_geometry

from hemseg.grand_challenge.server import MAX_WAITING_REQUESTS
from hemseg.resources import resident_bytes

SCAN = ROOT / "test" / "cases" / "phantom-lobar.mha"
MASK = "images/hemorrhage-segmentation/output.mha"


class Server:
    """A running server with its input and output folders."""

    def __init__(self, folder: Path, weights: Path, before: str = "", wait: bool = True) -> None:
        self.source, self.target = folder / "input", folder / "output"
        (self.source / "images" / "ct").mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        call = ("--mode", "serve", "--port", self.port, "--input", self.source, "--output", self.target)
        call += ("--weights", weights)
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{before}\nimport process, sys; sys.exit(process.main())", *map(str, call)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(600 if wait else 0):
            with_answer = self.process.poll() is None
            assert with_answer, self.process.communicate()
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        if wait:
            raise TimeoutError

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def resident_mib(self) -> float:
        return resident_bytes(self.process.pid) / 2**20

    def stop(self) -> tuple[int, str, str]:
        self.process.terminate()
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def server(tmp_path: Path, light: Path) -> Iterator[Server]:
    running = Server(tmp_path, light)
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
    (folder / "u.mha").write_text("no scan")
    assert server.ask("POST", "/invoke")[0] == 422
    reasons = server.stop()[2].splitlines()
    assert len(reasons) == 5
    assert all(reason.startswith("error: ") for reason in reasons)
    assert "u.mha: cannot be read" in reasons[-1]


def test_too_many_requests_are_turned_away_and_the_rest_are_done(server: Server) -> None:
    shutil.copy(SCAN, server.source / "images" / "ct" / "u.mha")
    with ThreadPoolExecutor(60) as pool:
        answers = [status for status, _ in pool.map(lambda _: server.ask("POST", "/invoke"), range(60))]
    assert set(answers) == {201, 503}
    assert answers.count(201) >= MAX_WAITING_REQUESTS
    assert server.ask("GET", "/health")[0] == 200
    assert not [p for p in server.target.rglob("*") if p.name.startswith(".")]


def test_a_thousand_at_once(server: Server) -> None:
    shutil.copy(SCAN, server.source / "images" / "ct" / "u.mha")
    assert server.ask("POST", "/invoke")[0] == 201
    before = server.resident_mib()

    async def one() -> int:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /invoke HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            answer = await reader.read()
            writer.close()
        except ConnectionError:
            return 0
        return int(answer.split()[1])

    async def many() -> list[int]:
        return await asyncio.gather(*(one() for _ in range(1000)))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        answers = Counter(asyncio.run(many()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert answers[201] + answers[503] == 1000
    assert server.ask("POST", "/invoke")[0] == 201
    assert server.resident_mib() < before + 100
    assert server.stop()[0] == 0


def test_garbage_and_large_bodies(server: Server) -> None:
    rng = random.Random(0)
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
            line.sendall(rng.randbytes(rng.randint(1, 100_000)))
    for text in (
        b"POST /invoke HTTP/1.1\r\n" + b"A: b\r\n" * 100_000,
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line, contextlib.suppress(OSError):
            line.sendall(text)
            assert line.recv(100).split()[1] in (b"400", b"404")
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
        line.sendall(b"POST /invoke HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000000\r\n\r\n")
        assert line.recv(100).split()[1] == b"413"
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    begin = b"POST /invoke HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
    for text, status in (
        (begin + b"\r\n" + 17 * chunk, b"413"),  # no word of its length
        (begin + b"Content-Length: 5\r\n\r\n0\r\n\r\n", b"400"),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
            line.sendall(text)
            answer = b""
            with contextlib.suppress(ConnectionError):
                while piece := line.recv(4096):  # until it is closed
                    answer += piece
            assert answer.split()[1] == status
            assert answer.count(b"HTTP/1.1") == 1
    assert server.ask("GET", "/health")[0] == 200
    assert server.stop()[2] == ""


def test_a_body_that_does_not_come(tmp_path: Path, light: Path) -> None:
    server = Server(
        tmp_path,
        light,
        before="import hemseg.grand_challenge.server; hemseg.grand_challenge.server.IDLE_SECONDS = 0.5",
    )
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
            line.sendall(b"POST /invoke HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab")
            assert line.recv(100).split()[1] == b"408"
    finally:
        server.process.kill()
        server.process.communicate()


SLOW_START = """
import hemseg.model, time
load = hemseg.model.load
def slow(*arguments):
    time.sleep(1)
    return load(*arguments)
hemseg.model.load = slow
"""
SLOW_CASE = """
import hemseg.grand_challenge.server, time
from hemseg.io.files import atomic_write
def slow(job, model):
    with atomic_write(job.mask):
        time.sleep(60)
hemseg.grand_challenge.server.run_job = slow
"""


def test_who_asks_while_the_model_is_loaded_waits(tmp_path: Path, light: Path) -> None:
    server = Server(tmp_path, light, before=SLOW_START, wait=False)
    try:
        refused = 0
        while True:
            try:
                status, _ = server.ask("GET", "/health")  # the first one that is let in has its answer
                break
            except ConnectionRefusedError:
                refused += 1
                time.sleep(0.02)
        assert status == 200
        assert refused < 1000
    finally:
        server.process.kill()
        server.process.communicate()


def test_a_long_case_ends_with_the_server_in_time(tmp_path: Path, light: Path) -> None:
    server = Server(tmp_path, light, before=SLOW_CASE)
    shutil.copy(SCAN, server.source / "images" / "ct" / "u.mha")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.ask, "POST", "/invoke")
        while not list(server.target.rglob(".hemseg-*")):
            time.sleep(0.1)
        start = time.monotonic()
        code, _, err = server.stop()
        assert time.monotonic() - start < 5  # then the platform kills
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert answer.result()[0] >= 500
    assert code == 143
    assert err.splitlines()[-1] == "error: stopped; the case had not ended after 3 seconds."
    assert not list(server.target.rglob(".hemseg-*"))


def test_those_who_say_nothing_are_cut_off(tmp_path: Path, light: Path) -> None:
    server = Server(
        tmp_path,
        light,
        before="import hemseg.grand_challenge.server; hemseg.grand_challenge.server.IDLE_SECONDS = 0.5",
    )
    shutil.copy(SCAN, server.source / "images" / "ct" / "u.mha")
    try:
        begun = [b"", b"POST /inv", b"POST /invoke HTTP/1.1\r\nHost: h\r\n"]
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(300)]
        for number, line in enumerate(silent):
            line.sendall(begun[number % 3])
        assert server.ask("POST", "/invoke")[0] == 201  # which takes longer than they have
        for line in silent:
            with contextlib.suppress(ConnectionError):
                assert line.recv(1) == b""
            line.close()
    finally:
        server.process.kill()
        server.process.communicate()


def test_no_file_of_the_input_leaves_it(server: Server, tmp_path: Path) -> None:
    folder = server.source / "images" / "ct"
    sitk.WriteImage(sitk.ReadImage(str(SCAN)), str(tmp_path / "outside.mhd"))
    text = (tmp_path / "outside.mhd").read_text()
    (folder / "u.mhd").write_text(text.replace("outside", "../../../outside"))
    status, said = server.ask("POST", "/invoke")
    assert (status, "outside of its folder" in said) == (422, True)
    (folder / "u.mhd").write_text(text)
    os.symlink(tmp_path / "outside.raw", folder / "outside.raw")
    status, said = server.ask("POST", "/invoke")
    assert (status, "leaves the input folder" in said) == (422, True)


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
