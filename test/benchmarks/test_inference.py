"""The benchmark measures what it says; how fast this machine is, no test asserts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, python

from benchmarks import inference
from hemseg.errors import HemsegError

SCAN = ROOT / "test" / "cases" / "phantom-lobar.mha"


def test_stages_of_a_scan(tmp_path: Path) -> None:
    output = python("-m", "benchmarks.inference", "--child", "stages", SCAN, tmp_path).stdout
    rows = json.loads(output.splitlines()[-1])
    assert [row["what"].partition(":")[0] for row in rows] == [
        "start-up", "read", "preprocess and check", "network", "second opinion", "restore and write",
    ]  # fmt: skip
    assert all(row["cpu_seconds"] > 0 and row["wall_seconds"] > 0 for row in rows)
    peaks = [row["peak_mib"] for row in rows]
    assert peaks == sorted(peaks)
    assert (tmp_path / SCAN.name).is_file()


@pytest.mark.slow
def test_whole_processes_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "FOLDER", 2)
    rows = inference.of_scan(SCAN, tmp_path)
    assert (tmp_path / "a" / SCAN.name).is_file()
    assert (tmp_path / "b" / "images" / SCAN.name).is_file()
    whole, stages = rows[0], [row for row in rows if row.what in ("read", "network")]
    assert whole.cpu_seconds > sum(row.cpu_seconds for row in stages) > 0
    assert whole.peak_mib > 100
    many = inference.of_folder(SCAN, tmp_path, rows)
    assert len(list((tmp_path / "masks").glob("*.mha"))) == many["scans"] == 2
    assert many["cpu_seconds"] > 0
    assert many["ratio"] > 0


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"what": "read", "cpu_seconds": 1.25, "wall_seconds": 0.5, "peak_mib": 77.0}
    folder = {"scans": 8, "wall_seconds": 9, "cpu_seconds": 12, "peak_mib": 99, "cores_busy": 1.33, "ratio": 1.01}
    inference.show({"machine": "here", "start": [row], "scans": {"a": [row]}, "network": [row], "folder": folder})
    output = capsys.readouterr().out
    for word in ("here", "1.25", "0.50", "77", "1.3 cores busy", "1.01 times"):
        assert word in output


def test_a_command_that_fails_says_so() -> None:
    with pytest.raises(HemsegError, match=r"failed: .*oh no"):
        inference.command("x", ["-c", "raise SystemExit('oh no')"])
    done = python("-m", "benchmarks.inference", "nowhere.nii.gz", check=1)
    assert "nowhere.nii.gz" in done.stderr


def test_modules_stay_compiled_where_the_shell_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    inference.command("x", ["-c", "import sys; raise SystemExit(sys.dont_write_bytecode)"])
