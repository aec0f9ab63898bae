"""How every network here is trained: Lightning, with checkpoints, early stopping, curves and exact resumption.

Order and augmentation of the samples are functions of (seed, epoch, index), never of a generator's history, so a run
that was interrupted and goes on from its last checkpoint sees what an unbroken run would have seen.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from training.config import Optimization

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*isinstance.*LeafSpec.*")
warnings.filterwarnings("ignore", ".*fewer than the logging interval.*")
warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that depends on the seed and the epoch alone."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        for index in torch.randperm(self.n, generator=generator).tolist():
            yield self.epoch, index


class Task(L.LightningModule):
    """A network with its optimiser. Subclasses add ``training_step``, and ``validation_step``, logging ``val_loss``."""

    def __init__(self, optimization: Optimization, seed: int) -> None:
        super().__init__()
        self.optimization, self.seed = optimization, seed

    def generator(self, batch_idx: int) -> torch.Generator:
        """Random numbers for one training batch, the same in every run with this seed."""
        return torch.Generator().manual_seed((self.seed * 1009 + self.current_epoch) * 100_003 + batch_idx)

    def configure_optimizers(self) -> Any:
        o = self.optimization
        parameters = [p for p in self.parameters() if p.requires_grad]
        if o.optimizer == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(
                parameters, o.lr, o.momentum, weight_decay=o.weight_decay
            )
        elif o.optimizer in ("adam", "adamw"):
            kind = torch.optim.Adam if o.optimizer == "adam" else torch.optim.AdamW
            optimizer = kind(parameters, o.lr, weight_decay=o.weight_decay)
        else:
            raise ValueError(f"unknown optimizer {o.optimizer!r}; known: sgd, adam, adamw")
        if o.schedule == "constant":
            return optimizer
        if o.schedule != "onecycle":
            raise ValueError(f"unknown schedule {o.schedule!r}; known: constant, onecycle")
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, o.lr, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader(dataset: Dataset, batch: int, seed: int) -> DataLoader:
    """Training batches in seeded order; an incomplete last batch is dropped unless it is the only one."""
    n = len(dataset)  # type: ignore[arg-type]
    return DataLoader(dataset, batch, sampler=EpochSampler(n, seed), drop_last=n >= batch)


def fit(task: Task, train: DataLoader, val: DataLoader, folder: Path) -> dict[str, Any]:
    """Train until the epochs are over or patience is, then leave the best weights (by ``val_loss``) in the task.

    An interrupted run goes on from ``folder/last.ckpt``.

    Returns:
        epochs trained, the best epoch's ``val_loss`` and other validation figures.
    """
    o = task.optimization
    best = ModelCheckpoint(folder, "best", monitor="val_loss", enable_version_counter=False)
    last = ModelCheckpoint(folder, save_last=True, save_top_k=0, enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=o.epochs,
        accelerator="auto",
        devices=1,
        callbacks=[EarlyStopping("val_loss", patience=o.patience), best, last, TQDMProgressBar(refresh_rate=10)],
        logger=[CSVLogger(folder, "", ""), TensorBoardLogger(folder, "", "tensorboard")],
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    checkpoint = folder / "last.ckpt"
    L.seed_everything(task.seed, verbose=False)
    trainer.fit(task, train, val, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=False)
    state = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=False)
    task.load_state_dict(state["state_dict"])
    assert best.best_model_score is not None
    return {
        "epochs": trainer.current_epoch,
        "best_epoch": int(state["epoch"]),
        "val_loss": float(best.best_model_score),
    }


def save_network(network: nn.Module, path: Path) -> None:
    """Write a network's weights, all or nothing."""
    partial = path.with_suffix(".part")
    torch.save(network.state_dict(), partial)
    partial.replace(path)


def load_network(network: nn.Module, path: Path) -> nn.Module:
    """Read what `save_network` wrote; the network comes back in evaluation mode."""
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()
