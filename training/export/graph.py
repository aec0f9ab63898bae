"""The exported graph, made faster without changing what it computes.

ONNX Runtime's CPU kernel does a 3D transposed convolution as a matrix product, which holds 27 values for each one of
the output's channels and the input's voxels, and a scatter that adds them up on one thread. The same sums are a plain
convolution with a channel for each place of the output between two input voxels, and a rearrangement (sub-pixel
convolution: Shi et al. 2016, "Is the deconvolution layer the same as a convolutional layer?", arXiv:1609.07009).
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hemseg.errors import HemsegError
from hemseg.io.files import atomic_write
from hemseg.manifest import Manifest
from hemseg.onnx_session import check_file, session
from hemseg.resources import cores

TOLERANCE = 1e-5  # of a probability: the same sums in another order


def subpixel(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model with plain convolutions in place of its transposed ones.

    Those are left as they are that have groups or holes, that do not make each axis longer by just its stride, or whose
    weights or input's shape (but for the batch) are not fixed.
    """
    model = onnx.shape_inference.infer_shapes(model)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[2:]
        for value in [*graph.input, *graph.value_info]
    }
    nodes: list[NodeProto] = []
    for node in graph.node:
        size = sizes.get(node.input[0], ()) if node.input else ()
        if _fits(node, size, weights):
            made, tensors = _convolution(node, size, [numpy_helper.to_array(weights[name]) for name in node.input[1:]])
            nodes += made
            graph.initializer.extend(tensors)
        else:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return model


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without what torch notes beside its nodes and values: lines of code, and the folders that it
    lay in, which name whoever exported it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in (copy, graph, *graph.node, *values, *copy.functions, *(n for f in copy.functions for n in f.node)):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    return copy


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _fits(node: NodeProto, size: tuple[int, ...], weights: dict[str, TensorProto]) -> bool:
    if node.op_type != "ConvTranspose" or not all(size) or not all(name in weights for name in node.input[1:]):
        return False
    at = _attributes(node)
    if not {"strides", "kernel_shape", "pads"} <= set(at) or at.get("group", 1) != 1:
        return False
    axes = len(size)
    more = at.get("output_padding", [0] * axes)
    grown = [k - at["pads"][i] - at["pads"][axes + i] + more[i] for i, k in enumerate(at["kernel_shape"])]
    return axes > 0 and set(at.get("dilations", [1])) == {1} and grown == list(at["strides"])


def _convolution(
    node: NodeProto, size: tuple[int, ...], weights: list[np.ndarray]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes and tensors that do what a transposed convolution does on an input of ``size``.

    Its output at ``stride * q + phase`` sums the input at ``q + offset`` times ``weight[tap]`` over all taps with
    ``tap = phase + pad - stride * offset``.
    """
    at = _attributes(node)
    strides, weight = list(at["strides"]), weights[0]
    taps = [
        [(phase, (phase + pad - tap) // stride, tap) for tap in range(kernel) for phase in range(stride)
         if (phase + pad - tap) % stride == 0]
        for stride, kernel, pad in zip(strides, at["kernel_shape"], at["pads"][: len(size)], strict=True)
    ]  # fmt: skip
    first = [min(0, *(offset for _, offset, _ in axis)) for axis in taps]
    last = [max(0, *(offset for _, offset, _ in axis)) for axis in taps]
    shape = [b - a + 1 for a, b in zip(first, last, strict=True)]
    channels = weight.shape[1]
    plain = np.zeros((channels, *strides, weight.shape[0], *shape), weight.dtype)
    for place in itertools.product(*taps):
        phases, offsets, at_tap = zip(*place, strict=True)
        to = tuple(offset - a for offset, a in zip(offsets, first, strict=True))
        plain[(slice(None), *phases, slice(None), *to)] = weight[(slice(None), slice(None), *at_tap)].T
    count = int(np.prod(strides))
    name, out = node.name or node.output[0], node.output[0]
    axes = range(len(size))
    woven = [1, *(i for axis in axes for i in (2 + len(size) + axis, 2 + axis))]  # z, then where in z; y ...
    tensors = {
        "weight": plain.reshape(channels * count, weight.shape[0], *shape),
        "phases": np.array([-1, channels, *strides, *size]),
        "size": np.array([-1, channels, *(n * s for n, s in zip(size, strides, strict=True))]),
    }
    if len(weights) > 1:
        tensors["bias"] = np.repeat(weights[1], count)
    inputs = [f"{name}/{part}" for part in ("weight", "bias") if part in tensors]
    pads = [*(-a for a in first), *last]
    nodes = [
        helper.make_node(
            "Conv", [node.input[0], *inputs], [f"{out}/conv"], f"{name}/conv", kernel_shape=shape, pads=pads
        ),
        helper.make_node("Reshape", [f"{out}/conv", f"{name}/phases"], [f"{out}/phases"], f"{name}/split"),
        helper.make_node("Transpose", [f"{out}/phases"], [f"{out}/woven"], f"{name}/weave", perm=[0, *woven]),
        helper.make_node("Reshape", [f"{out}/woven", f"{name}/size"], [out], f"{name}/join"),
    ]
    return nodes, [numpy_helper.from_array(value, f"{name}/{part}") for part, value in tensors.items()]


def optimize_weights(folder: Path) -> float:
    """Give a folder of weights the faster graph, and its manifest the new checksum; returns the largest difference.

    Raises:
        HemsegError: the weights are damaged, or the new graph does not give the old one's probabilities.
    """
    manifest = Manifest.read(folder)
    path = folder / manifest.file
    check_file(path, manifest.sha256)
    shape = (2, len(manifest.preprocessing.channels), *manifest.patch)
    patches = np.random.default_rng(0).random(shape, np.float32)
    with atomic_write(path) as partial:
        onnx.save(without_traces(subpixel(onnx.load(str(path)))), str(partial))
        old, new = (session(file, "cpu", cores()).run(None, {"image": patches})[0] for file in (path, partial))
        difference = float(np.abs(old - new).max())
        if difference > TOLERANCE:
            raise HemsegError(f"{path}: the faster graph differs by {difference:.2g}; the file was left as it is.")
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    replace(manifest, sha256=digest).write(folder)
    return difference
