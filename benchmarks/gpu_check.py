"""Does training compute on a GPU what it computes on the CPU, how fast, and does the loader keep up?

    python benchmarks/gpu_check.py --out gpu.json                # a CUDA machine: paper.yaml at 512 x 512
    python benchmarks/gpu_check.py --device cpu --tiny           # seconds, without a GPU: does the check itself work?

Needs what training needs (`pip install 'hemseg[training]'`) and no network. Phantoms are made on the spot. Each network
of the paper (slice classifier, ResNet-LSTM, 3D U-Net) takes a fixed number of steps in float32 and with bfloat16 where
mixed precision allows it, always from the same random weights over the same batches:

- loss and gradients of the first step are compared with the CPU's in float32: the losses' relative
  difference, and 1 - the cosine between the two gradients. TF32 is off. A deep network with random weights
  amplifies rounding until its gradients have little in common. So the CPU is compared with itself, too: with its input
  changed in the last bits of float32, or its own bfloat16. The tolerance is `TIMES` that, and never less than
  `TOLERANCES`.
- steps per second, and the most memory that was held;
- steps with the real loader against steps on one batch in memory: from 0.9 on the loader keeps up.

Exit code 0: all within the tolerances. The loader's ratio is reported, and decides nothing: it moves on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import monai
import numpy as np
import torch

import hemseg
from hemseg.preprocessing import working_image
from hemseg.resources import cores
from training.config import Config, load_config
from training.data.datasets import Prepared
from training.data.phantom import KINDS, Grid, make_phantom
from training.evaluation.quality import mask_on_grid
from training.fitting.classifier import SequenceTask, SliceTask, Volumes, collate_volumes, training_slices
from training.fitting.hardware import cpu_name, processor
from training.fitting.segmenter import Patches, SegmenterTask, training_batches
from training.fitting.timed_steps import autocast, timed_steps, to_device
from training.fitting.trainer import Task, loader, micro_batch
from training.networks.slice_network import SequenceNetwork, SliceNetwork
from training.networks.unet import build_unet, to_fast_memory_format

TOLERANCES = {"32-true": (1e-3, 1e-3), "bf16-mixed": (5e-2, 0.1)}  # of losses (relative), of gradients (1 - cosine)
TIMES = 3.0
LAST_BITS = 2.0**-22  # of float32, relative
MIN_LOADER_RATIO = 0.9
PAPER_GRID = Grid((16, 512, 512), (0.42, 0.42, 5.0))
TINY_GRID = Grid((8, 64, 64), (3.4, 3.4, 18.0))

TaskMaker = Callable[[], tuple[Task, Iterable[Any]]]


@dataclass(frozen=True)
class Comparison:
    """Relative difference of the losses (the largest), and 1 - cosine of the gradients, against the CPU in float32."""

    loss: float
    gradient: float

    def within(self, tolerances: tuple[float, float]) -> bool:
        """Whether both are within tolerances, of the loss and of the gradients."""
        return self.loss <= tolerances[0] and self.gradient <= tolerances[1]  # not for NaN


@dataclass(frozen=True)
class Reference:
    """What the CPU computes in float32, and by precision what else would be right: (loss, gradients)."""

    loss: float
    gradients: np.ndarray
    tolerances: dict[str, tuple[float, float]]


def tiny_config(config: Config) -> Config:
    """The paper's networks and optimisers on images and widths that take seconds."""
    c, s, u = config.classifier, config.sequence, config.segmenter
    small = replace(c.optimization, batch=4, micro_batch=0)
    widths = (16, 16, 16, 16)  # below 16 channels, torch 2.13's convolutions overrun their memory on a CPU, backward
    return replace(
        config,
        preprocessing=replace(config.preprocessing, in_plane_mm=3.4, slice_mm=18.0),
        classifier=replace(c, backbone="resnet18", widths=widths, image_size=(48, 48), optimization=small),
        sequence=replace(s, hidden=8),
        segmenter=replace(
            u,
            channels=(4, 8, 8),
            strides=((1, 2, 2), (2, 2, 2)),
            train_patch=(8, 32, 32),
            patch=(8, 32, 32),
            optimization=replace(u.optimization, batch=2, micro_batch=0),
        ),
    )


