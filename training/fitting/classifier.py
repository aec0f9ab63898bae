"""Slice classifier and ResNet-LSTM (the paper's section 2, "Getting spatial CAM ..."; docs/method.md, 1 and 2).

A `SliceNetwork` is trained on slices (eq. 1); then its features of all slices of a volume, in order, go through a
bidirectional LSTM and training goes on, gradients reaching the backbone; then the LSTM is dropped, the backbone
frozen, and a linear layer is fitted on its pooled features, so that the CAM is exact: the mean of the CAM over
space plus the bias is the logit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc

from ..config import Classifier, Config
from ..data.augmentation import augmented_slices
from ..data.datasets import Prepared
from ..data.field_of_view import network_slices
from ..networks.slice_network import SequenceNetwork, SliceNetwork
from .hardware import Hardware
from .trainer import Task, fit, load_network, loader, micro_batch, save_network

# --- slices -----------------------------------------------------------------------------------------------------------


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
    train: Volumes,
    val: Volumes,
    config: Config,
    folder: Path,
    hardware: Hardware,
    painted: Slices | None = None,
    start: Path | None = None,
) -> dict[str, Any]:
    """ResNet on single slices, and on ``painted`` ones; writes ``network.pt``.

    Args:
        train, val: slices and their labels; the validation loss decides which epoch is kept.
        config: the recipe.
        folder: where checkpoints, curves and weights go.
        hardware: what to train on.
        painted: slices with painted bleeds, to be learned beside those of ``train``.
        start: weights to go on from; from scratch when None.
    """
    torch.manual_seed(config.seed)
    network = SliceNetwork(config.classifier)
    if start:
        load_network(network, start)
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
    return float(binary_auroc(predict(network, slices.hu), slices.labels.long()))


@torch.no_grad()
def predict(network: SliceNetwork, hu: Tensor, features: bool = False) -> Tensor:
    """Logits (n,), or pooled features (n, channel), of slices (n, y, x), in batches."""
    network.eval()
    compute = network.features if features else network
    return torch.cat([compute(part) for part in hu.split(32)])


# --- ResNet-LSTM on volumes -------------------------------------------------------------------------------------------


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


def collate_volumes(volumes: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Collate volumes: slices (n, y, x), labels (n,), slices per volume."""
    lengths = torch.tensor([len(labels) for _, labels in volumes])
    return torch.cat([v[0] for v in volumes]), torch.cat([v[1] for v in volumes]), lengths


def train_sequence(
    train: Volumes, val: Volumes, start: Path, config: Config, folder: Path, hardware: Hardware
) -> dict[str, Any]:
    """ResNet-LSTM from the classifier's weights, then the linear layer anew; writes ``network.pt``, without LSTM.

    Single slices take part in the linear layer and in the AUC, not in the LSTM.

    Args:
        train, val: volumes of labelled slices.
        start: the classifier's weights.
        config: the recipe.
        folder: where checkpoints, curves and weights go.
        hardware: what to train on.
    """
    network = SliceNetwork(config.classifier)
    load_network(network, start)
    figures: dict[str, Any] = {}
    if config.sequence.enabled:
        torch.manual_seed(config.seed + 1)
        task = SequenceTask(SequenceNetwork(network, config.sequence), config)
        batches = loader(train.sequences(), config.sequence.optimization, config.seed + 1)
        batches.collate_fn = collate_volumes
        figures = fit(task, batches, DataLoader(val.sequences(), 1, collate_fn=collate_volumes), folder, hardware)
        refit_linear_layer(network, train)
    save_network(network, folder / "network.pt")
    return figures | {"val_auc": slice_auc(network, val)}


def refit_linear_layer(network: SliceNetwork, train: Volumes) -> None:
    """Fit ``fc`` on the frozen backbone's pooled features (logistic regression), in place."""
    slices = train.slices()
    features = predict(network, slices.hu, features=True).double().numpy()
    scale = features.std(axis=0) + 1e-6  # standardised for the solver, folded back into the weights below
    fitted = LogisticRegression(C=0.1, max_iter=2000, class_weight="balanced").fit(
        features / scale, slices.labels.numpy()
    )
    with torch.no_grad():
        network.fc.weight.copy_(torch.from_numpy(fitted.coef_ / scale))
        network.fc.bias.copy_(torch.from_numpy(fitted.intercept_))
