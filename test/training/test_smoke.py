"""The whole pipeline on phantoms, as a user runs it, and what must hold for what it leaves."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, dice, training
from monai.bundle import verify_net_in_out
from safetensors.torch import load_file

from hemseg.model import load
from hemseg.scan import read
from hemseg.segmentation import segment
from training.config import load_config
from training.data.datasets import load_dataset
from training.data.phantom import Grid, make_phantom
from training.evaluation.evaluate import network_predictor, threshold_predictor

SAME_EVERYWHERE = ("--precision", "32-true")  # on processors with bfloat16, too


pytestmark = pytest.mark.slow  # a whole training of three minutes, whichever of them is run


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline on phantoms, from slice labels to ONNX, as a user would run it."""
    run = tmp_path_factory.mktemp("runs") / "smoke"
    training("all", "--config", "training/configs/smoke.yaml", "--run", run, *SAME_EVERYWHERE)
    return run


def test_smoke_finds_hemorrhage_in_unseen_phantoms(smoke: Path) -> None:
    figures = json.loads((smoke / "evaluate" / "summary.json").read_text())
    assert figures["cases"] >= 20
    assert figures["dice_mean"] > 0.5
    rows = list(csv.DictReader((smoke / "evaluate" / "per_case.csv").open()))
    assert len(rows) == figures["cases"]
    assert figures["dice_mean"] == pytest.approx(np.mean([float(r["dice"]) for r in rows]), abs=1e-3)


@pytest.fixture(scope="session")
def control(smoke: Path) -> dict[str, float]:
    """Mean Dice on the test phantoms: of the run, of the same with permuted labels, of a threshold."""
    output = training("control", "--config", "smoke", "--run", smoke, *SAME_EVERYWHERE).stdout
    last = [line.rsplit(" ", 1) for line in output.splitlines()[-3:]]  # before them stand Lightning's bars
    return {name: float(mean) for name, mean in last}


def dice_of_cases(folder: Path) -> list[float]:
    return [float(row["dice"]) for row in csv.DictReader((folder / "per_case.csv").open())]


def test_smoke_fails_with_permuted_labels(smoke: Path, control: dict[str, float]) -> None:
    """Training on nonsense gives nonsense."""
    assert control["slice labels"] == pytest.approx(np.mean(dice_of_cases(smoke / "evaluate")), abs=1e-3)
    assert control["permuted slice labels"] < 0.5 * control["slice labels"]


def test_stages_with_permuted_labels_are_those_of_control_and_say_so(smoke: Path, control: dict[str, float]) -> None:
    done = training("export", "--config", "smoke", "--permuted", "--run", smoke, *SAME_EVERYWHERE)
    assert "segment@permuted: done before, skipped" in done.stderr
    assert load(smoke / "export@permuted", "cpu").manifest.provenance["supervision"] == "permuted slice labels"
    both = training("export", "--config", "smoke", "--permuted", "--masks-train", "--run", smoke, check=1)
    assert "--masks-train and --permuted are two different trainings" in both.stderr


def test_learning_beats_a_threshold(smoke: Path, control: dict[str, float]) -> None:
    """Without learning, calcifications and sinuses are called blood, so half of these unseen heads have none of it.

    The four healthy ones of the test split are too few: one more or less that is clean moves the mean by 0.05.
    """
    settings = load_config("smoke")
    grid = Grid(settings.phantoms.shape, settings.phantoms.spacing)
    healthy = [make_phantom(seed, (), grid) for seed in range(9000, 9012)]
    mean = {}
    for name, predict in (
        ("evaluate", network_predictor(smoke / "export")),
        ("evaluate@baseline", threshold_predictor(settings.preprocessing)),
    ):
        clean = [float(not predict(phantom.volume).mask.any()) for phantom in healthy]
        mean[name] = np.mean(dice_of_cases(smoke / name) + clean)
    assert np.mean(dice_of_cases(smoke / "evaluate@baseline")) == pytest.approx(
        control["threshold without learning"], abs=1e-3
    )
    assert 0 < mean["evaluate@baseline"] < mean["evaluate"] - 0.1


