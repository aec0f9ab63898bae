"""lesions.csv beside summary.csv: what it holds, how a run goes on with it, and that the data dictionary is current."""

from __future__ import annotations

import csv
import io
import re
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, hemseg_here

from hemseg.folder.journal import Journal
from hemseg.folder.rows import LATER, Row
from hemseg.names import from_cell
from hemseg.report.columns import LESIONS, SUMMARY, csv_text, redcap_dictionary, tables_page

FORMULA = "=HYPERLINK(1).nii.gz"


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline="")))


@pytest.fixture(scope="module")
def made(bleed_scan: Path, light: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two scans and their output folder."""
    source, out = tmp_path_factory.mktemp("scans"), tmp_path_factory.mktemp("results") / "out"
    for name in (FORMULA, "b.nii.gz"):
        shutil.copy(bleed_scan, source / name)
    hemseg_here("segment", source, out, "--weights", light, "--report")
    return source, out


@pytest.fixture
def done(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to be changed."""
    out = Path(shutil.copytree(made[1], tmp_path / "out"))
    return made[0], out


def test_lesions_in_long_form(made: tuple[Path, Path]) -> None:
    _, out = made
    lesions, cases = table(out / "lesions.csv"), table(out / "summary.csv")
    assert [case["case"] for case in cases] == [f"'{FORMULA}", "b.nii.gz"]
    assert list(lesions[0]) == [column.name for column in LESIONS]
    for case in cases:
        own = [line for line in lesions if line["case"] == case["case"]]
        assert [line["lesion"] for line in own] == [str(n + 1) for n in range(int(case["lesions"]))]
        assert sum(float(line["volume_ml"]) for line in own) == pytest.approx(float(case["volume_ml"]), abs=0.01)
        assert own[0]["volume_ml"] == case["largest_ml"]
        assert own[0]["abc2_ml"] == case["largest_abc2_ml"]
        for line in own:
            product = float(line["a_cm"]) * float(line["b_cm"]) * float(line["c_cm"]) / 2
            assert product == pytest.approx(float(line["abc2_ml"]), rel=0.02)
            assert 0.5 < float(line["probability_mean"]) <= float(line["probability_max"]) <= 1
            assert line["touches_skull"] in ("0", "1")
            assert int(line["first_slice"]) <= int(line["last_slice"]) <= 16
    assert float(lesions[0]["volume_ml"]) > 1


def state(out: Path) -> list[str]:
    """The cases that would not be done again."""
    journal = Journal(out)
    return [case for case, row in journal.rows.items() if journal.lesions.holds(case, row.lesions_checksum)]


def test_cases_whose_lesions_are_missing_are_done_again(done: tuple[Path, Path], light: Path) -> None:
    source, out = done
    whole = (out / "lesions.csv").read_bytes()
    assert state(out) == [FORMULA, "b.nii.gz"]
    (out / "lesions.csv").write_bytes(whole[:-9])  # the process died here
    assert state(out) == [FORMULA]
    (out / "lesions.csv").write_bytes(re.sub(rb",(left|right|midline),", b",unknown,", whole))
    assert state(out) == []
    (out / "lesions.csv").write_bytes(whole[:-9])
    assert "1 of 2 scans were done before" in hemseg_here("segment", source, out, "--weights", light, "--report").stderr
    assert (out / "lesions.csv").read_bytes() == whole


def test_a_spreadsheet_may_have_saved_it(done: tuple[Path, Path]) -> None:
    _, out = done
    lines = list(csv.reader((out / "lesions.csv").open(newline="")))
    lines[1:] = [[str(float(c)) if re.fullmatch(r"-?\d+(\.\d+)?", c) else c for c in line] for line in lines[1:]]
    with (out / "lesions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(lines)
    assert state(out) == [FORMULA, "b.nii.gz"]


def test_folders_of_an_older_version_go_on(
    done: tuple[Path, Path], light: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their tables lack the new columns, and there is no lesions.csv: nothing is done again."""
    source, out = done
    (out / "lesions.csv").unlink()
    rows = list(Journal(out).rows.values())
    old = [name for name in Row.columns() if name not in LATER]
    without = [Row(**{name: getattr(row, name) for name in old}).sealed for row in rows]
    (out / "summary.csv").write_text(csv_text(old, [[getattr(row, name) for name in old] for row in without]))
    said = hemseg_here("segment", source, out, "--weights", light, "--report").stderr
    assert "2 of 2 scans were done before" in said
    assert "lesions.csv: lacks 2 cases that an older hemseg did; --redo" in caplog.text
    assert table(out / "lesions.csv") == []
    assert len(table(out / "summary.csv")) == 2


def test_a_table_of_somebody_else_is_not_replaced(done: tuple[Path, Path], light: Path) -> None:
    source, out = done
    (out / "lesions.csv").write_text("patient,lesion\n1,2\n")
    said = hemseg_here("segment", source, out, "--weights", light, "--report", "--redo", check=1).stderr
    assert "lesions.csv (hemseg did not write it" in said
    assert (out / "lesions.csv").read_text() == "patient,lesion\n1,2\n"


def test_the_dictionary_is_current() -> None:
    """python -m hemseg.report.columns docs"""
    assert [column.name for column in SUMMARY] == list(Row.columns())
    assert (ROOT / "docs" / "tables.md").read_text(encoding="utf-8") == tables_page()
    assert (ROOT / "docs" / "redcap_data_dictionary.csv").read_bytes().decode() == redcap_dictionary()
    fields = list(csv.DictReader(io.StringIO(redcap_dictionary())))
    names = [from_cell(field["Variable / Field Name"]) for field in fields]
    assert names[0] == "case"
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z][a-z0-9_]{0,25}", name) for name in names)
    assert {field["Field Type"] for field in fields} == {"text", "radio", "yesno"}
    assert all(
        bool(field["Choices, Calculations, OR Slider Labels"]) == (field["Field Type"] == "radio") for field in fields
    )


def test_a_negative_number_stays_one_and_a_formula_does_not() -> None:
    table = csv_text(("x_mm", "case"), [("-12.30", "-1+cmd"), ("-3", "=1")])
    assert table.splitlines()[1:] == ["-12.30,'-1+cmd", "-3,'=1"]
