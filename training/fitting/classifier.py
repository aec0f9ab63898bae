"""Slice classifier and ResNet-LSTM (the paper's section 2, "Getting spatial CAM ..."; docs/method.md, 1 and 2).

A `SliceNetwork` is trained on slices (eq. 1); then its features of all slices of a volume, in order, go through a
bidirectional LSTM and training goes on, gradients reaching the backbone; then the LSTM is dropped, the backbone
frozen, and a linear layer is fitted on its pooled features, so that the CAM is exact: the mean of the CAM over
space plus the bias is the logit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import binary_auroc

from hemseg.kinds import KINDS

from ..config import Classifier, Config
from ..data.augmentation import augmented_slices
from ..data.datasets import Prepared
from ..data.field_of_view import network_slices
from ..data.slice_kinds import UNKNOWN
from ..networks.slice_network import SequenceNetwork, SliceNetwork, untrained_network
from ..stage_names import NETWORK
from .hardware import Hardware
from .trainer import Task, fit, load_network, loader, micro_batch, save_network

# --- slices -----------------------------------------------------------------------------------------------------------


class Volumes(Dataset):
    """Whole scans in memory, as sequences of labelled slices; what carries no label is left out.

    Args:
        cases: prepared scans.
        config: the recipe.
        answers: by case, int8 (slice, answer) of 1, 0 and -1, as `training.data.slice_kinds` reads them; what is
            unknown in one that is not named.
    """

    def __init__(
        self, cases: Iterable[Prepared], config: Config, answers: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.items, kinds = [], []
        for case in cases:
            known = torch.from_numpy((case.labels >= 0) & case.intracranial.any(axis=(1, 2)))
            if known.any():
                self.items.append((network_slices(case, config)[known], torch.from_numpy(case.labels)[known].float()))
                kinds.append(torch.from_numpy(slice_kind_labels(case, answers or {}))[known].float())
        self.kinds = kinds if answers else []

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        return self.items[key if isinstance(key, int) else key[1]]

    def sequences(self) -> Volumes:
        """Those of two slices and more: a single slice has no neighbours to learn from."""
        result = Volumes.__new__(Volumes)
        result.kinds = []
        result.items = [item for item in self.items if len(item[1]) > 1]
        return result

    def slices(self) -> Slices:
        """The same slices, one by one."""
        kinds = torch.cat(self.kinds) if self.kinds else None
        return Slices(torch.cat([i[0] for i in self.items]), torch.cat([i[1] for i in self.items]), kinds)


def slice_kind_labels(case: Prepared, answers: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which kinds of hemorrhage the slices of a case hold, int8 (slice, kind) of 1, 0 and -1 (unknown)."""
    if case.name in answers and len(answers[case.name]) == len(case.labels):  # not where slices were averaged
        return answers[case.name][:, : len(KINDS)]
    return np.repeat(np.where(case.labels == 0, 0, UNKNOWN).astype(np.int8)[:, None], len(KINDS), axis=1)


class Slices(Dataset):
    """Single slices (y, x) in HU with their labels, and their kinds (kind,) of 1, 0, -1 (unknown) where there are."""

    def __init__(self, hu: Tensor, labels: Tensor, kinds: Tensor | None = None) -> None:
        self.hu, self.labels, self.kinds = hu, labels, kinds

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, ...]:
        index = key if isinstance(key, int) else key[1]
        pair = self.hu[index], self.labels[index]
        return pair if self.kinds is None else (*pair, self.kinds[index])

    def concatenated(self, others: Slices) -> Slices:
        """These and others."""
        kinds = None if self.kinds is None or others.kinds is None else torch.cat([self.kinds, others.kinds])
        return Slices(torch.cat([self.hu, others.hu]), torch.cat([self.labels, others.labels]), kinds)


def training_slices(slices: Slices, settings: Classifier, seed: int, workers: int = 0) -> DataLoader:
    """Batches of slices, moved and roughened at random where the recipe says so."""
    change = partial(_augment, settings=settings) if settings.augment else None
    return loader(slices, settings.optimization, seed, workers, change)


