"""What the commands that run stages begin with: a configuration, its data, and the machine."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hemseg.errors import HemsegError

from ..fitting.hardware import Hardware, rank

if TYPE_CHECKING:
    from ..config import Config
    from ..data.datasets import DataSet


def config_and_data(
    config_name: str, data: list[Path] | None, run: Path, seed: int | None = None
) -> tuple[Config, DataSet]:
    """The configuration, and all the data sets as one; without any, the phantoms that the configuration asks for."""
    from ..config import load_config
    from ..data.datasets import load_dataset, together

    config = load_config(config_name)
    if seed is not None:
        config = replace(config, seed=seed)
    datasets = [load_dataset(folder, config.seed) for folder in data or ()]
    if not datasets or config.phantoms.beside_data:
        datasets.append(replace(load_dataset(_phantoms(config, run)), name="phantoms"))
    return config, together(datasets)


def _phantoms(config: Config, run: Path) -> Path:
    """The data set of phantoms that a configuration makes for itself."""
    from ..console import console
    from ..data.phantom import Grid, write_dataset
    from ..pipeline.runner import fingerprint

    if not config.phantoms.cases:
        raise HemsegError(f"configuration {config.name} is meant for real data: give --data FOLDER.")
    folder = run / f"phantoms-{fingerprint(config.phantoms, config.seed)}"
    if not (folder / "split.csv").exists() and rank() == 0:  # written last
        console.print(f"making {config.phantoms.cases} phantoms in {folder}")
        write_dataset(folder, config.phantoms.cases, config.seed, Grid(config.phantoms.shape, config.phantoms.spacing))
    while not (folder / "split.csv").exists():  # another process makes them
        time.sleep(0.2)
    return folder


def run_stages(
    last: str, config_name: str, data: list[Path] | None, run: Path, hardware: Hardware, seed: int | None = None
) -> None:
    """Run a stage and what it needs, or ``all``.

    Args:
        last: the stage's name.
        config_name: a YAML file, or the bare name of one of ours.
        data: folders of data sets; phantoms where there are none.
        run: the run's folder.
        hardware: what to train on.
        seed: in place of the configuration's.

    Raises:
        HemsegError: a mistake in configuration or data, or processes that were not started.
    """
    from importlib.util import find_spec

    from ..console import console
    from ..pipeline.runner import run_stage
    from ..stage_names import stage_names

    if missing := next((name for name in ("torch", "lightning", "monai") if find_spec(name) is None), None):
        raise ModuleNotFoundError(name=missing)
    hardware.check()
    config, dataset = config_and_data(config_name, data, run, seed)
    from ..pipeline.recipe import build_stages  # torch takes seconds; mistakes are reported before

    stages = build_stages(config, dataset, run, hardware=hardware)
    if last != "all":
        run_stage(stages[last], run, stages)
        return
    names = stage_names()
    run_stage(stages[names.panels], run, stages)
    if dataset.part("test"):
        run_stage(stages[names.evaluate], run, stages)
    else:
        console.print("evaluate: the data set has no test split, left out")
