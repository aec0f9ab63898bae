"""The U-Net (MONAI's with anisotropic strides, or a pretrained one) and its losses (eq. 2; docs/method.md, 5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from monai.networks.nets import UNet
from torch import Tensor, nn

from ..config import Segmenter
from ..data.painted import UNKNOWN
from .pretrained_unet import COARSEST, PretrainedUNet

INITIAL_LOGIT = (
    -4.0
)  # first logit: about one voxel in fifty is hemorrhage, or training spends its first epochs learning that


MEMORY_FORMAT = torch.channels_last_3d  # two CPU cores train 1.9 times as fast with it


LEFT_OUT = UNKNOWN  # label of voxels that do not count
UNLOCATED = LEFT_OUT - 1  # of all voxels of a slice that holds a bleed at an unknown place; they do not count
HARDEST_VOXELS = 16  # voxels of a slice; 16 mm² on a working grid of 1 mm


def build_unet(settings: Segmenter, channels: int) -> nn.Module:
    """The U-Net with random weights. Input (n, channel, z, y, x), output logits (n, 1, z, y, x).

    MONAI's U-Net narrows to its ``out_channels`` before its last full-resolution convolution; it therefore ends
    in half as many channels as it starts with, and a 1x1x1 convolution makes the logit.
    """
    if settings.encoder.name:
        return PretrainedUNet(channels, INITIAL_LOGIT)
    width = max(1, settings.channels[0] // 2)
    unet = UNet(
        spatial_dims=3,
        in_channels=channels,
        out_channels=width,
        channels=settings.channels,
        strides=settings.strides,  # type: ignore[arg-type]
        num_res_units=settings.residual_units,
        norm="batch",  # in evaluation a voxel's result then does not depend on the size of the patch
    )
    logit = nn.Conv3d(width, 1, 1)
    nn.init.constant_(logit.bias, INITIAL_LOGIT)  # type: ignore[arg-type]
    return nn.Sequential(unet, nn.BatchNorm3d(width), nn.PReLU(), logit)


def to_fast_memory_format(network: nn.Module) -> nn.Module:
    """The network with its weights in the order in which CPUs train it fastest, in place."""
    flat = isinstance(network, PretrainedUNet)
    return network.to(memory_format=torch.channels_last if flat else MEMORY_FORMAT)  # type: ignore[call-overload]


def multiples(settings: Segmenter) -> tuple[int, int, int]:
    """What a patch's sides are multiples of, (z, y, x)."""
    if settings.encoder.name:
        return 1, COARSEST, COARSEST
    z, y, x = (math.prod(sides) for sides in zip(*settings.strides, strict=True))
    return z, y, x


def combined_loss(logits: Tensor, target: Tensor, epsilon: float = 1.0) -> Tensor:
    """Eq. 2: (1 - soft Dice) + binary cross-entropy; Dice over the whole batch. `LEFT_OUT` voxels do not count."""
    logits = logits.float()  # with mixed precision, sums over a million voxels are not for 16 bits
    known = (target > LEFT_OUT / 2).to(logits)  # a moved patch has values in between
    target = target.clamp(0, 1)
    probability = logits.sigmoid() * known
    overlap = 2 * (probability * target).sum() + epsilon
    dice = 1 - overlap / (probability.sum() + (target * known).sum() + epsilon)
    return dice + F.binary_cross_entropy_with_logits(logits, target, weight=known)


def slice_loss(logits: Tensor, target: Tensor, verdict: Tensor) -> Tensor:
    """Binary cross-entropy in which each slice counts once, however small its bleed (beyond the paper).

    In `combined_loss` a bright falx of fifty voxels is nothing beside a million dark ones, and a thin bleed nothing
    beside a large one. Here a slice that was labelled without hemorrhage is as wrong as its `HARDEST_VOXELS` brightest
    voxels, all of which are surely none (the one label that is exact); a slice with a bleed is as wrong as the
    `HARDEST_VOXELS` surest voxels of that bleed: it is to be found, and its outline is left to the other loss. Where
    nobody knows where the bleed is, they are the surest of the whole slice (multiple-instance learning, Dietterich et
    al. 1997).

    Args:
        logits, target: (n, 1, z, y, x); target as for `combined_loss`.
        verdict: (n, 1, z, y, x) on whole slices, beyond the patch, too: above 0.5 somewhere in those that hold no
            hemorrhage, below -0.5 in those that hold one somewhere.
    """
    logits, target, verdict = (t.float().flatten(3) for t in (logits, target, verdict))
    bleeding = target > 0.5
    positive, negative, holds_unlocated = bleeding.any(-1), verdict.amax(-1) > 0.5, verdict.amin(-1) < -0.5
    count = min(HARDEST_VOXELS, logits.shape[-1])
    brightest = logits[negative & ~positive].topk(count).values
    surest = logits.masked_fill(~bleeding, -torch.inf)[positive].topk(count).values
    there = surest.isfinite()
    found = F.softplus(-surest.masked_fill(~there, 0)) * there
    unlocated = logits[holds_unlocated & ~positive & ~negative].topk(count).values
    losses = torch.cat([F.softplus(brightest).mean(-1), found.sum(-1) / there.sum(-1), F.softplus(-unlocated).mean(-1)])
    return losses.sum() / max(1, len(losses))


def slice_head_loss(logits: Tensor, target: Tensor, verdict: Tensor) -> Tensor:
    """Binary cross-entropy of what the encoder says of each slice that holds a bleed (painted, labelled, or somewhere)
    or surely holds none.

    Args:
        logits: (n, z).
        target, verdict: as for `slice_loss`.
    """
    positive = ((target > 0.5) | (verdict < -0.5)).flatten(3).any(-1)[:, 0]
    negative = (verdict > 0.5).flatten(3).any(-1)[:, 0] & ~positive
    known = positive | negative
    losses = F.binary_cross_entropy_with_logits(logits.float(), positive.float(), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


def lesion_loss(logits: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """Binary cross-entropy in which each lesion of each slice counts once, whatever its size (beyond the paper).

    In `combined_loss` a rim of blood of a hundred voxels is nothing beside a bleed of thousands, and in `slice_loss`
    it is hidden by any surer bleed of its slice. What is around a lesion is left to the other losses.

    Args:
        logits, target: (n, 1, z, y, x); target as for `combined_loss`.
        share: (n, 1, z, y, x), each voxel's share of its lesion in its slice (`fitting.segmenter.lesion_shares`).
    """
    own = share.float() * (target > 0.5)
    return (own * F.softplus(-logits.float())).sum() / own.sum().clamp_min(1.0)
