"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]  # Lightning's names

ConfigOption = Annotated[
    str, typer.Option("--config", help="A YAML file, or the bare name of one in training/configs.")
]
RunConfigOption = Annotated[str, typer.Option("--config", help="The run's configuration.")]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run.")]
DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", help="A data set; may be given several times. Without it, phantoms are made in the run."),
]
DataSetsOption = Annotated[list[Path], typer.Option("--data", help="A data set; may be given several times.")]
SplitOption = Annotated[
    list[str] | None, typer.Option("--split", help="A split to measure on; may be given several times.")
]
StrippedOption = Annotated[
    Path | None, typer.Option("--stripped", help="The same scans without what lies outside the skull.")
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", help="Folder with manifest.json; by default hemseg's weights.")
]
TablesOption = Annotated[Path, typer.Option("--out", help="Folder for the tables.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Instead of the configuration's seed.")]
DevicesOption = Annotated[
    str,
    typer.Option("--devices", help="Per node; start one process for each (torchrun, srun). auto: as many as started."),
]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Nodes.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="Of the arithmetic in training. auto: bf16-mixed where that is faster."),
]
WorkersOption = Annotated[
    str,
    typer.Option(
        "--workers",
        help="Processes that make samples ahead. auto: half of the cores, at most four; beside a GPU all but one.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", help="Compile the networks first (minutes; needs g++): up to twice as fast on a CPU."),
]
InitOption = Annotated[
    str, typer.Option("--init", help="Weights to start from: `weights` (hemseg's own), a run, or an export's folder.")
]
MasksOption = Annotated[
    bool, typer.Option("--masks-train", help="Train on the masks of train cases, too, where there are some.")
]
PermutedOption = Annotated[
    bool, typer.Option("--permuted", help="Permute slice labels: stages of the run that `control` has to fail with.")
]