def _augment(batch: list[Tensor], generator: torch.Generator, settings: Classifier) -> list[Tensor]:
    hu, *labels = batch
    windows = torch.tensor(settings.windows, dtype=torch.float32)
    hu = augmented_slices(hu, generator, windows, share_degraded=settings.degrade, share_narrow=settings.narrow)
    return [hu, *labels]


# --- ResNet on slices -------------------------------------------------------------------------------------------------


class SliceTask(Task):
    """Train a `SliceNetwork` on slices with binary cross-entropy (eq. 1); stages that are frozen stay as they are."""

    def __init__(self, network: SliceNetwork, settings: Classifier, seed: int, compiled: bool = False) -> None:
        super().__init__(settings.optimization, seed)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a fifth faster on a CPU
        self.network, self.settings = network, settings
        self.features = torch.compile(network.features) if compiled else network.features
        for layer in network.first_stages(settings.frozen_stages):
            layer.requires_grad_(False)
        features = network.fc.in_features
        self.kinds = nn.Linear(features, len(KINDS)) if settings.kinds else None  # teaches the features, is not kept
        self.scores: list[tuple[Tensor, Tensor]] = []

    def bce(self, logits: Tensor, labels: Tensor) -> Tensor:
        weight = torch.tensor(self.settings.positive_weight, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        hu, labels, *kinds = batch
        features = self.features(hu)
        loss = self.bce(self.network.fc(features)[:, 0], labels)
        if self.kinds is not None and kinds:
            loss = loss + self.settings.kinds * kind_loss(self.kinds(features), kinds[0])
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


def kind_loss(logits: Tensor, kinds: Tensor) -> Tensor:
    """Binary cross-entropy of each kind (slice, kind); what is unknown, -1, does not count."""
    known = (kinds >= 0).to(logits)
    losses = F.binary_cross_entropy_with_logits(logits, kinds.clamp(min=0), weight=known, reduction="sum")
    return losses / known.sum().clamp(min=1)


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
        start: weights to go on from; from scratch when None. They stay as they are where the recipe has 0 epochs.
    """
    torch.manual_seed(config.seed)
    network = untrained_network(config.classifier) if start else SliceNetwork(config.classifier)
    if start:
        load_network(network, start)
    if start and not config.classifier.optimization.epochs:
        save_network(network, folder / NETWORK)
        return {"epochs": 0, "val_auc": slice_auc(network, val)}
    task = SliceTask(network, config.classifier, config.seed, hardware.compile)
    optimization = config.classifier.optimization
    slices = train.slices()
    if painted:
        slices = slices.concatenated(painted)
    batches = training_slices(slices, config.classifier, config.seed, hardware.workers)
    metrics = fit(task, batches, DataLoader(val.slices(), micro_batch(optimization)), folder, hardware)
    save_network(network, folder / NETWORK)
    return metrics | {"val_auc": slice_auc(network, val)}


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
        super().__init__(sequence.network, replace(config.classifier, kinds=0.0), config.seed + 1)
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
    """ResNet-LSTM from the classifier's weights, then its linear layer refitted; writes ``network.pt``, without LSTM.

    Single slices take part in the linear layer and in the AUC, not in the LSTM.

    Args:
        train, val: volumes of labelled slices.
        start: the classifier's weights.
        config: the recipe.
        folder: where checkpoints, curves and weights go.
        hardware: what to train on.
    """
    network = untrained_network(config.classifier)
    load_network(network, start)
    metrics: dict[str, Any] = {}
    if config.sequence.enabled:
        torch.manual_seed(config.seed + 1)
        task = SequenceTask(SequenceNetwork(network, config.sequence), config)
        batches = loader(train.sequences(), config.sequence.optimization, config.seed + 1)
        batches.collate_fn = collate_volumes
        metrics = fit(task, batches, DataLoader(val.sequences(), 1, collate_fn=collate_volumes), folder, hardware)
        refit_linear_layer(network, train)
    save_network(network, folder / NETWORK)
    return metrics | {"val_auc": slice_auc(network, val)}


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
