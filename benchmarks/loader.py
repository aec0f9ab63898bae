"""Is data loading the bottleneck? Slices a second of the loader, of the network alone, and of real training.

    python -m training bench --config smoke --run RUN

The three are timed in turn, in one process, so that their ratios hold on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from training.config import Config
from training.data.datasets import DataSet, prepared
from training.fitting.classifier import SliceTask, Volumes
from training.fitting.trainer import loader, micro_batch
from training.networks.slice_network import SliceNetwork
from training.pipeline.recipe import build_stages
from training.pipeline.runner import run_stage


def bench(
    config: Config, dataset: DataSet, run: Path, rounds: int = 3, steps: int = 8, precision: str = "32-true"
) -> dict[str, float]:
    """Median slices per second of ``loader``, ``network`` (steps on one batch in memory) and ``training`` (both).

    Args:
        config: its slice classifier is measured.
        dataset: the slices of its training split are loaded.
        run: folder of a run; ``prepare`` is run there if it was not.
        rounds: of which the median is taken.
        steps: per round.
        precision: ``32-true``, ``16-mixed`` or ``bf16-mixed``.
    """
    stages = build_stages(config, dataset, run)
    run_stage(stages["prepare"], run, stages)
    slices = Volumes(list(prepared(run / "prepare", dataset, "train")), config).slices()
    optimization = config.classifier.optimization
    size = micro_batch(optimization)
    batches = loader(slices, optimization, config.seed)
    task = SliceTask(SliceNetwork(config.classifier), config.classifier, config.seed)
    optimizer = torch.optim.SGD(task.parameters(), 1e-4)
    fixed = next(iter(batches))
    kind = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(precision)
    mixed = torch.autocast("cpu", kind, enabled=kind is not None)

    def load() -> int:
        return sum(len(labels) for (_, labels), _ in zip(batches, range(steps)))

    def step(hu: torch.Tensor, labels: torch.Tensor) -> int:
        with mixed:
            loss = task.bce(task.network(hu), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return len(labels)

    def network() -> int:
        return sum(step(*fixed) for _ in range(steps))

    def train() -> int:
        return sum(step(*batch) for batch, _ in zip(batches, range(steps)))

    step(*fixed)  # warm up
    rates: dict[str, list[float]] = {"loader": [], "network": [], "training": []}
    for _ in range(rounds):
        for name, work in (("loader", load), ("network", network), ("training", train)):
            rates[name].append(_rate(work))
    return {"batch": float(size), **{name: sorted(values)[len(values) // 2] for name, values in rates.items()}}


def _rate(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    slices = work()
    return slices / (time.perf_counter() - start)