def test_smoke_leaves_weights_that_inference_loads(smoke: Path) -> None:
    model = load(smoke / "export", "cpu")
    assert model.manifest.provenance["supervision"] == "slice labels"
    assert model.manifest.provenance["config"] == "smoke"
    assert model.classifier is not None  # the second opinion
    assert model.manifest.classifier_field == (112, 96)  # of 2 mm
    assert model.manifest.preprocessing == load_config("smoke").preprocessing
    done = json.loads((smoke / "export" / "done.json").read_text())
    assert done["figures"]["difference_to_torch"] < 1e-4
    assert list((smoke / "panels").glob("*.png"))
    kept = (("unet", "segment"), ("classifier", "sequence"), ("classifier_unpainted", "classify/unpainted"))
    for name, stage in kept:
        state = load_file(smoke / "export" / "torch" / f"{name}.safetensors")
        trained = torch.load(smoke / stage / "network.pt", weights_only=True)
        assert state.keys() == trained.keys()
        assert all(torch.equal(state[key], trained[key].to(state[key])) for key in state)
        assert {state[key].dtype for key in state if state[key].ndim > 1} == {torch.float16}


def test_status_tells_the_stages(smoke: Path, tmp_path: Path) -> None:
    output = training("status", "--run", smoke).stdout
    assert output.count("done") >= 8
    for word in ("pseudolabel", "dice_mean", "minutes"):
        assert word in output
    assert "not the folder of a run" in training("status", "--run", tmp_path, check=1).stderr
    assert "it is empty: is a variable not set?" in training("status", "--run", "", check=2).stderr


def test_smoke_is_skipped_when_it_is_done(smoke: Path) -> None:
    done = training("all", "--config", "smoke", "--run", smoke)
    assert done.stderr.count("done before, skipped") >= 8


def test_weak_stages_need_no_masks(smoke: Path, tmp_path: Path) -> None:
    """The same run on the same data without any mask gives the same pseudo-labels: supervision is slice labels."""
    source = next(smoke.glob("phantoms-*"))
    shutil.copytree(source, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "masks")
    with_masks, without = load_dataset(source), load_dataset(tmp_path / "data")
    assert [(c.name, c.split, c.labels) for c in with_masks.cases] == [
        (c.name, c.split, c.labels) for c in without.cases
    ]
    assert all(c.reference is None for c in without.cases)
    for stage in ("prepare", "classify", "sequence", "cam"):
        shutil.copytree(smoke / stage, tmp_path / "run" / stage)
    from training.pipeline.context import Context
    from training.pipeline.steps import make_pseudolabels

    context = Context(load_config("smoke"), without, tmp_path / "run")
    make_pseudolabels(context, tmp_path)
    cases = context.cases("val")
    assert cases
    for case in cases:
        a, b = (np.load(f / f"{case.name}.npz")["mask"] for f in (smoke / "pseudolabel", tmp_path))
        assert np.array_equal(a, b)
        assert not a[case.labels != 1].any()


def test_monai_bundle_verifies_and_runs(smoke: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    training("bundle", "--config", "smoke", "--run", smoke, "--out", bundle)
    meta, config = bundle / "configs" / "metadata.json", bundle / "configs" / "inference.json"
    scan = sorted(next(smoke.glob("phantoms-*")).glob("images/*"))[-2]
    verify_net_in_out(net_id="network_def", meta_file=str(meta), config_file=str(config))
    run = ["run", "--config_file", config, "--bundle_root", bundle, "--scan", scan, "--mask", tmp_path / scan.name]
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *map(str, run)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, bundled = segment(read(scan), load(smoke / "export", "cpu")).mask, read(tmp_path / scan.name).hu
    assert dice(bundled, ours) > 0.999 or not (ours.any() or bundled.any())
    metadata = json.loads(meta.read_text())  # the required fields of MONAI's schema, which needs the network
    required = {"version", "changelog", "monai_version", "pytorch_version", "numpy_version", "authors", "copyright"}
    assert required | {"task", "description", "network_data_format"} <= set(metadata)
