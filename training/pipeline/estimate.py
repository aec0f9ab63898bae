"""How long a run will take, and how much memory, before it starts: a few measured steps times the steps to come.

The classifier and the U-Net of the configuration, and that of a later round, take a few steps at their real batch, on a
made-up head, with the real loader (painting and augmentation cost as much as a small network). The measured steps are
kept in ``RUN/steps.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hemseg.io.files import atomic_write
from hemseg.resources import available_bytes

from ..config import Config, Optimization, Segmenter
from ..data.datasets import DataSet, Prepared
from ..fitting.classifier import SliceTask, Volumes, training_slices
from ..fitting.hardware import Hardware, processor, world_size
from ..fitting.segmenter import Patches, SegmenterTask, singles_per_patch, training_batches
from ..fitting.timed_steps import timed_steps, training_device
from ..fitting.trainer import Task, micro_batch
from ..networks.slice_network import untrained_network
from ..networks.unet import build_unet, to_fast_memory_format
from ..rounds import round_config
from .runner import Stage, fingerprint, is_done
from .steps import without_paint

CACHE = "steps.json"
STEPS = 3
UNETS = {"segment": "unet", "resegment": "later unet"}  # the measured network of a stage
FORWARD = 0.35  # of a training step is the way forward: what validation and inference take
HEAD_MM = (190.0, 150.0)  # y, x: what lies inside a skull
SLICES = 28  # of the made-up head
VOXEL_BYTES = 14  # of a prepared scan in memory: HU, mask and label, and what painting knows of it


@dataclass(frozen=True)
class Estimate:
    """Minutes by stage of those that are still to be run, and the memory of the largest of them in bytes (0: unknown).

    Stages that hardly take time, or whose time depends on the scans' files alone, are not in it.
    """

    minutes: dict[str, float]
    memory_bytes: int
    on_gpu: bool

    def sentence(self) -> str:
        """What is printed before a run starts."""
        total = sum(self.minutes.values())
        parts = ", ".join(f"{name} {_rounded_minutes(value)}" for name, value in self.minutes.items() if value >= 1)
        memory = f"; {self.memory_bytes / 1e9:.1f} GB of {'GPU ' * self.on_gpu}memory" if self.memory_bytes else ""
        listed = f" ({parts})" if len(self.minutes) > 1 and parts else ""
        return f"about {_rounded_minutes(total)} minutes on this machine, beside reading the scans{listed}{memory}"

    def warning(self) -> str:
        """A sentence where the memory will not do; '' where it will, or nobody knows."""
        room = None if self.on_gpu else available_bytes()
        if room is None or self.memory_bytes <= room:
            return ""
        return f"this process can have {room / 1e9:.1f} GB of memory: give it more, or a smaller batch (micro_batch)"


def estimate(
    config: Config, dataset: DataSet, run: Path, requested: list[str], stages: dict[str, Stage], hardware: Hardware
) -> Estimate | None:
    """Time and memory of the stages that a run still has before it; None where nothing is left to train.

    Args:
        requested: names of the stages that were asked for.
        stages: all of the run's.
    """
    missing = [name for name in needed(requested, stages) if not is_done(stages[name], run, stages)]
    kinds = [name.partition("@")[0].rstrip("0123456789") for name in missing]
    if not {"classify", "sequence", "segment", "resegment"} & set(kinds):
        return None
    cost = _Cost(config, dataset, measured_steps(config, run, hardware, kinds))
    minutes: dict[str, float] = {}
    for name, kind in zip(missing, kinds, strict=True):
        if seconds := cost.seconds(kind):
            minutes[name] = seconds / 60
    return Estimate(minutes, cost.memory_bytes(kinds), training_device(hardware.accelerator).type == "cuda")


def needed(requested: list[str], stages: dict[str, Stage]) -> list[str]:
    """The stages that were asked for with all that they need, in order."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        for before in stages[name].needs:
            add(before)
        found[name] = None

    for name in requested:
        add(name)
    return list(found)


