"""A few bare steps of a training task, timed: the real network, loss, optimiser and loader, without Lightning."""

from __future__ import annotations

import resource
import statistics
import sys
import time
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from .trainer import Task

AUTOCAST_TYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


@dataclass(frozen=True)
class StepTimes:
    """What some steps took.

    Attributes:
        seconds: of one step, with loading its batch; the median.
        losses: of each step.
        memory_bytes: the most that was held: on the GPU, or by the whole process where it trains on the CPU.
    """

    seconds: float
    losses: tuple[float, ...]
    memory_bytes: int


def training_device(accelerator: str = "auto") -> torch.device:
    """Where Lightning would train with one process."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The arithmetic of a precision (`hardware.PRECISIONS`) on a device."""
    kind = AUTOCAST_TYPES.get(precision)
    return torch.autocast(device.type, kind, enabled=kind is not None)


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch, with all its tensors on a device."""
    return tuple(part.to(device, non_blocking=True) for part in batch)


def synchronize(device: torch.device) -> None:
    """Wait for a device that works on its own."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed_steps(
    task: Task, batches: Iterable[Any], device: torch.device, precision: str, steps: int, warm_up: int = 1
) -> StepTimes:
    """Train for some steps; the task's network is changed, and stays on the device.

    Args:
        batches: as the loader gives them; started again when they are at an end.
        warm_up: steps before those that are timed.
    """
    task.to(device).train()
    task.on_train_epoch_start()
    optimizer = task.make_optimizer()
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "16-mixed" and device.type == "cuda")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stream, seconds, losses = iter(batches), [], []
    for number in range(warm_up + steps):
        start = time.perf_counter()
        batch = next(stream, None)
        if batch is None:
            stream = iter(batches)
            batch = next(stream)
        with autocast(device, precision), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*self.trainer. reference is not registered.*")  # nothing is logged
            loss: torch.Tensor = task.training_step(to_device(batch, device), number)  # type: ignore[assignment]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        synchronize(device)
        if number >= warm_up:
            seconds.append(time.perf_counter() - start)
            losses.append(float(loss.detach()))
    return StepTimes(statistics.median(seconds), tuple(losses), peak_bytes(device))


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held: on a GPU, else by this process since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
