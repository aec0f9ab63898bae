"""Ctrl-C and SIGTERM: once, twice, with several processes, in the middle of a long scan."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
SECONDS = 2.0  # that a second signal may take; four times as much where the tests have all cores busy
SLOW = """
import os, sys, time
from hemseg import cli
from hemseg.folder import jobs as folder_jobs
from hemseg.io import files

def slow(job, model):
    with files.atomic_write(job.mask) as partial:
        partial.write_bytes(b"half")
        with open(os.environ["BEGUN"], "a") as begun:
            begun.write("x")
        time.sleep(60)
    raise AssertionError("the end of a long scan")

folder_jobs._segment_and_write = slow
if __name__ == "__main__":
    cli.main()
"""


class Run:
    """``hemseg segment`` in a session of its own; every scan takes a minute, in the middle of a file."""

    def __init__(self, place: Path, *arguments: object) -> None:
        script, self._begun = place / "slow.py", place / "begun"
        script.write_text(SLOW)
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            cwd=ROOT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "BEGUN": str(self._begun)},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def wait_until_begun(self, scans: int) -> None:
        for _ in range(6000):
            if self._begun.exists() and len(self._begun.read_text()) >= scans:
                return
            assert self.process.poll() is None, self.process.stderr and self.process.stderr.read()
            time.sleep(0.1)
        raise AssertionError("it does not begin")

    def send(self, number: int) -> None:
        """As a terminal does with Ctrl-C, and as `kill` does: to all processes, or to one."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def ended(self) -> tuple[int, float, str]:
        """Exit code, seconds and stderr."""
        begun = time.perf_counter()
        _, errors = self.process.communicate(timeout=50)
        return self.process.returncode, time.perf_counter() - begun, errors

    def left(self) -> list[str]:
        """Processes of its session."""
        found = subprocess.run(["pgrep", "-s", str(self.process.pid)], capture_output=True, text=True, check=False)
        return found.stdout.split()


def remaining(folder: Path) -> list[str]:
    """Files but the tables of a folder, which are whole at any time."""
    tables = ("summary", "lesions.csv")
    return [p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith(tables)]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts runs, and leaves none behind."""
    runs: list[Run] = []

    def start(*arguments: object) -> Run:
        runs.append(Run(tmp_path, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_single_long_scan_stops_at_once(
    scan: Path, tmp_path: Path, light: Path, started: Callable[..., Run], number: int
) -> None:
    run = started("segment", scan, tmp_path / "out", "--weights", light)
    run.wait_until_begun(1)
    run.send(number)
    code, seconds, errors = run.ended()
    assert code == CODES[number]
    assert seconds < 3 * 4
    assert "Traceback" not in errors
    assert "Fatal" not in errors
    assert remaining(tmp_path / "out") == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_second_signal_ends_it(
    scan: Path, tmp_path: Path, light: Path, started: Callable[..., Run], jobs: int, number: int
) -> None:
    for copy in range(4):
        shutil.copy(scan, scan.with_name(f"{copy}.nii.gz"))
    run = started("segment", scan.parent, tmp_path / "out", "--jobs", jobs, "--weights", light)
    run.wait_until_begun(2)
    run.send(number)
    time.sleep(0.5)
    assert run.process.poll() is None  # the first lets what is under way end
    run.send(number)
    code, seconds, errors = run.ended()
    assert code == CODES[number]
    assert seconds < SECONDS * 4
    assert "Traceback" not in errors
    for _ in range(50):
        if not run.left():
            break
        time.sleep(0.1)
    assert run.left() == []
    assert remaining(tmp_path / "out") == []
