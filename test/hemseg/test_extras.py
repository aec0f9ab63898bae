"""What needs an extra that is not installed says which one, in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, python
from helpers.series import write_series

from hemseg.scan import read

WITHOUT = """
import runpy, sys
missing, how, *sys.argv = sys.argv[1:]
sys.modules[missing] = None  # as if it were not installed
runpy.run_module(how, run_name="__main__") if how != "process" else runpy.run_path("process.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extras") / "series"
    write_series(folder, read(ROOT / "test" / "cases" / "phantom-lobar.mha"))
    return folder


@pytest.mark.parametrize(
    ("missing", "how", "arguments", "said"),
    [
        ("pydicom", "hemseg.cli", ["segment", "series", "out"], "hemseg[dicom]"),
        ("highdicom", "hemseg.cli", ["segment", "series", "out", "--format", "dicom-seg"], "hemseg[dicom]"),
        ("pynetdicom", "hemseg.cli", ["node", "--return", "a:1:B", "--queue", "out"], "hemseg[node]"),
        ("ray", "hemseg.cli", ["segment", "test/cases", "out", "--ray", "local"], "hemseg[cluster]"),
        ("uvicorn", "process", ["--mode", "serve", "--input", "test/cases", "--output", "out"], "hemseg[serve]"),
        (
            "evalutils",
            "process",
            ["--mode", "legacy", "--input", "test/cases", "--output", "out"],
            "hemseg[grand-challenge]",
        ),
        ("torch", "training", ["all", "--config", "smoke", "--run", "run"], "hemseg[training]"),
        ("lightning", "training", ["classify", "--config", "smoke", "--run", "run"], "hemseg[training]"),
    ],
)
def test_a_missing_extra_is_named(missing: str, how: str, arguments: list[str], said: str, series: Path) -> None:
    places = {"series": str(series), "out": str(series.parent / "out"), "run": str(series.parent / "run")}
    done = python("-c", WITHOUT, missing, how, how, *(places.get(a, a) for a in arguments), check=1)
    assert f"pip install '{said}'" in done.stderr