def measured_steps(config: Config, run: Path, hardware: Hardware, kinds: list[str]) -> dict[str, dict[str, float]]:
    """Seconds of a micro-batch and bytes held, by network; from ``RUN/steps.json`` where this machine measured before.

    The random numbers of the training to come are not touched.

    Args:
        kinds: of stages that are to be run; a later round's network is measured where there is one among them.
    """
    segmenters = _segmenters(config, "resegment" in kinds)
    device, precision = training_device(hardware.accelerator), hardware.precision
    key = fingerprint(
        replace(config.classifier, pretrained=""),
        tuple(segmenters.values()),
        config.preprocessing,
        precision,
        processor(),
    )
    known = _read(run / CACHE)
    if key in known:
        return dict(known[key])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = synthetic_head(config)
        steps = {}
        made: dict[str, Callable[[], tuple[Task, Any]]] = {"classifier": lambda: _classifier(head, config)}
        for name, settings in segmenters.items():
            made[name] = partial(_unet, head, config, settings)
        for name, make in made.items():
            task, batches = make()
            timed = timed_steps(task, batches, device, precision, STEPS)
            steps[name] = {"seconds": timed.seconds, "memory_bytes": float(timed.memory_bytes)}
    with atomic_write(run / CACHE) as file:
        file.write_text(json.dumps(known | {key: steps}, indent=1) + "\n")
    return steps


def synthetic_head(config: Config) -> Prepared:
    """An ellipse of brain in a ring of bone on the working grid, as large as a head, with a bright ball in it."""
    grid = config.preprocessing
    shape = (SLICES, *(round((mm + 40) / grid.in_plane_mm) for mm in HEAD_MM))
    z, y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    distance = np.sqrt(
        (z / 1.4) ** 2 + (y * (HEAD_MM[0] + 40) / HEAD_MM[0]) ** 2 + (x * (HEAD_MM[1] + 40) / HEAD_MM[1]) ** 2
    )
    inside, bone = distance < 1, (distance >= 1) & (distance < 1.08)
    hu = np.where(inside, 32.0, np.where(bone, 1000.0, -1000.0))
    hu += np.random.default_rng(0).normal(0, 3, shape)
    ball = inside & (distance < 0.25)
    hu[ball] = 65
    low, high = grid.hu_range
    labels = np.asarray(ball.any(axis=(1, 2)), np.int8)
    return Prepared("head", "train", hu.clip(low, high).astype(np.float32), inside, labels)


def finer_maps_cost(config: Config) -> float:
    """How many times the multiplications of a slice its maps take where they are finer than was trained."""
    if not config.cam.output_stride:
        return 1.0
    counts = []
    for stride in (config.classifier.output_stride, config.cam.output_stride):
        network = untrained_network(replace(config.classifier, output_stride=stride)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, *config.classifier.image_size))
        counts.append(counter.get_total_flops())
    return counts[1] / counts[0]


