from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, same_geometry
from faults import write_faulty
from panimg.image_builders.metaio_mhd_mha import image_builder_mhd

sys.path.insert(0, str(ROOT))
from hemseg.model import Model
from process import HemorrhageSegmentation

CASES = ROOT / "test" / "cases"


def process(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "process.py", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


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
    compare = [sys.executable, ROOT / "test" / "compare_masks.py", CASES, ROOT / "test" / "expected"]
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
    compare = [sys.executable, ROOT / "test" / "compare_masks.py", CASES, ROOT / "test" / "expected", masks]
    done = subprocess.run(compare, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for said in ("spacing differs", "not uint8", "below 0.99", "is missing", "nobody asked for"):
        assert said in done.stderr


def test_the_platform_reads_the_masks(output: Path) -> None:
    """panimg is what Grand Challenge imports outputs with."""
    for mask in (output / "images").glob("*.mha"):
        (result,) = image_builder_mhd(files={mask})
        assert result.segments is not None
        assert set(result.segments) <= {0, 1}
        assert result.voxel_width_mm == pytest.approx(sitk.ReadImage(str(CASES / mask.name)).GetSpacing()[0])


def test_a_bad_case_does_not_lose_the_others(scan: Path, tmp_path: Path) -> None:
    said = write_faulty(scan.parent / "sub folder", scan)
    (scan.parent / "settings.json").write_text("{}")
    done = process("--input", scan.parent, "--output", tmp_path / "out", check=1)
    results = {r["inputs"][0]["filename"]: r for r in json.loads((tmp_path / "out" / "results.json").read_text())}
    assert set(results) == {"case.nii.gz", *said}
    assert results["case.nii.gz"]["error_messages"] == []
    for name, words in said.items():
        assert results[name]["outputs"] == []
        assert words in results[name]["error_messages"][0]
        assert done.stderr.count(f"/{name}:") == 1
    assert [p.name for p in (tmp_path / "out" / "images").iterdir()] == ["case.nii.gz"]
    assert same_geometry(scan, tmp_path / "out" / "images" / "case.nii.gz")


def test_one_name_in_two_folders_is_refused_and_identical_images_are_fine(scan: Path, tmp_path: Path) -> None:
    for name in ("a/same.nii.gz", "b/same.nii.gz", "a_1.nii.gz", "b_1.nii.gz", "1.nii.gz", "01.nii.gz"):
        (scan.parent / name).parent.mkdir(exist_ok=True)
        shutil.copy(scan, scan.parent / name)
    done = process("--input", scan.parent, "--output", tmp_path / "out", check=1)
    assert done.stderr.count("would write the same same.nii.gz") == 2
    masks = {p.name for p in (tmp_path / "out" / "images").iterdir()}
    assert masks == {"case.nii.gz", "a_1.nii.gz", "b_1.nii.gz", "1.nii.gz", "01.nii.gz"}


@pytest.mark.parametrize(("folder", "said"), [("missing", "no such folder"), ("empty", "holds no scans")])
def test_nothing_to_do_is_an_error(tmp_path: Path, folder: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    assert said in process("--input", tmp_path / folder, "--output", tmp_path / "out", check=1).stderr


def test_predict_is_evalutils_own_interface(model: Model, tmp_path: Path) -> None:
    algorithm = HemorrhageSegmentation(CASES, tmp_path, model)
    image = sitk.ReadImage(str(CASES / "phantom-lobar.mha"))
    mask = algorithm.predict(input_image=image)
    assert mask.GetDirection() == image.GetDirection()
    expected = sitk.ReadImage(str(ROOT / "test" / "expected" / "phantom-lobar.mha"))
    assert np.array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(expected))
