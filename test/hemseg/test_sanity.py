"""Results that cannot be are marked, in every place where results are read; those that can be are not."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from typer.testing import CliRunner

import hemseg
from hemseg.cli import app
from hemseg.folder.jobs import Outcome
from hemseg.folder.journal import Journal
from hemseg.folder.plan import Job
from hemseg.folder.rows import row_of
from hemseg.preprocessing import WorkingImage
from hemseg.report.findings import RED, findings, overlay
from hemseg.report.viewer import page
from hemseg.sanity import implausible, reaches_from_base_to_vertex
from hemseg.segmentation import Segmentation, require_plausible
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid
from training.data.phantom import Phantom

SPACING = (5.0, 2.0, 2.0)  # z, y, x
Z, Y, X = np.meshgrid(np.arange(-15, 15) + 0.5, *(np.arange(-60, 60) + 0.5,) * 2, indexing="ij")
MM = np.stack([Z * SPACING[0], Y * SPACING[1], X * SPACING[2]])


def ball(radii: tuple[float, float, float], center: tuple[float, float, float] = (0, 0, 0)) -> np.ndarray:
    """Bool (z, y, x), an ellipsoid; mm."""
    return sum(((m - c) / r) ** 2 for m, c, r in zip(MM, center, radii, strict=True)) < 1


def found(made: Segmentation) -> tuple[str, ...]:
    return implausible(made.mask, made.volume_ml, made.volume, made.working)


def result(
    blood: np.ndarray, inside: np.ndarray | None = None, part: slice = slice(None), skull_mm: float = 6
) -> Segmentation:
    """A head of ellipsoids on the working grid with a mask; ``part``: of its slices."""
    inner = (60.0, 80.0, 65.0)
    inside = ball(inner) if inside is None else inside
    skull = ball(tuple(r + skull_mm for r in inner)) & ~ball(inner)  # type: ignore[arg-type]
    hu = np.where(skull, 100, np.where(ball(inner), np.where(blood, 65, 32), -20)).astype(np.float32)[part]
    grid = WorkingGrid(hu.shape, SPACING, SPACING, 1)
    volume = Volume(hu, SPACING[::-1])
    working = WorkingImage(hu, inside[part], grid)
    mask = blood[part].astype(np.uint8)
    made = Segmentation(
        volume, mask, float(mask.sum()) * volume.voxel_ml, (), 0.1, np.zeros(len(hu), np.float32), working, hu * 0
    )
    return replace(made, implausible=found(made))


NOTHING = np.zeros(MM.shape[1:], bool)
RING = ball((59.9, 79.9, 64.9)) & ~ball((57, 77.5, 62.5)) & (np.abs(Z) < 8)  # 2 mm thick, all around
CRESCENT = ball((59, 79, 64)) & ~ball((52, 72, 60)) & (X > 8)
SMALL = ball((36, 50, 40))  # of an infant


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (result(ball((45, 45, 45))), ["more than a head can hold", "a fifth"]),
        (result(ball((32, 32, 32)), ball((45, 65, 55))), ["a fifth"]),
        (result(RING), ["bone all around"]),
        (result(ball((58, 79, 64)), part=slice(14, 16)), []),  # half of what is shown, but not a whole head
        (result(NOTHING, ball((70, 118, 95))), ["intracranial volume would be"]),
        (result(NOTHING, np.ones_like(NOTHING)), ["intracranial volume would be"]),
        (result(NOTHING, ball((40, 55, 45))), ["intracranial volume would be"]),  # half of an adult's head is lost
        (result(NOTHING, ball((40, 55, 45)), part=slice(10, 20)), []),  # part of a head
    ],
)
def test_what_cannot_be(made: Segmentation, said: list[str]) -> None:
    assert len(made.implausible) == len(said), made.implausible
    for sentence, words in zip(made.implausible, said, strict=True):
        assert words in sentence


@pytest.mark.parametrize(
    "blood", [NOTHING, ball((25, 25, 25)), CRESCENT, ball((20, 30, 20), (0, 50, 0)), RING & (X > 0)]
)
def test_what_can_be(blood: np.ndarray) -> None:
    """Also a large bleed, a thin one along one side, one that touches the skull."""
    assert not result(blood).implausible


def test_infants_have_small_heads() -> None:
    made = result(NOTHING, SMALL)
    small = replace(made.working, hu=np.where(ball((40, 54, 44)), 32, -20).astype(np.float32))
    assert found(replace(made, working=made.working))  # an adult's head of which most is lost
    assert not found(replace(made, working=small))
    speck = replace(small, intracranial=ball((16, 25, 20)))
    assert found(replace(made, working=speck))  # smaller than any


def test_whole_heads_are_known_by_their_areas() -> None:
    for part, whole in ((slice(None), True), (slice(0, 15), False), (slice(16, None), False), (slice(10, 20), False)):
        assert reaches_from_base_to_vertex(result(NOTHING, part=part).working) == whole
    assert not reaches_from_base_to_vertex(result(NOTHING, NOTHING).working)


def test_it_is_shown_first_and_in_red(bleed: Phantom, model: hemseg.model.Model, tmp_path: Path) -> None:
    plain = result(ball((20, 20, 20)))
    wrong = replace(result(ball((45, 45, 45))), volume=replace(plain.volume, warnings=("It looks odd.",)))
    found = findings(wrong, model, "case")
    assert found["implausible"] == list(wrong.implausible)
    assert found["warnings"] == [*wrong.implausible, "It looks odd."]
    assert findings(plain, model, "case")["implausible"] == []

    def reds(made: Segmentation) -> int:
        return int((overlay(made)[:150] == RED).all(axis=2).sum())

    assert reds(wrong) > 500 > reds(plain)
    html = page(wrong, found)
    assert html.count('<li class="implausible">') == 2
    assert html.index("more than a head can hold") < html.index("It looks odd.")
    assert '<li class="implausible">' not in page(plain, findings(plain, model, "case"))

    job = Job(Path("case.mha"), tmp_path / "case.mha", tmp_path / "out" / "case.mha")
    lines = Outcome(job, wrong).messages
    assert [line.split(":")[0] for line in lines] == ["implausible", "implausible", "warning"]
    row = row_of(Outcome(job, wrong), "key", tmp_path)
    assert row.implausible == " ".join(wrong.implausible)
    assert row.warnings == "It looks odd."
    journal = Journal(tmp_path)
    journal.start([row])
    journal.finish([job])
    assert 'class="implausible">Implausible: A hemorrhage of' in (tmp_path / "summary.html").read_text()
    with pytest.raises(hemseg.HemsegError, match="implausible"):
        require_plausible(wrong)
    require_plausible(plain)


def test_a_summary_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Without the column, and without the checksums that make a case count as done (`test_resume.py`)."""
    columns = "case,status,volume_ml,lesions,largest_ml,seconds,warnings,error,series,mask,scan,made_by"
    (tmp_path / "summary.csv").write_text(f"{columns}\na.mha,done,1.0,1,1.0,2.0,,,,a.mha,x,key\n")
    journal = Journal(tmp_path)
    assert journal.rows == {}
    assert journal.lists(Job(Path("a.mha"), tmp_path / "in" / "a.mha", tmp_path / "a.mha"), tmp_path / "a.mha") is False
    (tmp_path / "a.mha").write_text("a mask")
    assert journal.lists(Job(Path("a.mha"), tmp_path / "in" / "a.mha", tmp_path / "a.mha"), tmp_path / "a.mha")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit that any hemorrhage exceeds."""
    monkeypatch.setattr("hemseg.sanity.MAX_ML", 0.1)


@pytest.mark.usefixtures("narrow")
def test_a_folder_and_strict(scan: Path, light: Path, tmp_path: Path) -> None:
    options = ["--report", "--weights", str(light)]
    arguments = ["segment", str(scan.parent), str(tmp_path / "out"), *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert done.stderr.startswith("implausible: case.nii.gz: A hemorrhage of")
    assert "implausible" in done.stdout  # the table
    (row,) = csv.DictReader((tmp_path / "out" / "summary.csv").open())
    assert "more than a head can hold" in row["implausible"]
    assert json.loads((tmp_path / "out" / "case" / "report.json").read_text())["implausible"]
    before = (tmp_path / "out" / "case.nii.gz").stat().st_mtime_ns
    strict = CliRunner().invoke(app, ["segment", str(scan.parent), str(tmp_path / "strict"), *options, "--strict"])
    assert strict.exit_code == 1
    assert "implausible" in strict.stderr
    written = {path.name for path in (tmp_path / "strict").rglob("*") if path.is_file()}
    assert written <= {"summary.csv", "summary.html", "lesions.csv"}
    again = CliRunner().invoke(app, [*arguments, "--strict"])  # it was done, but not strictly
    assert again.exit_code == 1
    assert (tmp_path / "out" / "case.nii.gz").stat().st_mtime_ns == before


@pytest.mark.usefixtures("narrow")
def test_python_refuses_too(bleed: Phantom, light: Path) -> None:
    made = hemseg.segment(bleed.volume, weights=light, device="cpu")
    assert made.implausible
    with pytest.raises(hemseg.HemsegError, match="implausible"):
        hemseg.segment(bleed.volume, weights=light, device="cpu", strict=True)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")
def test_a_real_head_is_plausible() -> None:
    assert not hemseg.segment(SHARED / "dicom-head-ge" / "series", device="cpu").implausible
