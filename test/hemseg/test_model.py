from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from hemseg.errors import HemsegError
from hemseg.manifest import Manifest, default_weights
from hemseg.model import Model, load


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the weights that a test may break."""
    return Path(shutil.copytree(ROOT / "weights", tmp_path / "weights"))


def changed(weights: Path, **values: object) -> Path:
    manifest = json.loads((weights / "manifest.json").read_text())
    (weights / "manifest.json").write_text(json.dumps(manifest | values))
    return weights


def test_the_shipped_weights_load_and_give_probabilities(model: Model) -> None:
    manifest = model.manifest
    assert default_weights() == ROOT / "weights"
    patch = np.random.default_rng(0).random((2, len(manifest.preprocessing.channels), *manifest.patch), np.float32)
    probability = model(patch)
    assert probability.shape == (2, 1, *manifest.patch)
    assert probability.min() >= 0
    assert probability.max() <= 1
    assert np.abs(model(patch[1:]) - probability[1:]).max() < 1e-5  # a batch changes nothing
    assert model.provider == "CPUExecutionProvider"


def test_flips_average_the_answers_to_a_patch_and_to_its_mirror_image(weights: Path) -> None:
    once, twice = [load(changed(weights, flips=flips), "cpu") for flips in (False, True)]
    shape = (1, len(once.manifest.preprocessing.channels), *once.manifest.patch)
    patch = np.random.default_rng(0).random(shape, np.float32)
    mirrored = once(patch[..., ::-1])[..., ::-1]
    assert np.abs(once(patch) - mirrored).max() > 1e-3
    assert np.allclose(twice(patch), (once(patch) + mirrored) / 2, atol=1e-6)
    assert np.allclose(twice(patch[..., ::-1]), twice(patch)[..., ::-1], atol=1e-6)


def test_manifest_survives_writing(tmp_path: Path, model: Model) -> None:
    model.manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == model.manifest


def test_an_operating_point_changes_what_is_asked_for_and_nothing_else(weights: Path) -> None:
    changed(weights, operating_points={"sensitive": {"min_peak": 0.6}})
    model = load(weights, "cpu")
    sensitive = model.at("sensitive")
    assert (sensitive.manifest.min_peak, sensitive.manifest.operating_point) == (0.6, "sensitive")
    assert sensitive.manifest.threshold == model.manifest.threshold
    assert model.manifest.operating_point == "balanced"
    assert model.at("") is model.at("balanced") is model
    with pytest.raises(HemsegError, match="none of that name; give balanced, sensitive"):
        model.at("wild")


@pytest.mark.parametrize("values", [{"min_peak": 2.0}, {"patch": [1, 1, 1]}, {}, {"min_peak": "high"}])
def test_an_operating_point_sets_a_threshold_within_range(weights: Path, values: dict[str, object]) -> None:
    changed(weights, operating_points={"odd": values})
    with pytest.raises(HemsegError, match=r"not a valid manifest .*operating_points\.odd"):
        Manifest.read(weights)


def test_damaged_weights_get_a_clear_sentence(weights: Path) -> None:
    onnx = weights / "hemseg.onnx"
    content = onnx.read_bytes()
    onnx.write_bytes(content[: len(content) // 2])
    with pytest.raises(HemsegError, match="does not match the manifest's sha256"):
        load(weights)
    onnx.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(HemsegError, match="Git LFS pointer"):
        load(weights)
    onnx.unlink()
    with pytest.raises(HemsegError, match="cannot be read"):
        load(weights)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": 99}, "update hemseg"),
        ({"format": None}, "not a hemseg manifest"),
        ({"patch": None, "surprise": 1}, "surprise"),
        ({"preprocessing": {"hu_range": [100, -20]}}, "hu_range"),
        ({"preprocessing": 3}, "not a valid manifest"),
        ({"flips": 1}, "flips should be true or false"),
        ({"threshold": True}, "threshold should be a number"),
    ],
)
def test_wrong_manifests_get_a_clear_sentence(weights: Path, values: dict, said: str) -> None:
    with pytest.raises(HemsegError, match=said):
        load(changed(weights, **values))


def test_missing_or_broken_manifest(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="no such file"):
        load(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(HemsegError, match="cannot be read as a manifest"):
        load(tmp_path)


def test_devices() -> None:
    with pytest.raises(HemsegError, match="not known"):
        load(device="tpu")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(HemsegError, match="cuda was asked for"):
            load(device="cuda")
        assert load(device="auto").provider == "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (np.full((1, 1, 2, 3, 4), np.nan, np.float32), "values from nan to nan"),
        (np.float32([0.5] * 23 + [np.nan]).reshape(1, 1, 2, 3, 4), "values from nan"),
        (np.full((1, 1, 2, 3, 4), np.inf, np.float32), "inf"),
        (np.full((1, 1, 2, 3, 4), 1.5, np.float32), "to 1.5"),
        (np.full((1, 1, 2, 3, 4), -3.0, np.float32), "from -3"),
        (np.ones((1, 1, 1, 1, 1), np.float32), "shape (1, 1, 1, 1, 1)"),  # it would be spread over the whole patch
        (np.ones((1, 2, 2, 3, 4), np.float32), "shape (1, 2, 2, 3, 4)"),
        (np.ones((1, 1, 2, 3, 4), np.uint8), "uint8"),
        ([1.0], "list"),
        (None, "NoneType"),
    ],
)
def test_what_a_network_answers_is_checked(model: Model, answer: object, said: str) -> None:
    class Session:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

        def run(self, *_: object) -> list[object]:
            return [answer]

    broken = Model(model.manifest, Session(), Path("weights"))
    with pytest.raises(HemsegError, match=re.escape(said)):
        broken(np.zeros((1, 2, 2, 3, 4), np.float32))