def _classifier(head: Prepared, config: Config) -> tuple[SliceTask, Any]:
    slices = Volumes([head], config).slices()
    optimization = _alone(config.classifier.optimization)
    copies = -(-micro_batch(optimization) // len(slices))
    slices.hu, slices.labels = slices.hu.repeat(copies, 1, 1), slices.labels.repeat(copies)
    task = SliceTask(untrained_network(config.classifier), config.classifier, config.seed)
    return task, training_slices(slices, replace(config.classifier, optimization=optimization), config.seed)


def _segmenters(config: Config, later: bool) -> dict[str, Segmenter]:
    """The settings of the first U-Net, and of a later round's if that is requested, too."""
    return {"unet": config.segmenter} | ({"later unet": round_config(config, 1).segmenter} if later else {})


def _unet(head: Prepared, config: Config, settings: Segmenter) -> tuple[SegmenterTask, Any]:
    optimization = _alone(settings.optimization)
    heads = [replace(head, name=str(i)) for i in range(micro_batch(optimization))]
    settings = replace(settings, single_slices=0, patches_per_case=1)
    labels = {h.name: (h.hu > 60) & h.intracranial for h in heads}
    network = to_fast_memory_format(build_unet(settings, len(config.preprocessing.channels)))
    patches = Patches(heads, labels, replace(config, segmenter=settings))
    task = SegmenterTask(network, settings, config.seed)
    return task, training_batches(patches, replace(settings, optimization=optimization), config.seed)


def _alone(optimization: Optimization) -> Optimization:
    """The share of one process as a batch of its own."""
    return replace(optimization, batch=max(1, micro_batch(optimization)), micro_batch=0)


class _Cost:
    """Seconds by kind of stage, from measured steps and the sizes of the data."""

    def __init__(self, config: Config, dataset: DataSet, steps: dict[str, dict[str, float]]) -> None:
        self.config, self.steps = config, steps
        self.parts = {
            name: dataset.without(absent)
            for name, absent in (
                ("classify", config.without.classify),
                ("sequence", config.without.sequence),
                ("segment", config.without.segment),
            )
        }
        self.weak = dataset.part("train", "val")
        self.per_slice = steps["classifier"]["seconds"] / micro_batch(config.classifier.optimization)
        self.per_patch = {
            name: steps[name]["seconds"] / micro_batch(settings.optimization)
            for name, settings in _segmenters(config, "later unet" in steps).items()
        }

    def seconds(self, kind: str) -> float:
        """Of a stage; 0 where it hardly takes time, or nobody knows."""
        c = self.config
        if kind == "classify":
            train, val = (self._slices("classify", split) for split in ("train", "val"))
            both = [c.classifier, *([without_paint(c).classifier] if c.classifier.unpainted else [])]
            works = (o.optimization.epochs * (train * (1 + o.painted) / world_size() + FORWARD * val) for o in both)
            return sum(works) * self.per_slice
        if kind == "sequence":
            work = self._slices("sequence", "train") / world_size() + FORWARD * self._slices("sequence", "val")
            return c.sequence.enabled * c.sequence.optimization.epochs * work * self.per_slice
        if kind == "cam":
            passes = len(c.cam.stages or (c.cam.stage,)) * (1 + c.cam.flips)
            return self._positive() * passes * self.per_slice * finer_maps_cost(c)
        if kind == "pseudolabel":
            trials = 1 + (
                c.pseudolabels.candidates if c.pseudolabels.method == "components" else c.pseudolabels.clusters
            )
            return self._positive() * trials * FORWARD * self.per_slice
        if kind in UNETS:
            return self._unet(UNETS[kind])
        if kind == "relabel":
            return sum(1 in case.labels for case in self.weak) * self._whole()
        return 0.0

    def memory_bytes(self, kinds: list[str]) -> int:
        """The most of the stages: the measured process, and the data that it will hold."""
        c, held = self.config, [0.0]
        in_plane = math.prod((mm + 40) / c.preprocessing.in_plane_mm for mm in HEAD_MM)
        on_gpu = torch.cuda.is_available()
        if {"classify", "sequence"} & set(kinds):
            pixels = math.prod(c.classifier.image_size) * 4 * 2  # as volumes and as slices
            slices = self._slices("classify", "train") * (1 + c.classifier.painted) + self._slices("classify", "val")
            held.append(self.steps["classifier"]["memory_bytes"] + (0 if on_gpu else pixels * slices))
        for name in {UNETS[kind] for kind in kinds if kind in UNETS}:
            voxels = in_plane * sum(len(case.labels) for case in self.parts["segment"].part("train", "val"))
            held.append(self.steps[name]["memory_bytes"] + (0 if on_gpu else VOXEL_BYTES * voxels))
        return int(max(held)) if all(step["memory_bytes"] for step in self.steps.values()) else 0

    def _slices(self, stage: str, split: str) -> int:
        """Labelled slices that a stage sees in an epoch."""
        cases = self.parts[stage].part(split)
        return sum(sum(label >= 0 for label in c.labels) for c in cases if stage != "sequence" or len(c.labels) > 1)

    def _positive(self) -> int:
        return sum(label == 1 for case in self.weak for label in case.labels)

    def _whole(self, name: str = "unet") -> float:
        """Seconds of a U-Net's answer about a whole scan."""
        s = _segmenters(self.config, name != "unet")[name]
        return FORWARD * self.per_patch[name] * math.prod(s.patch) / math.prod(s.train_patch)

    def _unet(self, name: str) -> float:
        """Seconds of a U-Net's training."""
        part, settings = self.parts["segment"], _segmenters(self.config, name != "unet")[name]
        train = part.part("train")
        singles = settings.single_slices and any(len(case.labels) == 1 for case in train)
        volumes = sum(len(case.labels) > 1 for case in train) if singles else len(train)
        samples = volumes * settings.patches_per_case
        samples += -(-settings.single_slices // singles_per_patch(settings)) if singles else 0
        val = sum(len(case.labels) > 1 for case in part.part("val"))
        of_epoch = samples * self.per_patch[name] / world_size() + val * self._whole(name)
        return settings.optimization.epochs * of_epoch


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _rounded_minutes(minutes: float) -> str:
    """Minutes as one says them: no more digits than the estimate is good for."""
    if minutes < 1:
        return "1"
    return str(round(minutes)) if minutes < 20 else str(5 * round(minutes / 5))
