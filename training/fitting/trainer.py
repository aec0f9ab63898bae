"""How every network here is trained: Lightning, with checkpoints, early stopping, curves and exact resumption.

Order and augmentation of the samples are functions of (seed, epoch, index), never of a generator's history, so a run
that was interrupted and goes on from its last checkpoint sees what an unbroken run would have seen.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from hemseg.errors import HemsegError, first_line
from hemseg.io.files import atomic_write
from hemseg.resources import release_memory

from ..config import Optimization
from .curves import History, write_curves
from .hardware import Hardware, rank, world_size

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*isinstance.*LeafSpec.*")
warnings.filterwarnings("ignore", ".*fewer than the logging interval.*")
warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")


KEPT_CHECKPOINTS = ("best", "last")
MAX_GRADIENT = 1e8  # beyond is none: uninitialised memory


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that depends on the seed and the epoch alone.

    With several processes each takes every n-th of that order, and all the same number.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.seed, self.epoch = n, seed, 0
        self.world, self.rank = world_size(), rank()

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.n // self.world)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.n, generator=generator).tolist()
        for place in range(self.rank, len(self) * self.world, self.world):
            yield self.epoch, order[place % self.n]


class Task(L.LightningModule):
    """A network with its optimiser. Subclasses add ``training_step``, and ``validation_step``, logging ``val_loss``."""

    def __init__(self, optimization: Optimization, seed: int) -> None:
        super().__init__()
        self.optimization, self.seed = optimization, seed

    def generator(self, batch_idx: int) -> torch.Generator:
        """Random numbers for one training batch, the same in every run with this seed."""
        step = batch_idx * world_size() + rank()
        return torch.Generator().manual_seed((self.seed * 1009 + self.current_epoch) * 100_003 + step)

    def on_train_epoch_start(self) -> None:
        self.train()  # networks that were loaded come in evaluation mode, and Lightning leaves them there
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                frozen = module.weight is not None and not module.weight.requires_grad
                if frozen or self.optimization.frozen_statistics:  # of which scale and shift are learned all the same
                    module.eval()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of all parameters that are trained, without its schedule."""
        o = self.optimization
        parameters = [p for p in self.parameters() if p.requires_grad]
        if o.optimizer == "sgd":
            return torch.optim.SGD(parameters, o.lr, o.momentum, weight_decay=o.weight_decay)
        if o.optimizer in ("adam", "adamw"):
            kind = torch.optim.Adam if o.optimizer == "adam" else torch.optim.AdamW
            return kind(parameters, o.lr, weight_decay=o.weight_decay)
        raise HemsegError(f"optimizer {o.optimizer!r} is not known; known: sgd, adam, adamw.")

    def configure_optimizers(self) -> Any:
        o, optimizer = self.optimization, self.make_optimizer()
        if o.schedule == "constant":
            return optimizer
        if o.schedule != "onecycle":
            raise HemsegError(f"schedule {o.schedule!r} is not known; known: constant, onecycle.")
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, o.lr, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def micro_batch(optimization: Optimization) -> int:
    """Samples that one process takes at once.

    Raises:
        HemsegError: the batch cannot be shared out evenly.
    """
    micro = optimization.micro_batch or max(1, optimization.batch // world_size())
    if optimization.batch % (micro * world_size()):
        raise HemsegError(
            f"batch {optimization.batch} is not a multiple of micro_batch {micro} times {world_size()} processes."
        )
    return micro


BatchAugmentation = Callable[[Any, torch.Generator], Any]  # of a batch, at random


class KeyedDataset(Dataset):
    """A dataset whose samples come with their (epoch, index): what a batch's random numbers are drawn from."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[tuple[int, int], Any]:
        return key, self.dataset[key]


def collate_and_augment(items: list[tuple[tuple[int, int], Any]], change: BatchAugmentation, seed: int) -> Any:
    """A batch, changed at random as a function of the seed and of its first sample's (epoch, index).

    A loader's process gives the last batch's memory back first: between its pieces others come to lie, and over an
    epoch it would grow by gigabytes.
    """
    if get_worker_info():
        release_memory()
    epoch, index = items[0][0]
    generator = torch.Generator().manual_seed(((seed * 1009 + epoch) * 1_000_003 + index) % 2**63)
    return change(default_collate([sample for _, sample in items]), generator)


def loader(
    dataset: Dataset, optimization: Optimization, seed: int, workers: int = 0, change: BatchAugmentation | None = None
) -> DataLoader:
    """Training batches in seeded order; an incomplete last batch is dropped unless it is the only one.

    Args:
        dataset: gives a sample for each (epoch, index).
        optimization: its batch.
        seed: of the order.
        workers: processes that make batches ahead; 0: this one makes them. The batches are the same.
        change: augmentation of whole batches, where they are made.
    """
    sampler = EpochSampler(len(dataset), seed)  # type: ignore[arg-type]
    micro = micro_batch(optimization)
    return DataLoader(
        KeyedDataset(dataset) if change else dataset,
        micro,
        sampler=sampler,
        drop_last=len(sampler) >= micro,
        num_workers=workers,
        worker_init_fn=use_one_thread,
        persistent_workers=workers > 0,
        collate_fn=partial(collate_and_augment, change=change, seed=seed) if change else None,
    )


def use_one_thread(worker: int = 0) -> None:
    """Begin a forked process: threads of OpenCV and torch do not survive a fork, and would be waited for, for ever."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class TimeLeft(TQDMProgressBar):
    """The progress bar, with the minutes that all remaining epochs will take at most (patience may end them)."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)
        self.began: tuple[float, int] | None = None  # when, and before which epoch

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_epoch_start(trainer, *_)
        self.began = self.began or (time.monotonic(), trainer.current_epoch)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """What stands beside the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        if self.began and trainer.current_epoch > self.began[1] and trainer.max_epochs:
            since, first = self.began
            part = trainer.fit_loop.epoch_loop.batch_progress.current.completed / max(1, trainer.num_training_batches)
            done = trainer.current_epoch + part
            pace = (time.monotonic() - since) / (done - first)
            shown["left"] = f"{pace * (trainer.max_epochs - done) / 60:.0f} min"
        return shown  # type: ignore[return-value]


class FiniteSteps(L.Callback):
    """Stops at the first loss or gradient that is no number, with its batch on disk, before a weight is changed."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"bad_batch{rank() or ''}.pt"
        self.batch: Any = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: torch.Tensor) -> None:
        if torch.isfinite(loss).all():
            return
        torch.save(self.batch, self.path)
        raise HemsegError(
            f"{self.path.parent}: the loss is {float(loss.detach().mean())} in epoch {trainer.current_epoch}; the "
            f"batch that gave it is in {self.path.name}. Look at its voxels, or lower the learning rate, and run the "
            "same command: it goes on from the last whole epoch."
        )

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.precision == "16-mixed":  # its scaler meets infinite gradients, and leaves those steps out
            return
        gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        if get_total_norm(gradients.values(), torch.inf) < MAX_GRADIENT:
            return
        largest = {name: float(gradient.abs().max()) for name, gradient in gradients.items()}
        name = next(name for name, value in largest.items() if not value < MAX_GRADIENT)
        torch.save(self.batch, self.path)
        raise HemsegError(
            f"{self.path.parent}: the gradient of {name} is {largest[name]:.3g} in epoch "
            f"{trainer.current_epoch}, though the loss is a number; the batch that gave it is in {self.path.name}. "
            "PyTorch's 3D convolutions do this on some CPUs in bfloat16 where the deepest level has two slices: give "
            "--precision 32-true, or a train_patch of more slices; elsewhere lower the learning rate. Then run the "
            "same command: it goes on from the last whole epoch."
        )


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are there as a whole or not at all, whenever the process is killed or the disk is full."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        try:
            with atomic_write(Path(path)) as partial:
                super().save_checkpoint(checkpoint, partial, storage_options)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            raise HemsegError(
                f"{path}: cannot be written ({first_line(error)}). Is the disk full? The checkpoint before it is "
                "whole: make room and run the same command."
            ) from None


def fit(task: Task, train: DataLoader, val: DataLoader, folder: Path, hardware: Hardware) -> dict[str, Any]:
    """Train until the epochs are over or patience is, then leave the best weights (by ``val_loss``) in the task, or
    the last (``keep``).

    An interrupted run goes on from ``folder/last.ckpt``. With several processes each trains on its share of every
    epoch, and all of them validate on everything. Batch-norm statistics come from the micro-batch.

    Returns:
        epochs trained, the best epoch's ``val_loss`` and other validation metrics.
    """
    o = task.optimization
    if o.keep not in KEPT_CHECKPOINTS:
        raise HemsegError(f"keep {o.keep!r} is not known; known: {', '.join(KEPT_CHECKPOINTS)}.")
    best = ModelCheckpoint(folder, "best", monitor="val_loss", enable_version_counter=False)
    last = ModelCheckpoint(folder, "last", enable_version_counter=False)  # without a monitor: the newest epoch's
    trainer = L.Trainer(
        max_epochs=o.epochs,
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy="ddp_find_unused_parameters_true" if hardware.processes > 1 else "auto",
        precision=hardware.precision,  # type: ignore[arg-type]
        use_distributed_sampler=False,  # EpochSampler deals the samples out itself
        accumulate_grad_batches=o.batch // (micro_batch(o) * world_size()),
        plugins=[WholeCheckpoints()],
        callbacks=[
            EarlyStopping("val_loss", patience=o.patience),
            History(folder / "metrics.csv"),
            best,
            last,
            TimeLeft(),
            FiniteSteps(folder),
        ],
        logger=TensorBoardLogger(folder, "", "tensorboard"),
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        enable_model_summary=False,
    )
    checkpoint = folder / "last.ckpt"
    L.seed_everything(task.seed, verbose=False)
    if checkpoint.exists() and isinstance(train.sampler, EpochSampler):
        # Lightning asks for the first batches before it names the epoch, and workers make them at once
        train.sampler.set_epoch(torch.load(checkpoint, map_location="cpu", weights_only=False)["epoch"] + 1)
    task.train()  # or Lightning warns of the loaded networks, which `on_train_epoch_start` sees to
    trainer.fit(task, train, val, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=False)
    state = torch.load(folder / f"{o.keep}.ckpt", map_location="cpu", weights_only=False)
    task.cpu().load_state_dict(state["state_dict"])
    if rank() == 0:
        write_curves(folder)
    return {"epochs": trainer.current_epoch, "best_epoch": int(state["epoch"]), "val_loss": _best_loss(state)}


def _best_loss(state: dict[str, Any]) -> float:
    """The best ``val_loss`` as the checkpoint holds it, also after a run that only had to be read back."""
    scores = [c["best_model_score"] for c in state["callbacks"].values() if c.get("best_model_score") is not None]
    return float(scores[0])


def save_network(network: nn.Module, path: Path) -> None:
    """Write a network's weights, all or nothing; with several processes the first one does it."""
    if rank() > 0:
        return
    with atomic_write(path) as partial:
        torch.save(network.state_dict(), partial)


def load_network(network: nn.Module, path: Path) -> nn.Module:
    """Read what `save_network` wrote, or an export's safetensors; the network comes back in evaluation mode."""
    safe = path.suffix == ".safetensors"
    state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network.eval()
