from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, hemseg, hemseg_here, process, same_geometry
from helpers.faults import write_faulty
from typer.testing import CliRunner

from hemseg.choices import Device
from hemseg.cli import app
from hemseg.errors import HemsegError
from hemseg.folder.plan import OutputOptions, plan_jobs
from hemseg.folder.scans import find_scans
from hemseg.mask_formats import MASK_FORMATS


def files(folder: Path) -> set[str]:
    """What was written, without the tables of a folder."""
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return {name for name in found if not name.startswith(("summary.", "lesions.csv", "thumbnails/"))}


def test_a_folder_keeps_its_structure_and_formats(scan: Path, tmp_path: Path, light: Path) -> None:
    source = scan.parent
    image = sitk.ReadImage(str(scan))
    for name in ("a/b/deep one.nii.gz", "a/kopf-ü.mha", "meta.mhd", "n.nrrd", "plain.nii"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(sitk.GetArrayFromImage(image)), str(source / name))
    (source / "notes.txt").write_text("not a scan")
    (source / ".hidden.nii.gz").write_text("not a scan")
    done = hemseg("segment", source, tmp_path / "out", "--weights", light)
    masks = {"a/b/deep one.nii.gz", "a/kopf-ü.mha", "meta.mha", "n.nrrd", "plain.nii", "case.nii.gz"}
    assert files(tmp_path / "out") == masks
    assert "volume (mL)" in done.stdout
    assert all(name in done.stdout for name in ("a/b/deep one.nii.gz", "meta.mhd"))
    assert same_geometry(scan, tmp_path / "out" / "case.nii.gz")


def test_a_file_goes_to_a_folder_or_a_name(scan: Path, tmp_path: Path, light: Path) -> None:
    hemseg("segment", scan, tmp_path / "out" / "mine.nii.gz", "--quiet", "--weights", light)
    done = hemseg("segment", scan, tmp_path / "folder", "--overlay", "--weights", light)
    assert files(tmp_path / "out") == {"mine.nii.gz"}
    assert files(tmp_path / "folder") == {"case.nii.gz", "case.png"}
    assert "case.nii.gz" in done.stdout
    picture = cv2.imread(str(tmp_path / "folder" / "case.png"))
    assert picture.shape[0] > 600
    assert picture.std() > 20


def test_bad_files_are_named_and_the_others_done(scan: Path, tmp_path: Path) -> None:
    said = write_faulty(scan.parent / "bad", scan)
    done = hemseg("segment", scan.parent, tmp_path / "out", check=1)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(said)
    for name, words in said.items():
        assert any(name in line and words in line for line in errors), name
    assert files(tmp_path / "out") == {"case.nii.gz"}
    assert f"{len(said)} failed" in done.stdout


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("missing", "out", "no such folder"),
        ("missing.nii.gz", "out", "no such file"),
        ("empty", "out", "holds no scans"),
        ("in", "out.nii.gz", "give a folder"),
        ("in", "in", "replace the scan"),
        ("in/case.nii.gz", "in/case.nii.gz", "replace the scan"),
        ("in/case.nii.gz", "in", "replace the scan"),
        ("in/case.nii.gz", "mask.nrrd", "NIfTI"),
    ],
)
def test_mistakes_end_in_one_sentence(scan: Path, tmp_path: Path, source: str, target: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    before = scan.read_bytes()
    done = hemseg("segment", tmp_path / source, tmp_path / target, check=1)
    assert said in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert scan.read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("segment", "", "out"),
        ("segment", "{scan}", ""),
        ("measure", "{scan}", "", "out"),
        ("compare", "{scan}", "{scan}", ""),
        ("segment", "{scan}", "out", "--weights", ""),
    ],
)
def test_an_empty_path_is_not_the_current_folder(
    scan: Path, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    said = hemseg_here(*(word.format(scan=scan) for word in words), check=2).stderr
    assert "is a variable not set?" in " ".join(said.replace("│", " ").split())
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_path_is_not_the_current_folder_of_the_container(scan: Path, tmp_path: Path) -> None:
    said = process("--input", scan.parent, "--output", "", check=2).stderr
    assert "argument --output: it is empty: is a variable not set?" in said


def test_two_scans_of_one_mask_are_refused_and_the_others_done(scan: Path, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(scan))))
    sitk.WriteImage(image, str(scan.parent / "twin.mha"))
    sitk.WriteImage(image, str(scan.parent / "twin.mhd"))
    done = hemseg("segment", scan.parent, tmp_path / "out", check=1)
    assert done.stderr.count("would write the same twin.mha") == 2
    assert files(tmp_path / "out") == {"case.nii.gz"}


