"""Commands that run the recipe more than once, and the record of what was run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hemseg.errors import HemsegError
from hemseg.options import path

from .inputs import config_and_data, hardware_of, phantoms_of, require_training
from .options import (
    CompileOption,
    ConfigOption,
    DataOption,
    DevicesOption,
    InitOption,
    MasksOption,
    NodesOption,
    PrecisionOption,
    RunConfigOption,
    RunOption,
    SeedOption,
    TablesOption,
    WorkersOption,
)

app = typer.Typer()


@app.command("ablate")
def _ablate(
    config: ConfigOption,
    run: RunOption,
    out: TablesOption,
    data: DataOption = None,
    devices: DevicesOption = "auto",
    nodes: NodesOption = 1,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = "auto",
    compile: CompileOption = False,
    seed: SeedOption = None,
    masks: MasksOption = False,
) -> None:
    """Run the ablation of the paper (Table 2), the supervised upper bound and the threshold baseline; writes tables."""
    from ..experiments.ablation import ablate

    ablate(
        *config_and_data(config, data, run, seed),
        run,
        out,
        hardware_of(devices, nodes, precision, workers, compile),
        masks,
    )


@app.command("crossval")
def _crossval(
    config: ConfigOption,
    run: RunOption,
    out: TablesOption,
    data: DataOption = None,
    folds: Annotated[
        int, typer.Option(help="Number of folds, with disjoint test sets of a fifth of the patients each.")
    ] = 3,
    devices: DevicesOption = "auto",
    nodes: NodesOption = 1,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = "auto",
    compile: CompileOption = False,
) -> None:
    """Cross-validate the whole recipe by patient; writes tables."""
    from ..experiments.crossval import crossvalidate

    crossvalidate(
        *config_and_data(config, data, run), run, folds, out, hardware_of(devices, nodes, precision, workers, compile)
    )


@app.command("control")
def _control(
    config: ConfigOption,
    run: RunOption,
    data: DataOption = None,
    devices: DevicesOption = "auto",
    nodes: NodesOption = 1,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = "auto",
    compile: CompileOption = False,
    seed: SeedOption = None,
) -> None:
    """Train again with slice labels permuted within each volume, a control that must fail.

    Labels of single slices are permuted among each other. Prints the Dice of the recipe, of the control and of a
    threshold without learning.
    """
    from ..experiments.ablation import control

    hardware = hardware_of(devices, nodes, precision, workers, compile)
    for name, dice in control(*config_and_data(config, data, run, seed), run, hardware).items():
        for source, value in dice.items():
            print(f"{name}, {source} {value:.4f}" if source else f"{name} {value:.4f}")


@app.command("finetuning")
def _finetuning(
    config: ConfigOption,
    run: RunOption,
    out: TablesOption,
    data: Annotated[
        Path, typer.Option(parser=path, help="Data set of new scans, which the initial weights have not seen.")
    ],
    old: Annotated[
        list[Path] | None,
        typer.Option(parser=path, help="Data set that the initial weights learned from; may be given several times."),
    ] = None,
    patients: Annotated[
        list[int] | None,
        typer.Option(help="Number of patients to train on; may be given several times. The last run always uses all."),
    ] = None,
    init: InitOption = "",
    devices: DevicesOption = "auto",
    nodes: NodesOption = 1,
    precision: PrecisionOption = "auto",
    workers: WorkersOption = "auto",
    compile: CompileOption = False,
    seed: SeedOption = None,
) -> None:
    """Measure what fine-tuning gains on new scans and forgets on old ones, by number of training patients."""
    require_training()
    from ..config import load_config
    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..experiments.finetuning import finetuning

    settings = load_config(config)
    settings = replace(settings, init=init or settings.init, seed=settings.seed if seed is None else seed)
    mine, before = load_dataset(data, settings.seed), [load_dataset(folder, settings.seed) for folder in old or ()]
    beside = [phantoms_of(settings, run)] if settings.phantoms.beside_data else []
    hardware = hardware_of(devices, nodes, precision, workers, compile)
    for row in finetuning(settings, mine, beside, before, patients or [10, 30], run, out, hardware):
        print(in_words(row))


@app.command("tradeoff")
def _tradeoff(
    config: ConfigOption,
    run: RunOption,
    out: TablesOption,
    data: DataOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each U-Net.")] = 20,
    seed: SeedOption = None,
) -> None:
    """Train U-Nets with other grids and widths on the outlines of hemseg's weights; writes Dice on val against time."""
    from ..console import in_words
    from ..experiments.tradeoff import tradeoff

    for row in tradeoff(*config_and_data(config, data, run, seed), run, out, epochs):
        print(in_words(row))


