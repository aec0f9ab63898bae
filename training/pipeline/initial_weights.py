"""Weights that a training starts from in place of random ones: hemseg's own, those of a run, or of any export.

An export keeps the torch weights of classifier and U-Net in ``torch/`` beside its manifest (`training.export`), with
the settings that their arrays do not show in ``torch/config.json``. What they may be used for stands in the manifest,
and holds for what is trained from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from hemseg.errors import HemsegError, first_line
from hemseg.manifest import MANIFEST, Manifest, default_weights

from ..config import Config, classifier_settings, load_config
from ..export.to_onnx import SETTINGS, STATES, network_settings
from ..networks.slice_network import SliceNetwork, untrained_network

LICENSE = "LICENSE"  # a file beside the manifest
CARRIED_OVER = "; carried over from the weights that training started from"
UNRESTRICTED_LICENSE = "MIT"  # the licence that adds no condition to another one
MAX_NAMED = 3  # arrays or settings in a sentence


@dataclass(frozen=True)
class InitialWeights:
    """Torch weights on disk, with the manifest of the weights that they belong to.

    Attributes:
        folder: with ``unet.safetensors`` and ``classifier.safetensors``.
        manifest: of the export.
    """

    folder: Path
    manifest: Manifest

    @property
    def unet(self) -> Path:
        """The U-Net's file."""
        return self.folder / "unet.safetensors"

    @property
    def classifier(self) -> Path:
        """The slice classifier's file."""
        return self.folder / "classifier.safetensors"

    @property
    def unpainted(self) -> Path:
        """The file of the classifier without painted slices; the classifier's, where there is none."""
        own = self.folder / "classifier_unpainted.safetensors"
        return own if own.is_file() else self.classifier

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of both files, by network."""
        files = {"unet": self.unet, "classifier": self.classifier}
        return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}

    @property
    def provenance(self) -> dict[str, Any]:
        """What the manifest of the trained weights says about those that they started from."""
        initial = self.manifest
        inherited = ("data", "supervision", "initial_weights", "classifier_began_with", "unet_began_with")
        return {
            "name": initial.name,
            "version": initial.version,
            "sha256": initial.sha256,
            "license": initial.license,
            "torch_sha256": self.hashes,
            **{key: initial.provenance[key] for key in inherited if key in initial.provenance},
        }

    def check(self, config: Config) -> None:
        """Compare the settings that arrays do not show: windows, field of view, working grid.

        Raises:
            HemsegError: the configuration gives the networks something else than they learned from.
        """
        expected = json.loads(json.dumps(network_settings(config)))
        if (self.folder / SETTINGS).is_file():
            stored = _read_settings(self.folder / SETTINGS)
        else:  # weights of an older hemseg: the manifest has the working grid at least
            stored = {"preprocessing": json.loads(json.dumps(dataclasses.asdict(self.manifest.preprocessing)))}
        if "segmenter" in stored:  # exports from before there were encoders
            stored["segmenter"] = {"encoder": ""} | stored["segmenter"]
        differing = [
            f"{part}.{key} is {value!r} there and {expected[part].get(key)!r} here"
            for part, values in stored.items()
            if part in expected
            for key, value in values.items()
            if key in expected[part] and expected[part][key] != value
        ]
        if differing:
            made_with = self.manifest.provenance.get("config", "unknown")
            encoder = stored.get("segmenter", {}).get("encoder", "")
            later = f", with `segmenter: {{encoder: {{name: {encoder}}}}}` as finetune.yaml has it" if encoder else ""
            raise HemsegError(
                f"{self.folder}: configuration {config.name} does not fit these weights ({_listed(differing)}); extend "
                f"the configuration that they were made with ({made_with}){later}."
            )


def find_initial_weights(name: str) -> InitialWeights | None:
    """The weights that ``--init`` names: ``weights`` for hemseg's own, a run, an export's folder, or its ``torch``.

    Returns:
        None where it names none.

    Raises:
        HemsegError: there are no torch weights, or no manifest that says what they may be used for.
    """
    if not name:
        return None
    root = default_weights() if name == "weights" else Path(name)
    places = (root, root / "export") if root.name != STATES else (root.parent,)
    for folder in places:
        found = folder / STATES
        if (found / "unet.safetensors").is_file() and (found / "classifier.safetensors").is_file():
            return InitialWeights(found, Manifest.read(folder))
    if (root / MANIFEST).is_file() or (root / "export" / MANIFEST).is_file():
        raise HemsegError(
            f"{root}: has weights for inference, but no {STATES}/unet.safetensors and {STATES}/classifier.safetensors "
            "beside them, which training goes on from; export again, or take `weights` of a clone (a wheel has those "
            "for inference alone)."
        )
    raise HemsegError(
        f"{root}: has no weights to start from; give `weights`, a finished run, or the folder of an export."
    )


def load_initial(network: nn.Module, path: Path) -> None:
    """Put arrays of a safetensors file into a network, in place.

    Raises:
        HemsegError: it cannot be read, or its arrays are not those of the network.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HemsegError(f"{path}: cannot be read as safetensors ({first_line(error)}).") from None
    own = network.state_dict()
    differing = [f"{key} is missing" for key in own if key not in state]
    differing += [f"{key} is not in the network" for key in state if key not in own]
    differing += [
        f"{key} is {tuple(state[key].shape)} there and {tuple(value.shape)} here"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    if differing:
        raise HemsegError(
            f"{path}: is not of the network that the configuration describes ({_listed(differing)}); extend the "
            "configuration that the weights were made with."
        )
    network.load_state_dict(state)


def classifier_of(weights: InitialWeights) -> tuple[SliceNetwork, Config]:
    """The slice classifier of an export, with the settings that it was trained with.

    Raises:
        HemsegError: nothing says with which settings, or they do not fit.
    """
    preprocessing = weights.manifest.preprocessing
    path = weights.folder / SETTINGS
    if path.is_file():
        settings = classifier_settings(_read_settings(path).get("classifier"), str(path))
    else:  # of an older hemseg
        settings = load_config(str(weights.manifest.provenance.get("config", "unknown"))).classifier
    config = Config(weights.manifest.name, preprocessing=preprocessing, classifier=settings)
    network = untrained_network(settings)
    load_initial(network, weights.classifier)
    return network.eval(), config


def initial_hash(initial: InitialWeights | None, network: str) -> tuple[str, ...]:
    """Hash of the weights that a network starts from, for the fingerprint of its stage; empty without any."""
    return (initial.hashes[network],) if initial else ()


def with_combined_license(config: Config, initial: InitialWeights | None) -> Config:
    """The configuration with the licence of the weights that come out."""
    if initial is None:
        return config
    return dataclasses.replace(
        config, weights_license=combined_license(config.weights_license, initial.manifest.license)
    )


def copy_license(initial: InitialWeights, folder: Path) -> None:
    """Put the text of the initial weights' licence beside what was trained from them, where there is one."""
    text = initial.folder.parent / LICENSE
    if text.is_file():
        shutil.copyfile(text, folder / LICENSE)


def combined_license(own: str, initial: str) -> str:
    """The licence of weights that were trained from others: conditions of either hold.

    Args:
        own: what the configuration says about the data of this training.
        initial: of the weights that it started from.
    """
    before = initial.removesuffix(CARRIED_OVER)
    if before in (UNRESTRICTED_LICENSE, own) or own.endswith(before + CARRIED_OVER):
        return own
    if own == UNRESTRICTED_LICENSE or before.startswith(f"{own}; and "):
        return before + CARRIED_OVER
    return f"{own}; and {before}{CARRIED_OVER}"


def combined_supervision(own: str, initial: InitialWeights | None) -> str:
    """What labels a network has seen, with those of the weights that it started from where they were others."""
    before = str(initial.manifest.provenance.get("supervision", "")) if initial else ""
    return own if before in ("", own) else f"{own}; started from weights that learned from {before}"


def _read_settings(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = json.loads(path.read_text())
        return {part: dict(of_part) for part, of_part in values.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise HemsegError(f"{path}: cannot be read as the settings of networks ({first_line(error)}).") from None


def _listed(texts: list[str]) -> str:
    more = len(texts) - MAX_NAMED
    return ", ".join(texts[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