def test_output_inside_the_input_is_not_read_again(scan: Path, light: Path) -> None:
    out = scan.parent / "masks"
    for _ in range(2):
        hemseg("segment", scan.parent, out, "--quiet", "--weights", light)
    assert files(out) == {"case.nii.gz"}


def test_output_that_cannot_be_written(scan: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, not a folder")
    done = hemseg("segment", scan, tmp_path / "taken", check=1)
    assert "could not be written" in done.stderr


def test_linked_folders_are_followed_once(scan: Path, caplog: pytest.LogCaptureFixture) -> None:
    (scan.parent / "loop").symlink_to(scan.parent, target_is_directory=True)
    (scan.parent / "link.nii.gz").symlink_to(scan)
    assert [case.name for case, _, _ in find_scans(scan.parent)] == ["case.nii.gz", "link.nii.gz"]
    assert f"{scan.parent / 'loop'}: leads to a folder that was searched already" in caplog.text


def test_plan_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "b.mhd").touch()
    (job,) = plan_jobs(tmp_path / "in", tmp_path / "out", OutputOptions(overlay=True))
    assert (job.case, job.mask, job.overlay) == (Path("a/b.mhd"), tmp_path / "out/a/b.mha", tmp_path / "out/a/b.png")
    with pytest.raises(HemsegError, match="is not a folder"):
        find_scans(tmp_path / "in" / "a" / "b.mhd")


def test_info_and_help_and_version() -> None:
    output = hemseg("info").stdout
    for word in ("hemseg", "weights", "sha256", "CPUExecutionProvider", "onnxruntime"):
        assert word in output
    assert "segment" in hemseg("--help").stdout
    assert hemseg("--version").stdout.strip().count(".") == 2


def test_choices_are_listed_and_anything_else_is_wrong_usage() -> None:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    text = runner.invoke(app, ["segment", "--help"]).output
    for option, names in (("--format", MASK_FORMATS), ("--device", get_args(Device))):
        assert "|".join(names) in text
        wrong = runner.invoke(app, ["segment", "a.mha", "b.mha", option, "other"])
        assert wrong.exit_code == 2
        assert all(name in wrong.output for name in names)


def test_inference_never_imports_torch(scan: Path, tmp_path: Path) -> None:
    code = (
        "import sys, hemseg.cli\n"
        f"try: hemseg.cli.app(['segment', {str(scan)!r}, {str(tmp_path / 'out')!r}, '--overlay'])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "bad = {'torch', 'training', 'monai', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_nifti_scan_takes_no_libraries_that_it_does_not_need(scan: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from hemseg.cli import main\n"
        f"sys.argv = ['hemseg', 'segment', {str(scan)!r}, {str(tmp_path / 'out')!r}]\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "taken = {'pydicom', 'gdcm', 'requests', 'scipy.ndimage', 'scipy.sparse'} & set(sys.modules)\n"
        "assert not taken, taken\n"
        "import pydicom, nibabel\n"  # they are hidden from nibabel for a moment, not for good
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_package_needs_nothing_of_training(tmp_path: Path) -> None:
    """The container has hemseg, process.py and the weights, and no more."""
    for name in ("hemseg", "weights"):
        shutil.copytree(ROOT / name, tmp_path / name)
    code = "import hemseg.folder.jobs, hemseg.report.findings, hemseg.model; print(hemseg.model.default_weights())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "weights"
    assert not np.any(["import torch" in p.read_text() for p in (ROOT / "hemseg").rglob("*.py")])
