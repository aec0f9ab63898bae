"""The faster graph computes what the exported one does."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import training
from torch import nn

from hemseg.errors import HemsegError
from hemseg.manifest import Manifest, default_weights
from hemseg.model import load
from hemseg.onnx_session import session
from hemseg.preprocessing import Settings
from training.export.graph import optimize_weights, subpixel
from training.export.to_onnx import WithSigmoid, write_onnx


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def answer(path: Path, image: np.ndarray) -> np.ndarray:
    return session(path, "cpu", 1).run(None, {"image": image})[0]


@pytest.mark.parametrize(
    ("stride", "kernel", "bias"),
    [
        ((1, 2, 2), 3, True),  # those of the U-Nets here
        ((2, 2, 2), 3, True),
        ((2, 2, 2), 2, False),
        ((2, 2, 2), 4, True),
        ((3, 2, 1), 5, False),
    ],
)
def test_plain_convolutions_give_the_same_sums(
    stride: tuple[int, ...], kernel: int, bias: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    # output_padding makes each axis just `stride` times as long
    pads = [max(0, -(-(kernel - s) // 2)) for s in stride]
    more = [s - kernel + 2 * p for s, p in zip(stride, pads, strict=True)]
    layer = nn.ConvTranspose3d(3, 5, kernel, stride, tuple(pads), tuple(more), bias=bias)
    image = torch.rand(2, 3, 4, 5, 6)
    write_onnx(layer.eval(), image, tmp_path / "plain.onnx")
    plain = onnx.load(str(tmp_path / "plain.onnx"))
    faster = subpixel(plain)
    onnx.checker.check_model(faster, full_check=True)
    onnx.save(faster, str(tmp_path / "faster.onnx"))
    assert "ConvTranspose" in operators(plain)
    assert "ConvTranspose" not in operators(faster)
    for batch in (image.numpy(), image.numpy()[:1]):
        expected = answer(tmp_path / "plain.onnx", batch)
        assert expected.shape[2:] == tuple(n * s for n, s in zip((4, 5, 6), stride, strict=True))
        assert np.abs(answer(tmp_path / "faster.onnx", batch) - expected).max() < 1e-6


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose3d(4, 4, 3, 2, 1, 1, groups=2),
        nn.ConvTranspose3d(4, 4, 3, 2, 1, 0),  # one voxel short of twice as long
        nn.ConvTranspose3d(4, 4, 3, 2, 2, 1, dilation=2),
    ],
)
def test_what_does_not_fit_stays(layer: nn.Module, tmp_path: Path) -> None:
    write_onnx(layer.eval(), torch.rand(2, 4, 4, 4, 4), tmp_path / "plain.onnx")
    plain = onnx.load(str(tmp_path / "plain.onnx"))
    assert operators(subpixel(plain)) == operators(plain)


def test_the_shipped_graph_is_the_fast_one() -> None:
    model = onnx.load(str(default_weights() / "hemseg.onnx"))
    assert "ConvTranspose" not in operators(model)
    used = {name for node in model.graph.node for name in node.input}
    assert all(tensor.name in used for tensor in model.graph.initializer)


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Weights as an export without the rewriting made them."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv3d(2, 4, 3, 2, 1), nn.PReLU(), nn.ConvTranspose3d(4, 1, 3, 2, 1, 1))
    folder = tmp_path / "weights"
    folder.mkdir()
    write_onnx(WithSigmoid(layers).eval(), torch.rand(1, 2, 4, 8, 8), folder / "old.onnx")
    digest = hashlib.sha256((folder / "old.onnx").read_bytes()).hexdigest()
    Manifest("old", "1", "old.onnx", digest, (4, 8, 8), Settings()).write(folder)
    return folder


def test_older_weights_are_rewritten(older: Path) -> None:
    image = np.random.default_rng(1).random((1, 2, 4, 8, 8), np.float32)
    before = load(older, "cpu")(image)
    assert "rewritten" in training("optimize", older).stdout
    assert "ConvTranspose" not in operators(onnx.load(str(older / "old.onnx")))
    assert np.abs(load(older, "cpu")(image) - before).max() < 1e-6
    assert sorted(p.name for p in older.iterdir()) == ["manifest.json", "old.onnx"]


def test_damaged_weights_are_not_rewritten(older: Path) -> None:
    (older / "old.onnx").write_bytes((older / "old.onnx").read_bytes()[:-1])
    with pytest.raises(HemsegError, match="sha256"):
        optimize_weights(older)