@app.command("shortcuts")
def _shortcuts(
    config: ConfigOption, run: RunOption, data: DataOption = None, init: InitOption = "", seed: SeedOption = None
) -> None:
    """Measure whether the classifier's answer depends on the data set a slice is from (on negative val slices).

    With --init, the classifiers of those weights are measured; RUN then holds only the prepared scans.
    """
    from ..console import in_words
    from ..experiments.shortcuts import shortcuts
    from ..fitting.trainer import load_network
    from ..networks.slice_network import untrained_network
    from ..pipeline.initial_weights import find_initial_weights
    from ..pipeline.recipe import build_stages
    from ..pipeline.runner import run_stage
    from ..stage_names import NETWORK, stage_names

    settings, dataset = config_and_data(config, data, run, seed)
    stages, names, initial = build_stages(settings, dataset, run), stage_names(), find_initial_weights(init)
    run_stage(stages[names.prepare if initial else names.classify], run, stages)
    of_run = run / names.classify / NETWORK
    for file in dict.fromkeys([initial.classifier, initial.unpainted] if initial else [of_run]):
        network = untrained_network(settings.classifier)
        load_network(network, file)
        for row in shortcuts(network, dataset, settings, run / names.prepare):
            print(in_words({"classifier": file.stem} | row if initial else row))


@app.command("record")
def _record(
    identity: Annotated[str, typer.Argument(metavar="ID", help="Name of the experiment.")],
    recipe: Annotated[str, typer.Option(help="What was done, in a few words.")],
    order: Annotated[int, typer.Option(help="Position in the table.")],
    evaluation: Annotated[
        Path | None, typer.Option(parser=path, help="Folder of the evaluation; by default, that of the run.")
    ] = None,
    run: Annotated[Path | None, typer.Option(parser=path, help="Folder of the run that produced it, if any.")] = None,
    variant: Annotated[str, typer.Option(help="Suffix of the run's stages, such as @supervised.")] = "",
    config: RunConfigOption = "",
    data: DataOption = None,
    selection: Annotated[str, typer.Option(help="What the val masks were used for.")] = "",
    seed: SeedOption = None,
) -> None:
    """Record an experiment in docs/results/runs, for the table made by `experiments`."""
    import json

    from hemseg.manifest import Manifest

    from ..evaluation.quality import mean_dice
    from ..experiments.records import RUNS, gather
    from ..pipeline.runner import fingerprint, stage_minutes
    from ..stage_names import pseudolabels_of, with_suffix

    record: dict[str, object] = {"id": identity, "order": order, "recipe": recipe, "selection": selection}
    folder = evaluation or (run / with_suffix("evaluate", variant) if run else None)
    if folder is None:
        raise HemsegError("record: give --run RUN, or --evaluation FOLDER.")
    record["test"] = gather(folder)
    if run:
        settings, dataset = config_and_data(config, data, run, seed)
        record |= {"config": settings.name, "config_hash": fingerprint(settings), "seed": settings.seed}
        record["label_dice_val"] = mean_dice(dataset, settings.preprocessing, run / pseudolabels_of(variant))
        record["supervision"] = Manifest.read(run / with_suffix("export", variant)).provenance["supervision"]
        record["minutes"] = round(sum(stage_minutes(run, variant).values()), 1)
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / f"{identity}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{RUNS / identity}.json written")


@app.command("experiments")
def _experiments() -> None:
    """Generate docs/results/experiments.md from the recorded experiments."""
    from ..experiments.records import TABLE, write_experiments

    write_experiments()
    print(f"{TABLE} written")
