"""What `make dist` makes is whole: the wheel is built from the source archive, and segments on its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, dice

from hemseg import __version__
from hemseg.volume import read

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


def test_the_wheel_segments_on_its_own(dist: Path, tmp_path: Path) -> None:
    wheel = dist / f"hemseg-{__version__}-py3-none-any.whl"
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # noqa: S202  our own wheel; pip does the same, and fetches what is here already
    told = subprocess.run(
        [sys.executable, "-c", "import hemseg; print(hemseg.__file__); from hemseg.cli import main; main()"]
        + ["segment", str(SAMPLE), "out"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert told.stdout.startswith(str(site))
    expected = read(ROOT / "test" / "expected" / SAMPLE.name).hu
    assert dice(read(tmp_path / "out" / SAMPLE.name).hu, expected) > 0.99
