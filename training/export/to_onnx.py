"""From torch weights to ``hemseg.onnx`` and its manifest: all that inference needs."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from safetensors.torch import save
from torch import Tensor, nn

import hemseg
from hemseg.errors import HemsegError
from hemseg.manifest import Manifest

from ..config import Config
from .graph import subpixel, without_traces

OPSET = 18
EXPORT_VERSION = 2  # raise it when the same network leaves as other numbers; 2: kernels are rounded
Network = TypeVar("Network", bound=nn.Module)
STRIP = "strip.onnx"
STATES = "torch"  # folder beside the manifest: the weights as training has them
SETTINGS = "config.json"  # in it: what their arrays do not show
TOLERANCE = 1e-4
TOLERANCE_HALF = 2e-2  # of a probability; float16 has 11 bits


class WithSigmoid(nn.Module):
    """The exported graph gives probabilities: the sigmoid is inside."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(image).sigmoid()


def export_model(
    network: nn.Module,
    config: Config,
    folder: Path,
    provenance: dict[str, Any],
    strip: Path | None = None,
    beside: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``hemseg.onnx`` and ``manifest.json``; check the one against torch.

    Args:
        network: the U-Net.
        config: the recipe.
        folder: where the files go.
        provenance: how the weights came about.
        strip: the ONNX file of the learned skull strip that the network was trained with; it is copied beside it.
        beside: what the manifest says of further networks in the folder (`export.classifier`).

    Raises:
        HemsegError: ONNX Runtime and torch differ by more than 1e-4 (2e-2 in half precision).
    """
    model = WithSigmoid(network).eval()
    settings = config.segmenter
    image = torch.rand(2, len(config.preprocessing.channels), *settings.patch)
    path = folder / "hemseg.onnx"
    write_onnx(model, image, path)
    onnx.save(subpixel(onnx.load(str(path))), str(path))
    if config.export.half:
        halved = OnnxModel(convert_float_to_float16(onnx.load(str(path)), keep_io_types=True))
        halved.topological_sort()  # the conversion appends its casts at the end
        onnx.save(halved.model, str(path))
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    one = image[:1]  # as at inference; the batch must not have become part of the graph
    with torch.no_grad():
        expected = model(one).numpy()
    difference = float(np.abs(session.run(None, {"image": one.numpy()})[0] - expected).max())
    tolerance = TOLERANCE_HALF if config.export.half else TOLERANCE
    if difference > tolerance:
        raise HemsegError(f"{path}: ONNX Runtime differs from torch by {difference:.2g}, more than {tolerance}.")
    if strip:
        shutil.copyfile(strip, folder / STRIP)
    Manifest(
        name=config.name,
        version=hemseg.__version__,
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        patch=settings.patch,
        preprocessing=config.preprocessing,
        threshold=settings.threshold,
        outline_threshold=settings.outline_threshold,
        min_lesion_ml=settings.min_lesion_ml,
        min_peak=settings.min_peak,
        max_median_hu=settings.max_median_hu,
        strip_file=STRIP if strip else "",
        strip_sha256=hashlib.sha256(strip.read_bytes()).hexdigest() if strip else "",
        license=config.weights_license,
        operating_points=settings.operating_points,
        flips=settings.flips,
        **(beside or {}),
        provenance=provenance | {"seed": config.seed, "commit": _commit()},
    ).write(folder)
    return {"megabytes": round(path.stat().st_size / 1e6, 1), "difference_to_torch": difference}


def write_states(networks: dict[str, nn.Module], config: Config, folder: Path) -> None:
    """The weights that training goes on from, ``<name>.safetensors`` each: arrays, which run no code when read.

    Kernels are stored in half precision, which loses nothing of networks that are `rounded`. `network_settings` stand
    beside them.
    """
    folder.mkdir(exist_ok=True)
    for name, network in networks.items():
        values = network.state_dict().items()
        state = {key: (value.half() if _is_kernel(value) else value).contiguous() for key, value in values}
        (folder / f"{name}.safetensors").write_bytes(save(state))  # save_file lets the owner alone read it
    (folder / SETTINGS).write_text(json.dumps(network_settings(config), indent=1) + "\n")


def rounded(network: Network) -> Network:
    """A copy whose kernels fit into half precision (11 bits): ONNX and the states beside it then hold the same numbers,
    and the states take half of the space."""
    result = copy.deepcopy(network)
    with torch.no_grad():
        for value in result.state_dict().values():
            if _is_kernel(value):
                value.copy_(value.half())
    return result


def _is_kernel(value: Tensor) -> bool:
    """A kernel; scales, shifts and statistics are small, and some of them have a wide range."""
    return value.ndim > 1 and value.is_floating_point()


def network_settings(config: Config) -> dict[str, dict[str, Any]]:
    """What a classifier and a U-Net were given, and how they are put together: plain values by part and field."""
    classifier, segmenter = dataclasses.asdict(config.classifier), dataclasses.asdict(config.segmenter)
    shown = ("backbone", "widths", "output_stride", "image_size", "field_mm", "stripped", "leveled", "windows")
    return {
        "preprocessing": dataclasses.asdict(config.preprocessing),
        "classifier": {key: classifier[key] for key in shown},
        "segmenter": {key: segmenter[key] for key in ("channels", "strides", "residual_units")}
        | {"encoder": config.segmenter.encoder.name},
    }


def write_onnx(
    model: nn.Module,
    image: Tensor,
    path: Path,
    shapes: Any = None,
    names: tuple[str, ...] = ("image", "probability"),
) -> None:
    """Write a network as ONNX, as torch exports it, but for what torch notes about the code.

    Args:
        image: an example of its input.
        shapes: torch's ``dynamic_shapes``; by default the batch is free, and the patch is that of ``image``.
        names: of input and outputs.
    """
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (image,),
            str(path),
            input_names=[names[0]],
            output_names=list(names[1:]),
            dynamic_shapes=shapes or ({0: torch.export.Dim("batch", min=1, max=64)},),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    onnx.save(without_traces(onnx.load(str(path))), str(path))


def _commit() -> str:
    """The commit of the checkout that trained, with ``+`` if it had changes; '' outside one."""
    try:
        where = Path(__file__).parent
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=where, capture_output=True, text=True, check=True
        )
        state = subprocess.run(["git", "status", "--porcelain"], cwd=where, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit.stdout.strip() + ("+" if state.stdout.strip() else "")
