"""Slice classifier and ResNet-LSTM (the paper's section 2, "Getting spatial CAM ..."; method.md 1 and 2).

A `SliceNetwork` is trained on slices (eq. 1); then its features of all slices of a volume, in order, go through a
bidirectional LSTM and training goes on, gradients reaching the backbone; then the LSTM is dropped, the backbone
frozen, and a linear layer is fitted on its pooled features, so that the CAM is exact: the mean of the CAM over
space plus the bias is the logit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import ResNet
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc

from hemseg.errors import HemsegError

from ..config import Classifier, Config, Sequence
from ..data.augmentation import augmented_slices
from ..data.datasets import Prepared
from .hardware import Hardware
from .trainer import Task, fit, load_network, loader, micro_batch, save_network

LAYERS = {
    "resnet18": ("basic", [2, 2, 2, 2]),
    "resnet34": ("basic", [3, 4, 6, 3]),
    "resnet50": ("bottleneck", [3, 4, 6, 3]),
}
LAYERS["resnet101"] = ("bottleneck", [3, 4, 23, 3])


class SliceNetwork(nn.Module):
    """A 2D ResNet on HU: windows as channels, four stages, global average, one linear layer, one logit.

    Input: float (n, y, x) in HU. ``stages`` gives the four feature maps, ``forward`` the logits (n,).
    """

    def __init__(self, settings: Classifier) -> None:
        super().__init__()
        if settings.backbone not in LAYERS:
            raise HemsegError(f"backbone {settings.backbone!r} is not known; known: {', '.join(LAYERS)}.")
        block, layers = LAYERS[settings.backbone]
        self.windows: Tensor
        self.register_buffer("windows", torch.tensor(settings.windows, dtype=torch.float32), persistent=False)
        self.backbone = ResNet(
            block,
            layers,
            list(settings.widths),
            spatial_dims=2,
            n_input_channels=len(settings.windows),
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        _keep_resolution(self.backbone, settings.output_stride)
        self.fc = nn.Linear(settings.widths[3] * (4 if block == "bottleneck" else 1), 1)
        if settings.pretrained:
            load_torchvision(self.backbone, Path(settings.pretrained))

    def channels(self, hu: Tensor) -> Tensor:
        """(n, y, x) HU to (n, window, y, x), about -1..1."""
        low, high = self.windows[:, 0, None, None], self.windows[:, 1, None, None]
        return ((hu[:, None] - low) / (high - low)).clamp(0, 1) * 2 - 1

    def stages(self, hu: Tensor) -> list[Tensor]:
        """Feature maps (n, channel, y, x) of the four stages."""
        b = self.backbone
        x = b.maxpool(b.act(b.bn1(b.conv1(self.channels(hu)))))
        maps = []
        for stage in (b.layer1, b.layer2, b.layer3, b.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def features(self, hu: Tensor) -> Tensor:
        """Pooled features of the last stage (n, channel)."""
        return self.stages(hu)[-1].mean(dim=(2, 3))

    def forward(self, hu: Tensor) -> Tensor:
        return self.fc(self.features(hu))[:, 0]


def _keep_resolution(backbone: ResNet, output_stride: int) -> None:
    """Trade the strides of the last stages for dilation (as DeepLab does): finer maps from the same weights."""
    if output_stride not in (8, 16, 32):
        raise HemsegError(f"output_stride {output_stride} is not to be had; give 8, 16 or 32.")
    dilation = 1
    for stage, stride in ((backbone.layer3, 16), (backbone.layer4, 32)):
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


# --- slices -----------------------------------------------------------------------------------------------------------


def field(
    case: Prepared, settings: Classifier, in_plane_mm: float, background: float
) -> tuple[np.ndarray, tuple[int, int]]:
    """Cut the classifier's field of view out of a prepared scan.

    Returns:
        HU (z, y, x) on the working grid, padded with ``background`` where the field leaves the scan (and outside
        the skull's inside if ``stripped``); and the field's corner (y, x) on the working grid, possibly negative.
    """
    size = [round(mm / in_plane_mm) for mm in settings.field_mm]
    found = ndimage.find_objects(case.intracranial.any(axis=0).astype(np.uint8))
    middle = [(s.start + s.stop) // 2 for s in found[0]] if found else [n // 2 for n in case.hu.shape[1:]]
    corner = (middle[0] - size[0] // 2, middle[1] - size[1] // 2)
    hu = np.where(case.intracranial, case.hu, background) if settings.stripped else case.hu
    return cut(hu, corner, (size[0], size[1]), background), corner


def cut(array: np.ndarray, corner: tuple[int, int], size: tuple[int, int], fill: float) -> np.ndarray:
    """A window of each slice, (z, *size), filled where it leaves the array."""
    result = np.full((array.shape[0], *size), fill, array.dtype)
    inner, outer = _overlap(array.shape[1:], corner, size)
    result[(slice(None), *inner)] = array[(slice(None), *outer)]
    return result


def paste(window: np.ndarray, corner: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The reverse of `cut`: (z, y, x) of ``shape`` with the window at its corner, zero elsewhere."""
    result = np.zeros((window.shape[0], *shape[1:]), window.dtype)
    inner, outer = _overlap(shape[1:], corner, window.shape[1:])
    result[(slice(None), *outer)] = window[(slice(None), *inner)]
    return result


def _overlap(
    shape: tuple[int, ...], corner: tuple[int, int], size: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    spans = [(max(0, c), max(max(0, c), min(n, c + s)), c) for n, c, s in zip(shape, corner, size, strict=True)]
    return tuple(slice(a - c, b - c) for a, b, c in spans), tuple(slice(a, b) for a, b, _ in spans)


def to_network_size(hu: Tensor, settings: Classifier) -> Tensor:
    """(n, y, x) of the field of view, sampled to ``image_size``."""
    return F.interpolate(hu[:, None], settings.image_size, mode="bilinear", antialias=True, align_corners=False)[:, 0]


def network_slices(case: Prepared, config: Config) -> Tensor:
    """All slices of a prepared scan as the classifier sees them, float32 (z, *image_size), HU."""
    background = config.preprocessing.hu_range[0]
    hu, _ = field(case, config.classifier, config.preprocessing.in_plane_mm, background)
    return to_network_size(torch.from_numpy(np.ascontiguousarray(hu)), config.classifier)


class Volumes(Dataset):
    """Whole scans in memory, as sequences of labelled slices; what carries no label is left out."""

    def __init__(self, cases: Iterable[Prepared], config: Config) -> None:
        self.items = []
        for case in cases:
            known = torch.from_numpy((case.labels >= 0) & case.intracranial.any(axis=(1, 2)))
            if known.any():
                self.items.append((network_slices(case, config)[known], torch.from_numpy(case.labels)[known].float()))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        return self.items[key if isinstance(key, int) else key[1]]

    def sequences(self) -> Volumes:
        """Those of two slices and more: a single slice has no neighbours to learn from."""
        longer = Volumes.__new__(Volumes)
        longer.items = [item for item in self.items if len(item[1]) > 1]
        return longer

    def slices(self) -> Slices:
        """The same slices, one by one."""
        return Slices(torch.cat([i[0] for i in self.items]), torch.cat([i[1] for i in self.items]))


class Slices(Dataset):
    """Single slices (y, x) in HU with their labels."""

    def __init__(self, hu: Tensor, labels: Tensor) -> None:
        self.hu, self.labels = hu, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        index = key if isinstance(key, int) else key[1]
        return self.hu[index], self.labels[index]


# --- ResNet on slices -------------------------------------------------------------------------------------------------


class SliceTask(Task):
    """Train a `SliceNetwork` on slices with binary cross-entropy (eq. 1)."""

    def __init__(self, network: SliceNetwork, settings: Classifier, seed: int) -> None:
        super().__init__(settings.optimization, seed)
        self.network, self.settings = network, settings
        self.scores: list[tuple[Tensor, Tensor]] = []

    def bce(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = torch.tensor(self.settings.positive_weight, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        hu, labels = batch
        if self.settings.augment:
            hu = augmented_slices(
                hu,
                self.generator(batch_idx),
                self.network.windows,
                share_degraded=self.settings.degrade,
                share_narrow=self.settings.narrow,
            )
        loss = self.bce(self.network(hu), labels)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self.logits(batch[0])
        self.scores.append((logits, batch[1]))

    def logits(self, hu: Tensor) -> Tensor:
        return self.network(hu)

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(v) for v in zip(*self.scores, strict=True))
        self.scores.clear()
        self.log("val_loss", self.bce(logits, labels), prog_bar=True)
        self.log("val_auc", binary_auroc(logits, labels.long()), prog_bar=True)


def train_classifier(
    train: Volumes, val: Volumes, config: Config, folder: Path, hardware: Hardware, painted: Slices | None = None
) -> dict[str, Any]:
    """ResNet on single slices, and on ``painted`` ones; writes ``network.pt``."""
    torch.manual_seed(config.seed)
    network = SliceNetwork(config.classifier)
    task = SliceTask(network, config.classifier, config.seed)
    optimization = config.classifier.optimization
    slices = train.slices()
    if painted:
        slices = Slices(torch.cat([slices.hu, painted.hu]), torch.cat([slices.labels, painted.labels]))
    batches = loader(slices, optimization, config.seed)
    figures = fit(task, batches, DataLoader(val.slices(), micro_batch(optimization)), folder, hardware)
    save_network(network, folder / "network.pt")
    return figures | {"val_auc": slice_auc(network, val)}


def slice_auc(network: SliceNetwork, volumes: Volumes) -> float:
    """Area under the ROC curve over all labelled slices."""
    slices = volumes.slices()
    return float(binary_auroc(predicted(network, slices.hu), slices.labels.long()))


@torch.no_grad()
def predicted(network: SliceNetwork, hu: Tensor, features: bool = False) -> Tensor:
    """Logits (n,), or pooled features (n, channel), of slices (n, y, x), in batches."""
    network.eval()
    compute = network.features if features else network
    return torch.cat([compute(part) for part in hu.split(32)])


# --- ResNet-LSTM on volumes -------------------------------------------------------------------------------------------


class SequenceNetwork(nn.Module):
    """Backbone, bidirectional LSTM along the slices, one logit a slice. The backbone is trained through the LSTM."""

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


class SequenceTask(SliceTask):
    """Train a `SequenceNetwork` on whole volumes; loss over real slices."""

    def __init__(self, sequence: SequenceNetwork, config: Config) -> None:
        super().__init__(sequence.network, config.classifier, config.seed + 1)
        self.optimization = config.sequence.optimization
        self.sequence = sequence

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hu, labels, lengths = batch
        if self.settings.augment:
            hu = augmented_slices(
                hu,
                self.generator(batch_idx),
                self.network.windows,
                lengths,
                self.settings.degrade,
                self.settings.narrow,
            )
        loss = self.bce(self.sequence(hu, lengths), labels)
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.scores.append((self.sequence(batch[0], batch[2]), batch[1]))


def end_to_end(volumes: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Collate volumes: slices (n, y, x), labels (n,), slices per volume."""
    lengths = torch.tensor([len(labels) for _, labels in volumes])
    return torch.cat([v[0] for v in volumes]), torch.cat([v[1] for v in volumes]), lengths


def train_sequence(
    train: Volumes, val: Volumes, start: Path, config: Config, folder: Path, hardware: Hardware
) -> dict[str, Any]:
    """ResNet-LSTM from the classifier's weights, then the linear layer anew; writes ``network.pt``, without LSTM.

    Single slices take part in the linear layer and in the AUC, not in the LSTM.
    """
    network = SliceNetwork(config.classifier)
    load_network(network, start)
    figures: dict[str, Any] = {}
    if config.sequence.enabled:
        torch.manual_seed(config.seed + 1)
        task = SequenceTask(SequenceNetwork(network, config.sequence), config)
        batches = loader(train.sequences(), config.sequence.optimization, config.seed + 1)
        batches.collate_fn = end_to_end
        figures = fit(task, batches, DataLoader(val.sequences(), 1, collate_fn=end_to_end), folder, hardware)
        refit_linear_layer(network, train)
    save_network(network, folder / "network.pt")
    return figures | {"val_auc": slice_auc(network, val)}


def refit_linear_layer(network: SliceNetwork, train: Volumes) -> None:
    """Fit ``fc`` on the frozen backbone's pooled features (logistic regression), in place."""
    slices = train.slices()
    features = predicted(network, slices.hu, features=True).double().numpy()
    scale = features.std(axis=0) + 1e-6  # standardised for the solver, folded back into the weights below
    fitted = LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced").fit(
        features / scale, slices.labels.numpy()
    )
    with torch.no_grad():
        network.fc.weight.copy_(torch.from_numpy(fitted.coef_ / scale))
        network.fc.bias.copy_(torch.from_numpy(fitted.intercept_))
