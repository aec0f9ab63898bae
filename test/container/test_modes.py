"""The entry point as the platform calls it: what it writes in each mode, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, process, same_geometry
from panimg.image_builders.metaio_mhd_mha import image_builder_mhd

from hemseg import __version__
from hemseg.model import Model

SCAN = ROOT / "test" / "cases" / "phantom-intraparenchymal.nii.gz"
EXPECTED = ROOT / "test" / "expected" / "phantom-intraparenchymal.nii.gz"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty input folder."""
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


def mount(source: Path, relative_path: str, slug: str = "ct-image", scan: Path = SCAN) -> Path:
    """Lay out a case as the platform does; returns the image."""
    image = source / relative_path / "4f1c9a.mha"
    image.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.ReadImage(str(scan)), str(image))
    described = {"slug": slug, "kind": "Image", "super_kind": "Image", "relative_path": relative_path}
    item = {"socket": described, "value": None, "file": None, "image": {"pk": "1", "name": "head.mha"}, "pk": 7}
    (source / "inputs.json").write_text(json.dumps([item]))
    return image


def written(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def is_expected(mask: Path, scan: Path) -> None:
    """The sample's mask, with its scan's geometry, and readable for the platform (panimg)."""
    assert same_geometry(mask, scan)
    image, expected = sitk.ReadImage(str(mask)), sitk.ReadImage(str(EXPECTED))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected))
    if mask.suffix == ".mha":
        (read,) = image_builder_mhd(files={mask})
        assert set(read.segments or ()) == {0, 1}
        assert (read.voxel_width_mm, read.voxel_depth_mm) == pytest.approx(image.GetSpacing()[::2])


def is_report(path: Path, model: Model) -> None:
    report: dict[str, Any] = json.loads(path.read_text())
    mask = sitk.ReadImage(str(EXPECTED))
    volume = sitk.GetArrayFromImage(mask).sum() * np.prod(mask.GetSpacing()) / 1000
    assert report["volume_ml"] == pytest.approx(volume, abs=1e-3)
    assert sum(lesion["volume_ml"] for lesion in report["lesions"]) == pytest.approx(volume, abs=0.01)
    assert report["weights"]["sha256"] == model.manifest.sha256
    assert report["hemseg"] == __version__
    assert report["device"] == "CPUExecutionProvider"
    assert report["seconds"] > 0
    for lesion in report["lesions"]:
        assert lesion["side"] in ("left", "right", "midline")
        assert 40 < lesion["mean_hu"] < 100


def test_gc(source: Path, tmp_path: Path, model: Model) -> None:
    image = mount(source, "images/ct")
    done = process("--input", source, "--output", tmp_path / "out")
    assert "mode gc, 1 scan" in done.stdout
    assert written(tmp_path / "out") == {"images/hemorrhage-segmentation/output.mha"}
    is_expected(tmp_path / "out/images/hemorrhage-segmentation/output.mha", image)


def test_gc_with_sockets_of_ones_own(source: Path, tmp_path: Path, model: Model) -> None:
    image = mount(source, "images/ct")
    other = mount(source, "images/mr", "mr")
    both = [json.loads((source / "inputs.json").read_text())[0]]
    mount(source, "images/ct")
    both += json.loads((source / "inputs.json").read_text())
    (source / "inputs.json").write_text(json.dumps(both))
    assert other.exists()
    sockets = {"HEMSEG_OUTPUT_SLUG": "ich", "HEMSEG_REPORT_PATH": "ich-report.json"}
    done = process("--input", source, "--output", tmp_path / "out", check=1, **sockets)
    assert "several image sockets" in done.stderr
    assert not (tmp_path / "out").exists()
    process("--input", source, "--output", tmp_path / "out", **sockets, HEMSEG_INPUT_SLUGS="ct-image")
    assert written(tmp_path / "out") == {"images/ich/output.mha", "ich-report.json"}
    is_expected(tmp_path / "out/images/ich/output.mha", image)
    is_report(tmp_path / "out/ich-report.json", model)


