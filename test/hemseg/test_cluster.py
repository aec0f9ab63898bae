"""A Ray cluster whose head dies, and processes whose parents do, without Ray; with it: test_folders.py."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import python

from hemseg import signals
from hemseg.folder import ray_cluster
from hemseg.folder.descendants import descendants, end_processes
from hemseg.folder.ray_cluster import HeadLostError, HeadWatch


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "CHECK_SECONDS", 0.02)
    monkeypatch.setattr(ray_cluster, "LOCAL_TIMEOUT_SECONDS", 0.3)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A port and a Unix socket that take connections."""
    with socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "s"))
        local.listen()
        yield port, local


def places(listening: tuple[socket.socket, socket.socket]) -> list[str]:
    port, local = listening
    return [f"127.0.0.1:{port.getsockname()[1]}", local.getsockname()]


def check_for(watch: HeadWatch, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        watch.check()
        time.sleep(0.01)


@pytest.mark.parametrize("dies", [0, 1])
def test_a_head_that_dies(listening: tuple[socket.socket, socket.socket], dies: int) -> None:
    watch = HeadWatch(places(listening))
    check_for(watch, 0.5)
    watch.wait()
    listening[dies].close()
    begun = time.monotonic()
    with pytest.raises(HeadLostError, match="run the same command again"):
        check_for(watch, 20)
    assert time.monotonic() - begun >= 0.25
    with pytest.raises(HeadLostError):
        watch.wait()


def test_a_head_that_comes_back_is_not_dead(listening: tuple[socket.socket, socket.socket]) -> None:
    watch = HeadWatch(places(listening))
    port = listening[0].getsockname()
    listening[0].close()
    check_for(watch, 0.05)
    with socket.create_server(port):
        watch.wait()
        check_for(watch, 0.6)


def test_an_address_that_makes_no_sense_does_not_answer() -> None:
    for place in ("nowhere.invalid:1", "127.0.0.1:x", "", "/no/such/socket"):
        assert not ray_cluster._accepts_connection(place)


def test_a_second_signal_ends_what_ray_began(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(os, "_exit", lambda code: said.append(f"exit {code}"))
    monkeypatch.setattr(signals, "remove_partial_files", lambda: said.append("abandon"))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    with signals.called_on_exit(lambda: said.append("ended")):
        signals.exit_now(130)
    signals.exit_now(143)
    assert said == ["ended", "abandon", "exit 130", "abandon", "exit 143"]


def test_handlers_of_signals_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals.signal_handlers_restored():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) == before


def test_descendants_end() -> None:
    before = descendants()
    shell = subprocess.Popen(["sh", "-c", "sleep 100 & sleep 100; true"])
    while len(new := descendants() - before) < 3:
        time.sleep(0.02)
    assert shell.pid in new
    end_processes(lambda: descendants() & new)
    shell.wait()
    assert not descendants() & new


ORPHANS = """
import subprocess, time
from hemseg.folder.descendants import adopt_orphans, descendants, end_processes

adopt_orphans()
subprocess.run(["sh", "-c", "setsid sleep 100 >/dev/null 2>&1 & true"])  # its parent ends at once
assert len(descendants()) == 1, descendants()
end_processes(descendants, 0.1)
assert not descendants()
"""


def test_orphans_are_not_lost() -> None:
    python("-c", ORPHANS)
