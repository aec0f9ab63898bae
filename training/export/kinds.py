"""What names kinds of hemorrhage, as inference reads it: the network as ONNX, the numbers, the manifest."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch

from hemseg.errors import HemsegError
from hemseg.kinds import Head
from hemseg.manifest import FORMAT, Manifest

from ..networks.kind_network import KindNetwork
from .to_onnx import TOLERANCE, write_onnx

NETWORK, NUMBERS = "kinds.onnx", "kinds.npz"


def export_kinds(network: KindNetwork | None, head: Head, folder: Path) -> float:
    """Write ``kinds.npz`` and, with a network, ``kinds.onnx``; check the network against torch.

    Returns:
        The largest difference to torch, relative to the largest feature; 0 without a network.

    Raises:
        HemsegError: they differ by more than 1e-4 of it.
    """
    head.write(folder / NUMBERS)
    path = folder / NETWORK
    if network is None:
        path.unlink(missing_ok=True)
        return 0.0
    slices = torch.rand(2, *network.field) * 100 - 20
    write_onnx(network.eval(), slices, path, names=("slices", "features"))
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(slices).numpy()
    answer = session.run(None, {"slices": slices.numpy()})[0]
    difference = float(np.abs(answer - expected).max() / np.abs(expected).max())
    if difference > TOLERANCE:
        raise HemsegError(f"{path}: ONNX Runtime differs from torch by {difference:.2g}, more than {TOLERANCE}.")
    return difference


def attach_kinds(source: Path, weights: Path) -> None:
    """Put what `export_kinds` wrote beside weights, and name it in their manifest.

    Args:
        source: folder that holds the files; it may be the weights' own.
        weights: folder with a manifest.

    Raises:
        HemsegError: a file is missing or is not what it should be, or there is no manifest.
    """
    manifest = Manifest.read(weights)
    if not (source / NUMBERS).is_file():
        raise HemsegError(f"{source}: has no {NUMBERS}; run `python -m training kinds-train` first.")
    names = (NUMBERS, NETWORK) if Head.read(source / NUMBERS).has_maps else (NUMBERS,)
    if missing := [name for name in names if not (source / name).is_file()]:
        raise HemsegError(f"{source}: has no {missing[0]}, which {NUMBERS} needs.")
    sums = dict.fromkeys((NUMBERS, NETWORK), "")
    for name in names:
        if source.resolve() != weights.resolve():
            shutil.copyfile(source / name, weights / name)
        sums[name] = hashlib.sha256((weights / name).read_bytes()).hexdigest()
    replace(
        manifest,
        kinds_file=NUMBERS,
        kinds_sha256=sums[NUMBERS],
        kinds_network_file=NETWORK if sums[NETWORK] else "",
        kinds_network_sha256=sums[NETWORK],
        format=FORMAT,
    ).write(weights)
