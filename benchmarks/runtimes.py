"""The network alone in other runtimes and precisions, for `benchmarks.inference`: ``python -m benchmarks.runtimes``.

The shipped weights in ONNX Runtime as float16 and int8, and the U-Net of the recipe's last round in torch (its weights
do not matter for the time). Two threads each; one JSON line.
"""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from benchmarks.inference import Row, repeated
from hemseg.manifest import Manifest, default_weights
from hemseg.onnx_session import session
from training.config import load_config
from training.networks.unet import build_unet, to_fast_memory_format
from training.rounds import round_config

THREADS = 2


class Patches(CalibrationDataReader):
    """A few patches of noise: enough to calibrate a timing, not a product."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self._left = [rng.random(shape, np.float32) for _ in range(2)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"image": self._left.pop()} if self._left else None


def in_onnxruntime(what: str, path: Path, image: np.ndarray) -> Row:
    """Time a model file."""
    network = session(path, "cpu", THREADS)
    return repeated(what, lambda: network.run(None, {"image": image}))


def rows() -> list[Row]:
    """All rows of the table."""
    weights = default_weights()
    manifest = Manifest.read(weights)
    image = np.random.default_rng(0).random((1, len(manifest.preprocessing.channels), *manifest.patch), np.float32)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        half, whole = Path(folder) / "half.onnx", Path(folder) / "int8.onnx"
        model = OnnxModel(convert_float_to_float16(onnx.load(str(weights / manifest.file)), keep_io_types=True))
        model.topological_sort()
        onnx.save(model.model, str(half))
        found.append(in_onnxruntime(f"ONNX Runtime, float16, {THREADS} threads", half, image))
        quantize_static(
            str(weights / manifest.file),
            str(whole),
            Patches(image.shape),
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
        found.append(in_onnxruntime(f"ONNX Runtime, int8, {THREADS} threads", whole, image))
        torch.set_num_threads(THREADS)
        network = build_unet(round_config(load_config("best"), 1).segmenter, image.shape[1]).eval()
        tensor = torch.from_numpy(image)
    with torch.inference_mode():
        found.append(repeated(f"torch eager, {THREADS} threads", lambda: network(tensor)))
        to_fast_memory_format(network)
        found.append(repeated(f"torch eager, channels last, {THREADS} threads", lambda: network(tensor)))
    return found


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # what the quantizer would rather have been given
    print(json.dumps([asdict(row) for row in rows()]))
