from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, process, same_geometry
from helpers.faults import write_faulty
from panimg.image_builders.metaio_mhd_mha import image_builder_mhd

from hemseg.grand_challenge.evalutils_layout import HemorrhageSegmentation
from hemseg.model import Model
from training.data.phantom import Phantom, write_image

CASES = ROOT / "test" / "cases"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the container's entry point makes of the samples."""
    folder = tmp_path_factory.mktemp("process") / "made" / "by process"
    process("--input", CASES, "--output", folder)
    return folder


def test_legacy_layout(output: Path) -> None:
    names = sorted(p.name for p in CASES.iterdir())
    assert sorted(p.name for p in output.iterdir()) == ["images", "results.json"]
    assert sorted(p.name for p in (output / "images").iterdir()) == names
    results = json.loads((output / "results.json").read_text())
    assert results == [
        {
            "outputs": [{"type": "metaio_image", "filename": name}],
            "inputs": [{"type": "metaio_image", "filename": name}],
            "error_messages": [],
        }
        for name in names
    ]


def test_masks_are_the_expected_ones(output: Path) -> None:
    compare = [sys.executable, ROOT / "test" / "helpers" / "compare_masks.py", CASES, ROOT / "test" / "expected"]
    done = subprocess.run([*compare, output / "images"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Dice") == len(list(CASES.iterdir()))


def test_the_comparison_can_fail(output: Path, tmp_path: Path) -> None:
    masks = Path(shutil.copytree(output / "images", tmp_path / "masks"))
    broken = masks / "phantom-lobar.mha"
    image = sitk.ReadImage(str(broken))
    wrong = sitk.GetImageFromArray(1 - sitk.GetArrayFromImage(image))  # loses the geometry, too
    sitk.WriteImage(sitk.Cast(wrong, sitk.sitkFloat32), str(broken))
    (masks / "phantom-healthy.nii.gz").unlink()
    (masks / "extra.txt").touch()
    compare = [sys.executable, ROOT / "test" / "helpers" / "compare_masks.py", CASES, ROOT / "test" / "expected", masks]
    done = subprocess.run(compare, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for said in ("spacing differs", "not uint8", "below 0.99", "is missing", "nobody asked for"):
        assert said in done.stderr


def test_the_platform_reads_the_masks(output: Path) -> None:
    """panimg is what Grand Challenge imports outputs with."""
    masks = list((output / "images").glob("*.mha"))
    assert masks
    for mask in masks:
        (result,) = image_builder_mhd(files={mask})
        assert result.segments is not None
        assert set(result.segments) <= {0, 1}
        assert result.voxel_width_mm == pytest.approx(sitk.ReadImage(str(CASES / mask.name)).GetSpacing()[0])


def test_a_bad_case_does_not_lose_the_others(scan: Path, tmp_path: Path, light: Path) -> None:
    said = write_faulty(scan.parent / "sub folder", scan)
    (scan.parent / "settings.json").write_text("{}")
    done = process("--input", scan.parent, "--output", tmp_path / "out", "--weights", light, check=1)
    results = {r["inputs"][0]["filename"]: r for r in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert set(results) == {"case.nii.gz", *said}
    assert results["case.nii.gz"]["error_messages"] == []
    for name, words in said.items():
        assert results[name]["outputs"] == []
        assert words in results[name]["error_messages"][0]
        assert done.stderr.count(f"/{name}:") == 1 + (f"/{name}:" in done.stderr.splitlines()[-1])
    assert f"{len(said)} of {len(said) + 1} scans failed; the first: " in done.stderr.splitlines()[-1]
    assert [p.name for p in (tmp_path / "out" / "images").iterdir()] == ["case.nii.gz"]
    assert same_geometry(scan, tmp_path / "out" / "images" / "case.nii.gz")


def test_one_name_in_two_folders_is_refused_and_identical_images_are_fine(
    scan: Path, tmp_path: Path, light: Path
) -> None:
    for name in ("a/same.nii.gz", "b/same.nii.gz", "a_1.nii.gz", "b_1.nii.gz", "1.nii.gz", "01.nii.gz"):
        (scan.parent / name).parent.mkdir(exist_ok=True)
        shutil.copy(scan, scan.parent / name)
    done = process("--input", scan.parent, "--output", tmp_path / "out", "--weights", light, check=1)
    assert done.stderr.count("would write the same same.nii.gz") == 2 + 1  # and the last line
    masks = {p.name for p in (tmp_path / "out" / "images").iterdir()}
    assert masks == {"case.nii.gz", "a_1.nii.gz", "b_1.nii.gz", "1.nii.gz", "01.nii.gz"}


@pytest.mark.parametrize(
    ("folder", "said"), [("missing", "no such folder"), ("empty", "holds no scans"), ("out", "is the input folder")]
)
def test_nothing_to_do_is_an_error(tmp_path: Path, folder: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    assert said in process("--input", tmp_path / folder, "--output", tmp_path / "out", check=1).stderr


def test_output_inside_the_input_is_not_read_again(scan: Path, light: Path) -> None:
    for _ in range(2):
        process("--input", scan.parent, "--output", scan.parent / "out", "--weights", light)
    assert len(json.loads((scan.parent / "out" / "results.json").read_text())) == 1


def test_sigterm_leaves_whole_files_and_says_what_is_missing(scan: Path, tmp_path: Path) -> None:
    """What `docker stop` sends in the middle of a batch."""
    for number in range(40):
        shutil.copy(scan, scan.parent / f"{number:02}.nii.gz")
    command = [sys.executable, "process.py", "--input", scan.parent, "--output", tmp_path / "out"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout
    while "[3/41]" not in running.stdout.readline():
        assert running.poll() is None
    running.terminate()
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 143
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "error: stopped by SIGTERM before all was done."
    masks = list((tmp_path / "out" / "images").iterdir())
    assert 3 <= len(masks) < 41
    assert all(same_geometry(scan, mask) for mask in masks)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) == 41
    listed = {r["outputs"][0]["filename"] for r in results if r["outputs"]}
    assert listed <= {m.name for m in masks}
    assert len(masks) - len(listed) <= 1  # the signal may come between a mask and its line
    assert all("stopped" in r["error_messages"][0] for r in results if not r["outputs"])


def test_predict_is_evalutils_own_interface(model: Model, tmp_path: Path) -> None:
    algorithm = HemorrhageSegmentation(CASES, tmp_path, model, [])
    image = sitk.ReadImage(str(CASES / "phantom-lobar.mha"))
    mask = algorithm.predict(input_image=image)
    assert mask.GetDirection() == image.GetDirection()
    expected = sitk.ReadImage(str(ROOT / "test" / "expected" / "phantom-lobar.mha"))
    assert np.array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(expected))


def test_what_looks_odd_is_told_and_done(bleed: Phantom, tmp_path: Path, light: Path) -> None:
    write_image(np.clip(bleed.volume.hu, -20, 100), bleed.volume, tmp_path / "in" / "windowed.nii.gz")
    done = process("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", light)
    assert "warning: windowed.nii.gz: It is stored in a window" in done.stderr
    assert (tmp_path / "out" / "images" / "windowed.nii.gz").is_file()