@pytest.mark.parametrize("relative", ["images", ""])
def test_gc_generic(source: Path, tmp_path: Path, model: Model, relative: str) -> None:
    image = mount(source, relative, "generic-medical-image")
    done = process("--input", source, "--output", tmp_path / "out", HEMSEG_REPORT_PATH="report.json")
    assert "mode gc-generic" in done.stdout
    assert written(tmp_path / "out") == {"images/4f1c9a.mha", "results.json", "report.json"}
    is_expected(tmp_path / "out/images/4f1c9a.mha", image)
    is_report(tmp_path / "out/report.json", model)
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert entry["outputs"] == [{"type": "metaio_image", "filename": "4f1c9a.mha"}]


def test_instance(source: Path, tmp_path: Path) -> None:
    shutil.copy(SCAN, source / "001.nii.gz")
    os.symlink(SCAN, source / "Schädel 002.nii.gz")  # a link to a file counts as that file
    (source / "003.nii.gz").write_text("no scan")
    (tmp_path / "predict").mkdir()
    folders = ("--input", source, "--output", tmp_path / "out", "--predict", tmp_path / "predict")
    done = process(*folders, check=1)
    assert done.stderr.count("error: ") == 2
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 3 scans failed; the first: ")
    assert done.stderr.count("003.nii.gz") == 2
    assert written(tmp_path / "predict") == {"001.nii.gz", "Schädel 002.nii.gz"}
    assert not (tmp_path / "out").exists()
    is_expected(tmp_path / "predict" / "001.nii.gz", SCAN)
    is_expected(tmp_path / "predict" / "Schädel 002.nii.gz", SCAN)


def test_the_mode_can_be_named(source: Path, tmp_path: Path, light: Path) -> None:
    mount(source, "images/ct")
    process("--input", source, "--output", tmp_path / "a", "--mode", "legacy", "--weights", light)
    assert written(tmp_path / "a") == {"images/4f1c9a.mha", "results.json"}
    process("--input", source, "--output", tmp_path / "b", "--weights", light, HEMSEG_MODE="legacy")
    assert written(tmp_path / "b") == written(tmp_path / "a")
    said = process("--input", source, "--output", tmp_path / "c", "--mode", "instance", check=1).stderr
    assert "holds no scans" in said
    said = process("--input", source, "--output", tmp_path / "c", HEMSEG_MODE="exec", check=1).stderr
    assert "mode 'exec' is not known" in said
    assert not (tmp_path / "c").exists()


def test_a_single_case_that_fails_leaves_nothing(source: Path, tmp_path: Path) -> None:
    mount(source, "images/ct").write_text("no scan")
    done = process("--input", source, "--output", tmp_path / "out", check=1, HEMSEG_REPORT_PATH="report.json")
    assert "4f1c9a.mha: cannot be read" in done.stderr
    assert not (tmp_path / "out").exists() or not written(tmp_path / "out")


def test_weights_of_the_platforms_tarball_and_their_faults(source: Path, tmp_path: Path) -> None:
    mount(source, "images/ct")
    weights = tmp_path / "weights"
    shutil.copytree(ROOT / "weights", weights)
    (weights / "sockets.yaml").write_text("output_slug: from-the-tarball\n")
    call = ("--input", source, "--output", tmp_path / "out", "--weights", weights)
    process(*call)
    assert written(tmp_path / "out") == {"images/from-the-tarball/output.mha"}
    (weights / "hemseg.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "Git LFS" in process(*call, check=1).stderr
    (weights / "hemseg.onnx").unlink()
    assert "hemseg.onnx" in process(*call, check=1).stderr


def test_cuda_is_strict_and_auto_says_that_it_falls_back(source: Path, tmp_path: Path) -> None:
    mount(source, "images/ct")
    said = process("--input", source, "--output", tmp_path / "out", "--device", "cuda", check=1).stderr
    assert said.count("\n") == 1
    assert "cuda" in said.lower()
