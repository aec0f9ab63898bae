"""The U-Net as a MONAI bundle, for those who work with MONAI's tools.

    python -m training bundle --run RUN --config CONFIG --data FOLDER --out BUNDLE
    python -m monai.bundle verify_net_in_out --net_id network_def --meta_file BUNDLE/configs/metadata.json \
        --config_file BUNDLE/configs/inference.json
    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE \
        --scan scan.nii.gz --mask mask.nii.gz

The bundle's network is torch's; what comes before and after it (working grid, skull strip, threshold) is hemseg's own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from torch import nn

import hemseg
from hemseg.manifest import Manifest
from hemseg.model import Model, load_classifier, load_strip
from hemseg.scan import read
from hemseg.segmentation import segment

from ..config import Config
from ..fitting.trainer import load_network, save_network
from ..networks.unet import build_unet
from ..rounds import later_rounds, round_config
from ..stage_names import stage_names
from .to_onnx import STATES


def bundle_network(
    channels: list[int],
    strides: list[list[int]],
    residual_units: int,
    in_channels: int,
    weights: str = "",
    encoder: str = "",
) -> nn.Module:
    """The network of a bundle: probabilities (n, 1, z, y, x) of patches (n, channel, z, y, x), both float32."""
    from ..config import Encoder, Segmenter

    settings = Segmenter(
        tuple(channels), tuple((s[0], s[1], s[2]) for s in strides), residual_units, encoder=Encoder(encoder)
    )
    network = build_unet(settings, in_channels)
    if weights:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return nn.Sequential(network, nn.Sigmoid()).eval()


class _TorchSession:
    """Stands where ONNX Runtime's session stands in `hemseg.model.Model`."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def get_providers(self) -> list[str]:
        return ["torch"]

    @torch.no_grad()
    def run(self, _: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.network(torch.from_numpy(inputs["image"])).numpy()]


def run_case(network: nn.Module, root: str, scan: str, mask: str) -> float:
    """Segment one scan with a bundle's network and write its mask; the hemorrhage in mL."""
    folder = Path(root) / "configs"
    manifest = Manifest.read(folder)
    strip = load_strip(folder / manifest.strip_file, manifest.strip_sha256) if manifest.strip_file else None
    classifier = load_classifier(folder, manifest)
    result = segment(read(scan), Model(manifest, _TorchSession(network), folder, strip=strip, classifier=classifier))
    result.save(mask)
    return result.volume_ml


def write_bundle(config: Config, run: Path, out: Path) -> None:
    """Write a bundle from the finished run of a configuration.

    Raises:
        FileNotFoundError: the run has not been exported.
    """
    (out / "configs").mkdir(parents=True, exist_ok=True)
    (out / "models").mkdir(exist_ok=True)
    (out / "docs").mkdir(exist_ok=True)
    rounds = later_rounds(config)
    names = stage_names(rounds=rounds)
    own = round_config(config, rounds)
    network = build_unet(own.segmenter, len(own.preprocessing.channels))
    load_network(network, run / names.export / STATES / "unet.safetensors")  # the numbers of the ONNX file
    save_network(network, out / "models" / "model.pt")
    manifest = Manifest.read(run / names.export)
    manifest.write(out / "configs")
    for name in filter(None, (manifest.strip_file, manifest.classifier_file, manifest.kinds_file)):
        shutil.copyfile(run / names.export / name, out / "configs" / name)
    what = f"hemseg {manifest.version}: research only, not a medical device.\n"
    (out / "docs" / "README.md").write_text(f"{what}\nLicence of the weights: {manifest.license}\n")
    (out / "configs" / "metadata.json").write_text(json.dumps(_metadata(manifest), indent=2) + "\n")
    (out / "configs" / "inference.json").write_text(json.dumps(_inference(own), indent=2) + "\n")


def _inference(config: Config) -> dict[str, Any]:
    s = config.segmenter
    network = {
        "_target_": f"{__name__}.bundle_network",
        "channels": s.channels,
        "strides": s.strides,
        "residual_units": s.residual_units,
        "in_channels": len(config.preprocessing.channels),
        **({"encoder": s.encoder.name} if s.encoder.name else {}),
    }
    return {
        "imports": [f"$from {__name__} import run_case"],
        "bundle_root": ".",
        "scan": "scan.nii.gz",
        "mask": "mask.nii.gz",
        "network_def": network,
        "network": {**network, "weights": "$@bundle_root + '/models/model.pt'"},
        "run": ["$print(run_case(@network, @bundle_root, @scan, @mask), 'mL')"],
    }


def _metadata(manifest: Manifest) -> dict[str, Any]:
    def tensor(kind: str, names: tuple[str, ...]) -> dict[str, Any]:
        return {
            "type": kind,
            "format": "segmentation" if kind == "probabilities" else "hounsfield",
            "modality": "CT",
            "num_channels": len(names),
            "spatial_shape": list(manifest.patch),
            "dtype": "float32",
            "value_range": [0, 1],
            "is_patch_data": True,
            "channel_def": {str(i): name for i, name in enumerate(names)},
        }

    return {
        "version": manifest.version,
        "changelog": {manifest.version: f"exported by hemseg {hemseg.__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"hemseg": hemseg.__version__},
        "name": f"hemseg {manifest.name}",
        "task": "Intracranial hemorrhage segmentation on non-contrast head CT",
        "description": "U-Net trained on slice labels alone. Research only, not a medical device.",
        "authors": "the hemseg authors",
        "copyright": f"code MIT; weights {manifest.license}; data see MODEL_CARD.md",
        "network_data_format": {
            "inputs": {"image": tensor("image", manifest.preprocessing.channels)},
            "outputs": {"pred": tensor("probabilities", ("hemorrhage",))},
        },
    }
