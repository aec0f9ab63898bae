"""The tables of README and model card are those of docs/results."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemseg.errors import HemsegError
from training.evaluation.card import MARKED, PAGES, RESULTS, TABLES, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_tables_of_a_page_are_those_of_the_results(page: Path) -> None:
    text = page.read_text()
    assert MARKED.search(text)
    assert filled(text) == text, "run `python -m training card`"


def test_every_table_has_a_row_per_line_of_its_file() -> None:
    lines = TABLES["changes"](RESULTS).splitlines()
    assert len(lines) == 2 + len((RESULTS / "robustness" / "changes_summary.csv").read_text().splitlines()) - 1
    assert all(line.count(" | ") == lines[0].count(" | ") for line in lines)


def test_an_unknown_table_and_a_missing_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="'wrong' is not known"):
        filled("<!-- table: wrong -->\n<!-- end -->")
    with pytest.raises(HemsegError, match="cannot be read"):
        filled("<!-- table: slices -->\n<!-- end -->", tmp_path)


def test_results_of_before_a_column_are_said(tmp_path: Path) -> None:
    (tmp_path / "slices").mkdir()
    (tmp_path / "slices" / "summary.csv").write_text("split,slices\nval,all\n")
    with pytest.raises(HemsegError, match=r"'slices': its results have no '.*'; measure again"):
        filled("<!-- table: slices -->\n<!-- end -->", tmp_path)
