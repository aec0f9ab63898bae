"""Class activation maps: where the classifier saw the hemorrhage (docs/method.md, 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hemseg.errors import HemsegError

from ..config import Cam
from ..networks.slice_network import SliceNetwork


def activation_maps(network: SliceNetwork, hu: Tensor, settings: Cam) -> Tensor:
    """Maps of slices.

    Args:
        hu: float (n, y, x) as the classifier sees them.

    Returns:
        float (n, y, x), sampled to the slices' size, min-max normalised per slice to 0..1.
    """
    each = [_normalized_map(network, hu, replace(settings, stage=s)) for s in settings.stages or (settings.stage,)]
    if len(each) == 1:
        return each[0]
    maps = torch.stack(each).log().mean(dim=0).exp()  # high only where every stage is
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-8)


def _normalized_map(network: SliceNetwork, hu: Tensor, settings: Cam) -> Tensor:
    maps = raw_maps(network, hu, settings)
    if settings.flips:
        maps = maps + raw_maps(network, hu.flip(2), settings).flip(2)
    maps = F.interpolate(maps[:, None], hu.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-8)


def raw_maps(network: SliceNetwork, hu: Tensor, settings: Cam) -> Tensor:
    """Maps (n, y', x') at the resolution of the stage, not normalised.

    Raises:
        HemsegError: a method that is not known, or that does not know the stage.
    """
    if settings.method not in METHODS:
        raise HemsegError(f"cam.method {settings.method!r} is not known; known: {', '.join(METHODS)}.")
    network.eval()
    return METHODS[settings.method](network, hu, settings.stage)


def class_activation(network: SliceNetwork, hu: Tensor, stage: int) -> Tensor:
    """CAM (Zhou et al. 2016): the last stage's activations, weighted by the linear layer."""
    if stage != 4:
        raise HemsegError("cam.stage: `cam` is defined for stage 4 alone; use `layercam` for earlier ones.")
    with torch.no_grad():
        return torch.einsum("nchw,c->nhw", network.stages(hu)[-1], network.fc.weight[0])


def layercam(network: SliceNetwork, hu: Tensor, stage: int) -> Tensor:
    """LayerCAM (Jiang et al. 2021): every activation weighted by its own positive gradient; where activations may be
    negative (EfficientNet's stages do not end in a ReLU), whatever speaks for hemorrhage, of either sign.
    """
    with torch.enable_grad():
        maps = network.stages(hu.requires_grad_(False))
        activation = maps[stage - 1]
        logits = network.fc(maps[-1].mean(dim=(2, 3)))[:, 0]
        (gradient,) = torch.autograd.grad(logits.sum(), activation)
    return (gradient * activation.detach()).relu().sum(dim=1)  # of a ReLU's activations the same as gradient.relu()


Method = Callable[[SliceNetwork, Tensor, int], Tensor]  # network, slices (n, y, x), stage 1..4 -> maps (n, y', x')
METHODS: dict[str, Method] = {"cam": class_activation, "layercam": layercam}  # a new one is a line here