def phantom_cases(config: Config, grid: Grid, count: int) -> tuple[list[Prepared], dict[str, np.ndarray]]:
    """Prepared phantoms with blood, and their masks on the working grid in place of pseudo-labels."""
    one = partial(_phantom_case, config=config, grid=grid)
    with ThreadPoolExecutor(min(count, cores())) as pool:  # numpy and SciPy work beside the GIL
        made = list(pool.map(one, range(count)))
    return [case for case, _ in made], {case.name: mask for case, mask in made}


def _phantom_case(seed: int, config: Config, grid: Grid) -> tuple[Prepared, np.ndarray]:
    phantom = make_phantom(seed, (KINDS[seed % len(KINDS)],), grid)
    working = working_image(phantom.volume, config.preprocessing)
    mask = mask_on_grid(phantom.volume, phantom.mask, config.preprocessing)
    known = np.asarray(mask.any(axis=(1, 2)), np.int8)
    return Prepared(f"phantom-{seed}", "train", working.hu, working.intracranial, known), mask


def tasks(config: Config, cases: list[Prepared], labels: dict[str, np.ndarray]) -> dict[str, TaskMaker]:
    """Functions that make each stage's task and batches: the same weights and the same order every time."""
    volumes = Volumes(cases, config)
    slices = volumes.slices()
    patches = Patches(cases, labels, config)

    def classify() -> tuple[Task, Iterable[Any]]:
        torch.manual_seed(config.seed)
        optimization = _micro(config.classifier.optimization)
        settings = replace(config.classifier, optimization=optimization)
        return SliceTask(SliceNetwork(settings), settings, config.seed), training_slices(slices, settings, config.seed)

    def sequence() -> tuple[Task, Iterable[Any]]:
        torch.manual_seed(config.seed)
        network = SequenceNetwork(SliceNetwork(config.classifier), config.sequence)
        batches = loader(volumes, _micro(config.sequence.optimization), config.seed)
        batches.collate_fn = collate_volumes
        return SequenceTask(network, config), batches

    def segment() -> tuple[Task, Iterable[Any]]:
        torch.manual_seed(config.seed)
        optimization = _micro(config.segmenter.optimization)
        settings = replace(config.segmenter, optimization=optimization)
        network = to_fast_memory_format(build_unet(settings, len(config.preprocessing.channels)))
        return SegmenterTask(network, settings, config.seed), training_batches(patches, settings, config.seed)

    return {"classify": classify, "sequence": sequence, "segment": segment}


def _micro(optimization: Any) -> Any:
    """What fits the device at once as a batch of its own."""
    return replace(optimization, batch=micro_batch(optimization), micro_batch=0)


