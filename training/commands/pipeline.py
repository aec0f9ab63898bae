"""Commands that run the recipe: all of it, or a stage with what it needs before it."""

from __future__ import annotations

import sys

import typer

from ..fitting.hardware import Hardware
from ..stage_names import STAGES
from .inputs import run_stages
from .options import (
    ConfigOption,
    DataOption,
    DevicesOption,
    NodesOption,
    PrecisionOption,
    RunOption,
    SeedOption,
)

app = typer.Typer()


def _stage_command(name: str, text: str) -> None:
    def command(
        config: ConfigOption,
        run: RunOption,
        data: DataOption = None,
        seed: SeedOption = None,
        devices: DevicesOption = 1,
        nodes: NodesOption = 1,
        precision: PrecisionOption = "32-true",
    ) -> None:
        run_stages(name, config, data, run, Hardware(devices, nodes, precision), seed)

    app.command(name, help=text)(command)


_stage_command("all", "Run all stages.")
for _name, _what in STAGES.items():
    _stage_command(_name, f"{_what} Runs the stages that it needs first.")


@app.command()
def status(run: RunOption) -> None:
    """Show the stages of a run: done, under way or interrupted, minutes and figures."""
    from rich.console import Console
    from rich.table import Table

    from ..pipeline.runner import states

    table = Table("stage", "state", "minutes", "figures")
    for name, state, minutes, figures in states(run):
        table.add_row(name, state, minutes, figures)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
