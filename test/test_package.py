"""What `make dist` makes is whole: the wheel is built from the source archive, and segments on its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, dice

from hemseg import __version__
from hemseg.scan import read

SAMPLE = ROOT / "test" / "cases" / "phantom-lobar.mha"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


def test_the_source_archive_has_what_a_clone_has(dist: Path) -> None:
    with tarfile.open(dist / f"hemseg-{__version__}.tar.gz") as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for needed in ("process.py", "Dockerfile", "weights/hemseg.onnx", "training/configs/best.yaml", "LICENSE"):
        assert needed in names
    assert not [name for name in names if name.startswith(("runs", ".venv", "demo-output"))]


@pytest.fixture(scope="module")
def site(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(dist / f"hemseg-{__version__}-py3-none-any.whl") as archive:
        archive.extractall(folder)  # noqa: S202  our own wheel; pip does the same, and fetches what is here already
    return folder


def test_the_wheel_has_two_packages_and_their_commands(site: Path, tmp_path: Path) -> None:
    info = site / f"hemseg-{__version__}.dist-info"
    assert {p.name for p in site.iterdir()} == {"hemseg", "hemseg_training", info.name}
    for module in (site / "hemseg_training").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) training\b", module.read_text(), re.MULTILINE), module
    commands = (info / "entry_points.txt").read_text()
    assert "hemseg = hemseg.cli:main" in commands
    assert "hemseg-train = hemseg_training.__main__:main" in commands
    code = "from hemseg_training.__main__ import main; main()"
    arguments = [sys.executable, "-c", code, "all", "--config", "phe_sich", "--run", "run"]
    done = subprocess.run(
        arguments, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, check=False
    )
    assert done.returncode == 1
    assert "configuration phe_sich is meant for real data" in done.stderr  # it was read from the wheel


def test_the_wheel_segments_on_its_own(site: Path, tmp_path: Path) -> None:
    output = subprocess.run(
        [sys.executable, "-c", "import hemseg; print(hemseg.__file__); from hemseg.cli import main; main()"]
        + ["segment", str(SAMPLE), "out"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert output.stdout.startswith(str(site))
    expected = read(ROOT / "test" / "expected" / SAMPLE.name).hu
    assert dice(read(tmp_path / "out" / SAMPLE.name).hu, expected) > 0.99