def first_step(make: TaskMaker, device: torch.device, precision: str, change: float = 0.0) -> tuple[float, np.ndarray]:
    """Loss of the first step, and all its gradients, end to end, float64 (n,).

    Args:
        change: relative, at random, of each value of the first tensor of the batch.
    """
    task, batches = make()
    task.to(device).train()
    first, *others = next(iter(batches))
    if change:
        first = first * (1 + change * torch.randn(first.shape, generator=torch.Generator().manual_seed(0)))
    with autocast(device, precision), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*self.trainer. reference is not registered.*")  # nothing is logged
        loss: Any = task.training_step(to_device((first, *others), device), 0)
    loss.backward()
    parts = [p.grad.detach().double().cpu().flatten() for p in task.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(parts).numpy()


def compute_reference(make: TaskMaker) -> Reference:
    """What the CPU says."""
    cpu = torch.device("cpu")
    loss, gradients = first_step(make, cpu, "32-true")
    tolerances = {}
    for precision, least in TOLERANCES.items():
        other = first_step(make, cpu, precision, LAST_BITS if precision == "32-true" else 0.0)
        own = compare(other, (loss, gradients))
        tolerances[precision] = (max(least[0], TIMES * own.loss), max(least[1], TIMES * own.gradient))
    return Reference(loss, gradients, tolerances)


def compare(found: tuple[float, np.ndarray], expected: tuple[float, np.ndarray]) -> Comparison:
    """Loss and gradients against others."""
    (loss, gradients), (expected_loss, expected_gradients) = found, expected
    relative = abs(loss - expected_loss) / max(abs(expected_loss), 1e-9)
    size = float(np.linalg.norm(gradients) * np.linalg.norm(expected_gradients))
    return Comparison(relative, float("nan") if not size else 1 - float(gradients @ expected_gradients) / size)


def check_stage(
    make: TaskMaker, device: torch.device, precision: str, steps: int, reference: Reference
) -> dict[str, Any]:
    """Figures of one network in one precision."""
    comparison = compare(first_step(make, device, precision), (reference.loss, reference.gradients))
    task, batches = make()
    real = timed_steps(task, batches, device, precision, steps, warm_up=2)
    task, batches = make()
    fixed = to_device(next(iter(batches)), device)
    bare = timed_steps(task, [fixed] * (steps + 2), device, precision, steps, warm_up=2)
    tolerances = reference.tolerances[precision]
    ratio = bare.seconds / real.seconds
    return {
        "precision": precision,
        "steps": steps,
        "samples_per_step": len(fixed[1]),
        "steps_per_second": round(1 / real.seconds, 3),
        "bare_steps_per_second": round(1 / bare.seconds, 3),
        "loader_ratio": round(ratio, 3),
        "loader_keeps_up": ratio >= MIN_LOADER_RATIO,
        "memory_gb": round(real.memory_bytes / 1e9, 2),
        "first_loss": real.losses[0],
        "last_loss": real.losses[-1],
        "loss_difference_to_cpu": comparison.loss,
        "gradient_difference_to_cpu": comparison.gradient,
        "tolerances": list(tolerances),
        "within_tolerances": comparison.within(tolerances),
    }


def check(device: torch.device, small: bool, steps: int, cases: int) -> dict[str, Any]:
    """The whole check, as it is written to JSON."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = tiny_config(load_config("paper")) if small else load_config("paper")
    start = time.perf_counter()
    prepared, labels = phantom_cases(config, TINY_GRID if small else PAPER_GRID, cases)
    print(f"{cases} phantoms in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    rows = []
    for stage, make in tasks(config, prepared, labels).items():
        reference = compute_reference(make)
        for precision in TOLERANCES:
            rows.append({"stage": stage} | check_stage(make, device, precision, steps, reference))
            print(_line(rows[-1]), file=sys.stderr)
    return {
        "device": device_name(device),
        "configuration": "paper, tiny" if small else "paper",
        "image_size": list(config.classifier.image_size),
        "train_patch": list(config.segmenter.train_patch),
        "versions": {
            "python": platform.python_version(),
            "hemseg": hemseg.__version__,
            "torch": torch.__version__,
            "monai": monai.__version__,
            "lightning": lightning.__version__,
        },
        "stages": rows,
        "within_tolerances": all(row["within_tolerances"] for row in rows),
    }


def device_name(device: torch.device) -> str:
    """What is checked, by name: on a machine with a GPU, too, the CPU is the CPU."""
    return processor() if device.type == "cuda" else f"CPU ({cpu_name()})"


def _line(row: dict[str, Any]) -> str:
    verdict = "within tolerances" if row["within_tolerances"] else "NOT WITHIN TOLERANCES"
    return (
        f"{row['stage']:9} {row['precision']:11} {row['steps_per_second']:8.2f} steps/s, {row['memory_gb']:.1f} GB, "
        f"loader {row['loader_ratio']:.2f}; against the CPU: loss {row['loss_difference_to_cpu']:.1e}, gradient "
        f"{row['gradient_difference_to_cpu']:.1e}: {verdict}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the check from the command line; 0 where all is within the tolerances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small images and networks: seconds on a CPU")
    parser.add_argument("--steps", type=int, default=0, help="timed per stage and precision; by default 20, tiny 2")
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device here; --device cpu --tiny tries the check itself.", file=sys.stderr)
        return 1
    steps = max(1, options.steps) if options.steps else 2 if options.tiny else 20
    result = check(torch.device(options.device), options.tiny, steps, cases=3 if options.tiny else 6)
    text = json.dumps(result, indent=1) + "\n"
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)
    else:
        print(text, end="")
    return 0 if result["within_tolerances"] else 1


if __name__ == "__main__":
    sys.exit(main())
