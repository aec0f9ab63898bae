"""The slice classifier as inference asks it (`hemseg.second_opinion`): sampling, windows and sigmoid are inside."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from hemseg.errors import HemsegError

from ..config import Config
from ..networks.field_sampling import FieldSampling, field_size
from ..networks.slice_network import SliceNetwork
from .to_onnx import TOLERANCE, write_onnx

CLASSIFIER = "classifier.onnx"


class SliceAnswers(nn.Module):
    """HU (n, y, x) of fields of view -> probability of hemorrhage in each slice, (n,): the mean of all networks'; and
    the feature maps that it is made of, (n, channel, y', x'), all networks' together: kinds are read off them
    (`hemseg.kinds`)."""

    def __init__(self, networks: list[SliceNetwork], config: Config) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.sampled = FieldSampling(field_size(config), config.classifier.image_size)

    def forward(self, hu: Tensor) -> tuple[Tensor, Tensor]:
        slices = self.sampled(hu)
        networks = cast("list[SliceNetwork]", list(self.networks))
        maps = [network.stages(slices)[-1] for network in networks]
        logits = [network.fc(m.mean(dim=(2, 3)))[:, 0] for network, m in zip(networks, maps, strict=True)]
        return torch.stack(logits).sigmoid().mean(dim=0), torch.cat(maps, dim=1)


def export_classifier(networks: list[SliceNetwork], config: Config, folder: Path) -> dict[str, Any]:
    """Write ``classifier.onnx``; check it against torch.

    Args:
        networks: one, or several whose probabilities are averaged.
        config: of all of them.
        folder: where to.

    Returns:
        What the manifest says of it.

    Raises:
        HemsegError: ONNX Runtime and torch differ by more than 1e-4.
    """
    model, path = SliceAnswers(networks, config).eval(), folder / CLASSIFIER
    slices = torch.rand(2, *field_size(config)) * 100 - 20
    write_onnx(model, slices, path, names=("slices", "probability", "features"))
    answers = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"slices": slices.numpy()})
    with torch.no_grad():
        pairs = zip(answers, model(slices), strict=True)
        difference = max(float(np.abs(one - other.numpy()).max()) for one, other in pairs)
    if difference > TOLERANCE:
        raise HemsegError(f"{path}: ONNX Runtime differs from torch by {difference:.2g}, more than {TOLERANCE}.")
    return {
        "classifier_file": CLASSIFIER,
        "classifier_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "classifier_field": field_size(config),
        "min_slice_probability": config.segmenter.min_slice_probability,
        "doubt_slice_probability": config.segmenter.doubt_slice_probability,
    }
