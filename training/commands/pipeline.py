"""Commands that run the recipe: all of it, or a stage with what it needs before it."""

from __future__ import annotations

import sys

import typer

from hemseg.errors import HemsegError

from ..stage_names import STAGES, Variant
from .inputs import config_and_data, hardware_of, require_training, run_stages
from .options import (
    CompileOption,
    ConfigOption,
    DataOption,
    DevicesOption,
    InitOption,
    MasksOption,
    NodesOption,
    PermutedOption,
    PrecisionOption,
    RunOption,
    SeedOption,
    WorkersOption,
)

app = typer.Typer()


def _stage_command(name: str, text: str) -> None:
    def command(
        config: ConfigOption,
        run: RunOption,
        data: DataOption = None,
        init: InitOption = "",
        masks: MasksOption = False,
        permuted: PermutedOption = False,
        seed: SeedOption = None,
        devices: DevicesOption = "auto",
        nodes: NodesOption = 1,
        precision: PrecisionOption = "auto",
        workers: WorkersOption = "auto",
        compile: CompileOption = False,
    ) -> None:
        if masks and permuted:
            raise HemsegError("--masks-train and --permuted are two different trainings; leave one of them out.")
        require_training()
        settings, dataset = config_and_data(config, data, run, seed, init)
        hardware = hardware_of(devices, nodes, precision, workers, compile)
        run_stages(name, settings, dataset, run, hardware, Variant(masks=masks, permuted=permuted))

    app.command(name, help=text)(command)


_stage_command("all", "Run all stages.")
for _name, _what in STAGES.items():
    _stage_command(_name, f"{_what} First runs the stages it needs.")


@app.command()
def status(run: RunOption) -> None:
    """Show the stages of a run: their state (done, in progress or interrupted), minutes and figures."""
    from rich.console import Console
    from rich.table import Table

    from ..pipeline.runner import stage_states

    table = Table("stage", "state", "minutes", "figures")
    for name, state, minutes, figures in stage_states(run):
        table.add_row(name, state, minutes, figures)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
