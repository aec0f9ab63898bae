"""The slice classifier, and the same behind an LSTM along the slices (docs/method.md, 1 and 2)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from monai.networks.nets import ResNet
from torch import Tensor, nn

from hemseg.errors import HemsegError

from ..config import Classifier, Sequence
from .efficientnet_lite import FEATURES, EfficientNetLite, imagenet_weights

LAYERS = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
    "resnet101": ("bottleneck", [3, 4, 23, 3]),
}
LITE = "efficientnet_lite0"
IMAGENET = "imagenet"
STAGES = 4


class SliceNetwork(nn.Module):
    """A 2D network on HU: windows as channels, four stages, global average, one linear layer, one logit.

    Input: float (n, y, x) in HU. ``stages`` gives the four feature maps, ``forward`` the logits (n,).
    """

    def __init__(self, settings: Classifier) -> None:
        super().__init__()
        if settings.backbone not in (*LAYERS, LITE):
            raise HemsegError(f"backbone {settings.backbone!r} is not known; known: {', '.join((*LAYERS, LITE))}.")
        check_output_stride(settings.output_stride)
        self.windows: Tensor
        self.register_buffer("windows", torch.tensor(settings.windows, dtype=torch.float32), persistent=False)
        self.backbone: ResNet | EfficientNetLite
        self.backbone, features = (
            build_efficientnet_lite(settings) if settings.backbone == LITE else build_resnet(settings)
        )
        self.fc = nn.Linear(features, 1)

    def channels(self, hu: Tensor) -> Tensor:
        """(n, y, x) HU to (n, window, y, x), about -1..1."""
        return windowed(hu[:, None], self.windows)

    def stages(self, hu: Tensor) -> list[Tensor]:
        """Feature maps (n, channel, y, x) of the four stages."""
        b, x = self.backbone, self.channels(hu)
        if isinstance(b, EfficientNetLite):
            return b(x)
        x = b.maxpool(b.act(b.bn1(b.conv1(x))))
        maps = []
        for stage in _layers(b):
            x = stage(x)
            maps.append(x)
        return maps

    def first_stages(self, count: int) -> list[nn.Module]:
        """The layers of the first stages, with what comes before them; none when 0."""
        b = self.backbone
        if not count:
            return []
        if isinstance(b, EfficientNetLite):
            return b.first_stages(count)
        return [b.conv1, b.bn1, *_layers(b)[:count]]

    def features(self, hu: Tensor) -> Tensor:
        """Pooled features of the last stage (n, channel)."""
        return self.stages(hu)[-1].mean(dim=(2, 3))

    def forward(self, hu: Tensor) -> Tensor:
        return self.fc(self.features(hu))[:, 0]


def windowed(image: Tensor, windows: Tensor) -> Tensor:
    """An image (n, 1, y, x) in each of the windows (window, 2), as channels (n, window, y, x), -1..1."""
    low, high = windows[:, 0, None, None], windows[:, 1, None, None]
    return ((image - low) / (high - low)).clamp(0, 1) * 2 - 1


def untrained_network(settings: Classifier) -> SliceNetwork:
    """A network with random weights, whatever the recipe begins with: others are loaded into it, or none matter."""
    return SliceNetwork(replace(settings, pretrained=""))


def build_resnet(settings: Classifier) -> tuple[ResNet, int]:
    """A ResNet of MONAI's as the recipe wants it, and how many features it gives."""
    block, layers = LAYERS[settings.backbone]
    backbone = ResNet(
        block,
        layers,
        list(settings.widths),
        spatial_dims=2,
        n_input_channels=len(settings.windows),
        conv1_t_stride=2,
        bias_downsample=False,
        feed_forward=False,
    )
    _keep_resolution(backbone, settings.output_stride)
    if settings.pretrained == IMAGENET:
        raise HemsegError(
            f"classifier.pretrained: imagenet is for {LITE}, whose weights come as a Python package; for "
            f"{settings.backbone} give the path of a torchvision state dict."
        )
    if settings.pretrained:
        load_torchvision(backbone, Path(settings.pretrained))
    return backbone, settings.widths[3] * (4 if block == "bottleneck" else 1)


def build_efficientnet_lite(settings: Classifier) -> tuple[EfficientNetLite, int]:
    """An EfficientNet-Lite0 as the recipe wants it, and how many features it gives."""
    if len(settings.windows) != 3:
        raise HemsegError(f"classifier.windows: {LITE} takes three, one a color, not {len(settings.windows)}.")
    if settings.pretrained not in ("", IMAGENET):
        raise HemsegError(f"classifier.pretrained: for {LITE} give imagenet, or nothing, not {settings.pretrained!r}.")
    backbone = EfficientNetLite(settings.output_stride)
    if settings.pretrained:
        backbone.load_state_dict(imagenet_weights())
    return backbone, FEATURES


def check_frozen_stages(count: int, key: str) -> None:
    """Raises HemsegError, with the key's name, where networks here have not so many stages."""
    if not 0 <= count <= STAGES:
        raise HemsegError(f"{key} is {count}; there are {STAGES} stages.")


def check_output_stride(stride: int, key: str = "output_stride") -> None:
    """Raises HemsegError, with the key's name, where no network here has maps of this stride."""
    if stride not in (8, 16, 32):
        raise HemsegError(f"{key} {stride} is not available; give 8, 16 or 32.")


def _layers(backbone: ResNet) -> tuple[nn.Module, ...]:
    """The four stages of a ResNet."""
    return backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4


def _keep_resolution(backbone: ResNet, output_stride: int) -> None:
    """Trade the strides of the last stages for dilation (as DeepLab does): finer maps from the same weights."""
    dilation = 1
    for stage, stride in zip(_layers(backbone)[2:], (16, 32), strict=True):
        if stride <= output_stride:
            continue
        dilation *= 2
        for m in stage.modules():
            if isinstance(m, nn.Conv2d):
                first = m.stride == (2, 2)
                m.stride = (1, 1)
                if m.kernel_size == (3, 3):
                    d = dilation // 2 if first else dilation
                    m.dilation, m.padding = (d, d), (d, d)


def load_torchvision(backbone: ResNet, path: Path) -> None:
    """Load a torchvision state dict from disk, key for key; its ``fc`` is left out.

    Raises:
        HemsegError: no such file, or a state dict of another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError) as error:
        raise HemsegError(f"{path}: cannot be read as a torchvision state dict ({error}).") from None
    try:
        backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    except RuntimeError as error:
        raise HemsegError(
            f"{path}: is not a state dict of this network ({str(error).splitlines()[-1].strip()})."
        ) from None


class SequenceNetwork(nn.Module):
    """Backbone, bidirectional LSTM along the slices, one logit per slice. The backbone is trained through the LSTM."""

    def __init__(self, network: SliceNetwork, settings: Sequence) -> None:
        super().__init__()
        self.network = network
        self.lstm = nn.LSTM(network.fc.in_features, settings.hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * settings.hidden, 1)

    def forward(self, hu: Tensor, lengths: Tensor) -> Tensor:
        """Logits (n,) of the slices (n, y, x) of one or more volumes laid end to end, ``lengths`` slices each."""
        features = self.network.features(hu).split(lengths.tolist())
        packed = nn.utils.rnn.pack_sequence(list(features), enforce_sorted=False)
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        logits = self.head(hidden)[..., 0]
        real = torch.arange(logits.shape[1], device=lengths.device) < lengths[:, None]  # padding carries no loss
        return logits[real]
