"""Accuracy against time: U-Nets of other grids and widths, trained on the same labels and measured on val.

    python -m training tradeoff --config best --data A --data B --run RUN --out docs/results/tradeoff

All learn what the present weights (the teacher) outline in the slices that are labelled positive; negative slices are
empty, and positive ones in which the teacher finds nothing do not count. So slice labels remain the only supervision,
and the rows differ in nothing but grid and width. Val masks rank them, which the table's column ``selection`` says;
test is left alone. Seconds are of the network alone, on one patch and one thread, all rows in one process at the end.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.model import Model, load
from hemseg.preprocessing import Settings
from hemseg.scan import read
from hemseg.segmentation import segment

from ..config import Config
from ..console import console
from ..data.datasets import DataSet, prepared
from ..evaluation.evaluate import evaluate, network_predictor
from ..evaluation.quality import mask_on_grid
from ..evaluation.tables import markdown_table, read_cases, write_table
from ..networks.unet import multiples
from ..pipeline.context import WEAK
from ..pipeline.recipe import build_stages
from ..pipeline.runner import Stage, run_stage
from ..stage_names import stage_names
from .ablation import significance


@dataclass(frozen=True)
class Size:
    """A row: pixels of the working grid in mm, and the share of the configuration's channels."""

    in_plane_mm: float
    width: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.in_plane_mm:g}mm-x{self.width:g}"

    def of(self, config: Config, epochs: int) -> Config:
        """The configuration with this grid and width; patches cover the same mm, in whole strides."""
        segmenter, finer = config.segmenter, config.preprocessing.in_plane_mm / self.in_plane_mm
        step = multiples(segmenter)
        if segmenter.encoder.name and self.width != 1:
            raise HemsegError(f"configuration {config.name}: an encoder has one width, not {self.width:g} of it.")

        def patch(size: tuple[int, int, int]) -> tuple[int, int, int]:
            z, y, x = size
            return z, *(-(-round(n * finer) // s) * s for n, s in zip((y, x), step[1:], strict=True))  # type: ignore[return-value]

        return replace(
            config,
            name=f"{config.name} {self.name}",
            preprocessing=replace(config.preprocessing, in_plane_mm=self.in_plane_mm),
            segmenter=replace(
                segmenter,
                channels=tuple(max(2, round(c * self.width)) for c in segmenter.channels),
                patch=patch(segmenter.patch),
                train_patch=patch(segmenter.train_patch),
                optimization=replace(segmenter.optimization, epochs=epochs),
            ),
            self_training=replace(config.self_training, enabled=False),
        )


SIZES = (Size(1.0, 1.0), Size(1.0, 0.5), Size(1.5, 1.0), Size(0.75, 0.5))  # the first is the configuration's own


def tradeoff(
    config: Config, dataset: DataSet, run: Path, out: Path, epochs: int, sizes: tuple[Size, ...] = SIZES
) -> list[dict[str, Any]]:
    """Train, measure and time every size; writes ``table.md``, ``table.csv`` and ``per_case.csv`` to ``out``.

    Args:
        config: the recipe whose U-Net is varied.
        dataset: train to learn from, val to measure on.
        run: the folder of the run, with a folder per size.
        out: the folder of the tables.
        epochs: of each U-Net.
        sizes: the rows; the first one is what the others are compared with.
    """
    teacher = load(device="cpu")
    models: dict[Size, Model] = {}
    rows, per_case = [], dict[str, list[dict[str, Any]]]()
    for size in sizes:
        own, folder = size.of(config, epochs), run / size.name
        folder.mkdir(parents=True, exist_ok=True)
        stages = build_stages(own, dataset, folder)
        names = stage_names()
        stages[names.pseudolabel] = Stage(
            names.pseudolabel,
            (names.prepare,),
            (teacher.manifest.sha256,),
            partial(teacher_labels, dataset, teacher, own.preprocessing, folder / names.prepare),
        )
        run_stage(stages[names.export], folder, stages)
        models[size] = load(folder / names.export, "cpu", threads=1)
        evaluate(dataset, network_predictor(folder / names.export), folder / "val", ("val",))
        cases = _outlined(dataset, folder / "val")
        rows.append(_row(size, own, cases, next(iter(per_case.values()), None)))
        per_case[size.name] = cases
    _add_seconds(rows, models)
    write_table(rows, out / "table.csv")
    write_table([{"size": name, **case} for name, cases in per_case.items() for case in cases], out / "per_case.csv")
    caption = (
        f"`python -m training tradeoff --config {config.name} --epochs {epochs}`, {dataset.name}, seed {config.seed}. "
        f"Dice: mean ± sd of {len(cases)} val patients; * p < 0.05, ** p < 0.001 worse than the first row (two-tailed "
        "paired t-test). CPU seconds: the network alone, one patch, one thread, ONNX Runtime."
    )
    (out / "table.md").write_text("\n".join([caption, "", *markdown_table(rows)]) + "\n")
    return rows


def _outlined(dataset: DataSet, folder: Path) -> list[dict[str, Any]]:
    """The measured val cases of real data that have a reference mask; those of phantoms where there are no others."""
    sources = [source for source in dataset.sources() if any(case.reference for case in source.part("val"))]
    rows = []
    for source in [source for source in sources if source.name != "phantoms"] or sources:
        own = folder if source.name == dataset.name else folder / source.name
        rows += [row for row in read_cases(own / "per_case.csv") if np.isfinite(row["dice"])]
    return rows


def teacher_labels(
    dataset: DataSet, teacher: Model, settings: Settings, prepared_folder: Path, folder: Path
) -> dict[str, Any]:
    """What the teacher outlines in the positive slices of train and val, on ``settings``' grid; a file per case."""
    by_name = {case.name: case for case in dataset.cases}
    voxels, left_out = 0, 0
    for case in track(list(prepared(prepared_folder, dataset, *WEAK)), "labels", console=console):
        mask = np.zeros(case.hu.shape, bool)
        if (case.labels == 1).any():
            volume = read(by_name[case.name].image)
            mask = mask_on_grid(volume, segment(volume, teacher).mask, settings)
            mask[case.labels != 1] = False
        empty = (case.labels == 1) & ~mask.any(axis=(1, 2))
        np.savez_compressed(folder / f"{case.name}.npz", mask=mask, left_out=empty)
        voxels, left_out = voxels + int(mask.sum()), left_out + int(empty.sum())
    return {"voxels": voxels, "left_out": left_out}


def _row(size: Size, config: Config, cases: list[dict[str, Any]], first: list[dict[str, Any]] | None) -> dict[str, Any]:
    dice = np.array([case["dice"] for case in cases])
    return {
        "pixels (mm)": f"{size.in_plane_mm:g}",
        "channels": " ".join(map(str, config.segmenter.channels)),
        "patch": " x ".join(map(str, config.segmenter.patch)),
        "Dice, val": f"{dice.mean():.3f} ± {dice.std():.3f}{significance(first, cases, 'dice', 1) if first else ''}",
        "false lesions a scan": f"{np.mean([case['lesions_false'] for case in cases]):.2f}",
        "selection": "ranked on val masks",
    }


def _add_seconds(rows: list[dict[str, Any]], models: dict[Size, Model]) -> None:
    """CPU seconds of the network alone, and their ratio to the first row's."""
    base = 0.0
    for row, model in zip(rows, models.values(), strict=True):
        manifest = model.manifest
        image = np.random.default_rng(0).random((1, len(manifest.preprocessing.channels), *manifest.patch), np.float32)
        seconds = _median_cpu_seconds(partial(model, image))
        base = base or seconds
        row |= {"CPU seconds": f"{seconds:.2f}", "of the first": f"{seconds / base:.2f}"}


def _median_cpu_seconds(call: Callable[[], Any], times: int = 5) -> float:
    """CPU seconds of a call, after a first one that is not counted."""
    call()
    laps = []
    for _ in range(times):
        start = time.process_time()
        call()
        laps.append(time.process_time() - start)
    return statistics.median(laps)
