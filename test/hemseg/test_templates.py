"""Pages are files with places to be filled; none may be left."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from hemseg.report.findings import findings
from hemseg.report.viewer import page
from hemseg.scan import read
from hemseg.segmentation import segment

TEMPLATES = [Path(str(p)) for p in files("hemseg.report.templates").iterdir() if p.name.endswith(".html")]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_place_of_a_template_is_marked_alike(template: Path) -> None:
    text = template.read_text()
    assert re.search(r"@@[A-Z]+", text)
    assert not re.search(r"(?<!@)@[A-Z]+@", text)
    assert not re.search(r"\$\{?[A-Z]{3,}", text)


def test_no_place_is_left_in_a_page(scan: Path, light: Path) -> None:
    from hemseg.model import load

    model = load(light, "cpu")
    result = segment(read(scan), model)
    text = page(result, findings(result, model, "case"))
    assert not re.search(r"@@?[A-Z]{3,}", text)
    assert "<th>ABC/2 (mL)</th>" in text
