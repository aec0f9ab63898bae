"""What the commands that run stages begin with: a configuration, its data, and the machine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hemseg.errors import HemsegError

from ..fitting.hardware import Hardware, choose_hardware, rank
from ..stage_names import Variant, stage_names

if TYPE_CHECKING:
    from ..config import Config
    from ..data.datasets import DataSet
    from ..pipeline.runner import Stage


def require_training() -> None:
    """Miss what training needs before any work.

    Raises:
        ModuleNotFoundError: the extra `training` is not installed.
    """
    from importlib.util import find_spec

    if missing := next((name for name in ("torch", "lightning", "monai") if find_spec(name) is None), None):
        raise ModuleNotFoundError(name=missing)


def hardware_of(
    devices: str = "1", nodes: int = 1, precision: str = "auto", workers: str = "auto", compile: bool = False
) -> Hardware:
    """What to train on, see `choose_hardware`; says what was chosen.

    Raises:
        HemsegError: an unknown choice, or processes that were not started.
    """
    from ..console import console

    hardware, reasons = choose_hardware(devices, nodes, precision, workers, compile)
    for reason in reasons if rank() == 0 else ():
        console.print(reason, markup=False, highlight=False)
    return hardware


def config_and_data(
    config_name: str, data: list[Path] | None, run: Path, seed: int | None = None, init: str = ""
) -> tuple[Config, DataSet]:
    """The configuration, and all the data sets as one; without any, the phantoms that the configuration asks for.

    Args:
        init: weights to start from, in place of the configuration's.
    """
    from ..config import load_config
    from ..data.datasets import load_dataset, merge_datasets

    config = load_config(config_name)
    if seed is not None:
        config = replace(config, seed=seed)
    if init:
        config = replace(config, init=init)
    datasets = [load_dataset(folder, config.seed) for folder in data or ()]
    if not datasets or config.phantoms.beside_data:
        from ..pipeline.recipe import check  # torch takes seconds; mistakes in the data are reported before

        check(config)
        datasets.append(phantoms_of(config, run))
    return config, merge_datasets(datasets)


def phantoms_of(config: Config, run: Path) -> DataSet:
    """The data set of phantoms that a configuration makes for itself.

    Raises:
        HemsegError: it makes none.
    """
    from ..console import console
    from ..data.datasets import load_dataset
    from ..data.phantom import Grid, write_dataset
    from ..pipeline.runner import fingerprint

    if not config.phantoms.cases:
        raise HemsegError(f"configuration {config.name} is meant for real data: give --data FOLDER.")
    folder = run / f"phantoms-{fingerprint(config.phantoms, config.seed)}"
    if not (folder / "split.csv").exists() and rank() == 0:  # written last
        console.print(f"making {config.phantoms.cases} phantoms in {folder}")
        own = config.phantoms
        write_dataset(folder, own.cases, config.seed, Grid(own.shape, own.spacing), varied=own.varied)
    while not (folder / "split.csv").exists():  # another process makes them
        time.sleep(0.2)
    return replace(load_dataset(folder), name="phantoms")


def run_stages(
    last: str, config: Config, dataset: DataSet, run: Path, hardware: Hardware, variant: Variant | None = None
) -> None:
    """Run a stage and what it needs, or ``all``; says about how long it will take.

    Args:
        last: the stage's name.
        run: the run's folder.
        hardware: what to train on.
        variant: of the recipe; None: the recipe itself.

    Raises:
        HemsegError: a mistake in the data, a stage that the configuration does not have, or weights to start from that
            do not fit.
    """
    from ..console import console
    from ..pipeline.estimate import needed
    from ..pipeline.recipe import build_stages  # torch takes seconds; mistakes are reported before
    from ..pipeline.runner import run_stage

    variant = variant or Variant()
    stages, names = build_stages(config, dataset, run, variant, hardware), stage_names(variant)
    if last == "all":
        wanted = [names.panels, *([names.evaluate] if dataset.part("test") else [])]
    else:
        wanted = [next((name for name in (last + variant.labels, last) if name in stages), last)]
    if any(name not in stages for name in wanted):
        raise HemsegError(f"configuration {config.name} has no stage {last}: its self_training is not enabled.")
    for name in needed(wanted, stages):
        if check := stages[name].check:  # before the time of a run is measured, which takes a while
            check()
    _announce(config, dataset, run, wanted, stages, hardware)
    for name in wanted:
        run_stage(stages[name], run, stages)
    if last == "all" and not dataset.part("test"):
        console.print("evaluate: the data set has no test split, left out")


def _announce(
    config: Config, dataset: DataSet, run: Path, wanted: list[str], stages: dict[str, Stage], hardware: Hardware
) -> None:
    """Say how long a run of one process will take, before it starts."""
    from ..console import console
    from ..pipeline.estimate import estimate

    if hardware.processes > 1:
        return
    if expected := estimate(config, dataset, run, wanted, stages, hardware):
        console.print(expected.sentence(), markup=False, highlight=False)
        if warning := expected.warning():
            console.print(f"[yellow]{warning}[/yellow]")
