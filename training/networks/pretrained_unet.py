"""A U-Net whose encoder knows ImageNet and sees one slice at a time; its decoder joins neighboring slices.

After the anisotropic hybrid network (Liu et al., MICCAI 2018, arXiv:1711.08580): slices of 5 mm are labelled one by one
and look like pictures, so features come from a 2D network that knows many pictures (`efficientnet_lite`), and what the
slices beside show is joined where maps are coarse. The paper's 3D U-Net (`unet`) begins with random numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .efficientnet_lite import FEATURES, PYRAMID, EfficientNetLite
from .slice_network import windowed

HU_RANGE = (-20.0, 100.0)  # of the first channel, as 0..1
WINDOWS = ((0.0, 80.0), (-20.0, 100.0), (40.0, 100.0))  # HU; three colors to the encoder
WIDTHS = (8, 24, 40, 64, 96)  # channels of the decoder at 1, 1/2, 1/4, 1/8 and 1/16 of the resolution
COARSEST = 32  # y and x of an image are multiples of it
SLICES_AT_ONCE = 8  # of what sees each slice alone, at full and half resolution


class PretrainedUNet(nn.Module):
    """Input (n, channel, z, y, x) in 0..1, output logits (n, 1, z, y, x); y and x multiples of 32, z as it comes.

    The encoder also says of each slice whether it holds hemorrhage (`voxel_and_slice_logits`): that keeps its features
    those of blood while the decoder is still learning.

    Args:
        channels: of the input; the first is a window of HU, which the encoder sees. The last layer sees all.
        initial_logit: where each voxel starts.
    """

    def __init__(self, channels: int, initial_logit: float) -> None:
        super().__init__()
        self.encoder = EfficientNetLite()
        self.windows: Tensor
        low, high = HU_RANGE
        self.register_buffer("windows", (torch.tensor(WINDOWS) - low) / (high - low), persistent=False)
        self.slice_logit = nn.Linear(FEATURES, 1)
        full, half, quarter, eighth, sixteenth = WIDTHS
        self.bottom = nn.Conv2d(PYRAMID[-1], sixteenth, 1, bias=False)
        self.whole = nn.Conv2d(FEATURES, sixteenth, 1)  # what the slice is as a whole goes to each of its places
        self.up = nn.ModuleList(
            [
                Up(sixteenth, PYRAMID[3], sixteenth, True),
                Up(sixteenth, PYRAMID[2], eighth, True),
                Up(eighth, PYRAMID[1], quarter, True),
                Up(quarter, PYRAMID[0], half, False),
            ]
        )
        self.enlarge = nn.Conv2d(half, full * 4, 1)
        self.last = nn.Sequential(
            nn.Conv2d(full + channels, full, 3, padding=1, bias=False), nn.BatchNorm2d(full), nn.ReLU()
        )
        self.logit = nn.Conv2d(full, 1, 1)
        nn.init.constant_(self.logit.bias, initial_logit)  # type: ignore[arg-type]

    def freeze(self, stages: int) -> None:
        """Leave the encoder's first stages, with its stem, as they are; none when 0."""
        for layer in self.encoder.first_stages(stages):
            layer.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        return self.voxel_and_slice_logits(image)[0]

    def voxel_and_slice_logits(self, image: Tensor, apart: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of voxels (n, 1, z, y, x) and of slices (n, z).

        Args:
            image: (n, channel, z, y, x).
            apart: bool (n,), of stacks whose slices are of different heads: none has one beside it.
        """
        n, _, z = image.shape[:3]
        flat = image.transpose(1, 2)
        half, quarter = map_in_chunks(self._fine, flat)
        maps, head = self.encoder.coarse_maps(quarter.flatten(0, 1))
        pooled = head.mean((2, 3), keepdim=True)
        x = self.bottom(maps[-1]) + self.whole(pooled)
        for up, beside in zip(self.up[:-1], [*maps[-2::-1], quarter.flatten(0, 1)], strict=True):
            x = up(x, beside, n, apart)
        (logits,) = map_in_chunks(self._logits, x.reshape(n, z, *x.shape[1:]), half, flat)
        return logits.transpose(1, 2), self.slice_logit(pooled.flatten(1)).reshape(n, z)

    def _fine(self, flat: Tensor) -> list[Tensor]:
        """The encoder's two finest maps of slices (n, channel, y, x)."""
        colors = windowed(flat[:, :1], self.windows)
        return self.encoder.fine_maps(colors.contiguous(memory_format=torch.channels_last))

    def _logits(self, x: Tensor, half: Tensor, flat: Tensor) -> list[Tensor]:
        """The last steps, of maps at a quarter of the resolution, the encoder's at half of it, and slices."""
        x = F.pixel_shuffle(self.enlarge(self.up[-1](x, half, x.shape[0], None)), 2)
        return [self.logit(self.last(torch.cat([x, flat], 1)))]


def map_in_chunks(step: Callable[..., list[Tensor]], *stacks: Tensor) -> list[Tensor]:
    """What a step gives of stacks (n, z, channel, y, x), a few slices at a time: what looks at each slice alone has the
    largest maps, and would take most of the memory at inference.

    Args:
        step: maps (slices, channel, y, x), one of each stack, to a list of such maps.
    """
    n, z = stacks[0].shape[:2]
    parts = []
    for at in range(0, z, SLICES_AT_ONCE):
        own = [stack[:, at : at + SLICES_AT_ONCE] for stack in stacks]
        count = own[0].shape[1]
        parts.append([each.reshape(n, count, *each.shape[1:]) for each in step(*(part.flatten(0, 1) for part in own))])
    return [torch.cat(maps, 1) if len(maps) > 1 else maps[0] for maps in zip(*parts, strict=True)]


class Up(nn.Module):
    """The decoder's step to the next finer maps: with the encoder's of that size, and with those of the slices beside.

    Args:
        coarse, skip, width: channels that come from below, from the encoder, and that leave.
        joins: looks at the slices before and after, too.
    """

    def __init__(self, coarse: int, skip: int, width: int, joins: bool) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(coarse, width, 1, bias=False)  # before it is enlarged: a quarter of the work
        self.beside = nn.Conv2d(skip, width, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.plane = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.plane_norm = nn.BatchNorm2d(width)
        self.joins = joins
        if joins:
            self.slices = nn.Conv2d(3 * width, width, 1, bias=False)
            self.slices_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, skip: Tensor, n: int, apart: Tensor | None) -> Tensor:
        """Maps (n * z, channel, y, x) of twice the size of ``x``, that of ``skip``."""
        x = F.interpolate(self.narrow(x), scale_factor=2.0, mode="nearest") + self.beside(skip)
        x = F.relu(self.norm(x))
        x = F.relu(self.plane_norm(self.plane(x)) + x)
        if self.joins:
            x = F.relu(self.slices_norm(self.join_neighbors(x, n, apart)) + x)
        return x

    def join_neighbors(self, x: Tensor, n: int, apart: Tensor | None) -> Tensor:
        """`slices` of maps (n * z, channel, y, x) beside those of the slice before and after.

        The three parts of its weights take turns, and what they give is moved: that is the same, and takes half the
        memory of maps side by side. The outermost slices of a stack go on as they are, and so do all slices of those
        that are ``apart`` (n,).
        """
        before, own, after = (
            F.conv2d(x, weight).reshape(n, -1, *x.shape[1:]) for weight in self.slices.weight.chunk(3, 1)
        )
        moved = torch.cat([before[:, :1], before[:, :-1]], 1), torch.cat([after[:, 1:], after[:, -1:]], 1)
        if apart is not None:
            alone = apart[:, None, None, None, None]
            moved = torch.where(alone, before, moved[0]), torch.where(alone, after, moved[1])
        return (own + moved[0] + moved[1]).reshape(x.shape)
