"""What the documentation shows works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "training" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "weights" / "MODEL_CARD.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        code = code.replace('"test/', f'"{ROOT}/test/')
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_options_are_documented() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "hemseg.cli", "segment", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    usage = (ROOT / "docs" / "usage.md").read_text()
    options = set(re.findall(r"(--[a-z]+)", re.sub(r"\x1b\[[0-9;]*m", "", told))) - {"--help"}
    assert len(options) >= 10
    assert not [option for option in options if option not in usage]
