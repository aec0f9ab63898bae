"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hemseg.options import path

Precision = Literal["auto", "32-true", "16-mixed", "bf16-mixed"]  # Lightning's names

ConfigOption = Annotated[
    str, typer.Option("--config", help="A YAML file, or the name of one in training/configs without its suffix.")
]
RunConfigOption = Annotated[str, typer.Option("--config", help="Configuration of the run.")]
RunOption = Annotated[Path, typer.Option("--run", parser=path, help="Folder of the run.")]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", parser=path, help="Data set; may be given several times. Without it, phantoms are generated in RUN."
    ),
]
DataSetsOption = Annotated[
    list[Path], typer.Option("--data", parser=path, help="Data set; may be given several times.")
]
SplitOption = Annotated[
    list[str] | None, typer.Option("--split", help="Split to measure on; may be given several times.")
]
StrippedOption = Annotated[
    Path | None,
    typer.Option("--stripped", parser=path, help="The same scans with everything outside the skull removed."),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", parser=path, help="Folder with manifest.json; by default, hemseg's own weights."),
]
TablesOption = Annotated[Path, typer.Option("--out", parser=path, help="Folder for the tables.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Random seed, instead of the one in the configuration.")]
DevicesOption = Annotated[
    str,
    typer.Option(
        "--devices", help="Devices per node; start one process per device (torchrun, srun). auto: as many as started."
    ),
]
NodesOption = Annotated[int, typer.Option("--nodes", min=1, help="Number of nodes.")]
PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="Precision of training. auto: bf16-mixed where it is faster, otherwise 32-true."),
]
WorkersOption = Annotated[
    str,
    typer.Option(
        "--workers",
        help="Data loader processes. auto: half of the cores, at most four; with a GPU, all but one core, at most 16.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the networks first (takes minutes, needs g++): up to twice as fast on a CPU."
    ),
]
InitOption = Annotated[
    str,
    typer.Option("--init", help="Weights to start from: `weights` (hemseg's own), a run, or the folder of an export."),
]
MasksOption = Annotated[
    bool, typer.Option("--masks-train", help="Also train on the masks of train cases, where available.")
]
PermutedOption = Annotated[
    bool, typer.Option("--permuted", help="Permute the slice labels: the stages of `control`, which must fail.")
]
