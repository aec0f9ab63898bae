"""Formats of masks: an entry is all that a new one takes, and a name goes with its suffix."""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import hemseg_here
from typer.testing import CliRunner

from hemseg.bids import bids_jobs
from hemseg.errors import HemsegError
from hemseg.folder.plan import Job, OutputOptions, plan_jobs
from hemseg.io.files import write_text
from hemseg.io.marks import mark
from hemseg.io.result_writers import RESULT_WRITERS
from hemseg.mask_formats import MASK_FORMATS, MaskFormat, format_of
from hemseg.report.kinds import kinds_path
from hemseg.report.probability import probability_path
from hemseg.segmentation import Segmentation


def fresh_command_line() -> ModuleType:
    """The command line as it is with the formats of now: choices are read when its module is executed."""
    place = importlib.util.find_spec("hemseg.cli")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def write_places(result: Segmentation, path: Path, companion: Path | None = None) -> None:
    """The voxels of a mask, one per line, and their number in a second file."""
    places = np.argwhere(result.mask)
    head = mark(result.volume.content)
    if companion:
        write_text(f"{head}\n{len(places)}\n", companion)
    write_text("\n".join([head, *(" ".join(map(str, place)) for place in places)]) + "\n", path)


def test_one_entry_is_all_that_a_format_takes(
    scan: Path, light: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = MaskFormat("places", ".places.txt", "a voxel per line", write_places, companion="_count.txt")
    monkeypatch.setitem(MASK_FORMATS, entry.name, entry)
    app, runner = fresh_command_line().app, CliRunner(env={"COLUMNS": "250", "TERM": "dumb"})
    text = runner.invoke(app, ["segment", "--help"]).output
    assert "|dicom|places>" in text
    assert "places: a voxel per line." in text
    out = tmp_path / "out"
    call = ["segment", str(scan.parent), str(out), "--weights", str(light), "--probability", "--quiet"]
    assert runner.invoke(app, [*call, "--format", "places"]).exit_code == 0
    assert {path.name for path in out.iterdir() if path.name.startswith("case")} == {
        "case.places.txt", "case_count.txt", "case_probability.mha",
    }  # fmt: skip
    lines = (out / "case.places.txt").read_text().splitlines()
    assert len(lines) - 1 == int((out / "case_count.txt").read_text().split()[-1]) > 10
    assert runner.invoke(app, [*call, "--format", "places", "--redo"]).exit_code == 0  # its mark makes it ours
    alone = tmp_path / "mine.places.txt"
    assert runner.invoke(app, ["segment", str(scan), str(alone), *call[3:]]).exit_code == 0
    assert alone.read_text().splitlines()[1:] == lines[1:]
    assert kinds_path(alone, tmp_path / "mine").name == "mine_kinds.mha"


def test_the_suffix_of_a_name_goes_with_the_format(scan: Path, tmp_path: Path) -> None:
    for form, name in (("dicom", "mask.mha"), ("mha", "mask.nii.gz"), ("nii.gz", "mask.dcm")):
        with pytest.raises(HemsegError, match=f"a mask of --format {form} ends in {MASK_FORMATS[form].suffix}"):
            plan_jobs(scan, tmp_path / name, OutputOptions(format=form))
    (job,) = plan_jobs(scan, tmp_path / "mask.DCM", OutputOptions(format="dicom"))
    assert job.companion == tmp_path / "mask_sr.dcm"
    (job,) = plan_jobs(scan, tmp_path / "mask.dcm", OutputOptions())
    assert (job.mask, job.companion) == (tmp_path / "mask.dcm", None)
    assert probability_path(job.mask, tmp_path / "mask").name == "mask_probability.dcm"
    with pytest.raises(HemsegError, match="format 'png' is not known"):
        OutputOptions(format="png")


def test_every_format_is_reached() -> None:
    """By a path's suffix, and by `Segmentation.save`; the field of a job and that of the options have the same name."""
    written = {form.suffix for form in MASK_FORMATS.values() if form.write}
    assert written == set(RESULT_WRITERS) == {".dcm"}
    assert format_of(Path("a.dcm")) is MASK_FORMATS["dicom-seg"]
    assert format_of(Path("a.nii.gz")) is None
    assert "format" in {field.name for field in fields(Job)} & {field.name for field in fields(OutputOptions)}


def test_a_format_that_rounds_a_scans_geometry_is_refused_before_anything_is_written(
    scan: Path, light: Path, tmp_path: Path
) -> None:
    """Pages and pictures are written before the mask: they would stay beside none."""
    for name in ("a.mha", "b.nrrd"):
        sitk.WriteImage(sitk.ReadImage(str(scan)), str(scan.with_name(name)))
    out = tmp_path / "out"
    jobs = plan_jobs(scan.parent, out, OutputOptions(format="nii.gz"))
    assert [job.refusal for job in jobs] == [
        f"{out}/a.nii.gz: the mask of a.mha is written as MetaImage; NIfTI would round its geometry.",
        f"{out}/b.nii.gz: the mask of b.nrrd is written as NRRD or MetaImage; NIfTI would round its geometry.",
        "",
    ]
    assert [bool(job.refusal) for job in bids_jobs(jobs, [scan.parent], out)] == [True, True, False]
    assert not any(job.refusal for job in plan_jobs(scan.parent, out, OutputOptions(format="mha")))
    for options, target in ((OutputOptions(format="dicom"), out), (OutputOptions(), out / "mask.dcm")):
        source = scan if target.suffix else scan.parent
        assert all("refers to DICOM slices" in job.refusal for job in plan_jobs(source, target, options))
    call = ("segment", scan.parent, out, "--format", "nii.gz", "--overlay", "--report", "--weights", light)
    assert hemseg_here(*call, check=1).stderr.count("would round its geometry") == 2
    cases = {path.name.split(".")[0] for path in out.rglob("*") if path.name not in ("thumbnails", "report.json")}
    assert cases & {"a", "b", "case"} == {"case"}
