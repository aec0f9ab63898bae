"""Train hemseg: slice labels in, ONNX weights out.

    python -m training all --config smoke --run runs/smoke
    python -m training all --config phe_sich --data ../data/phe-sich --run runs/phe_sich
    python -m training all --config best --data ../data/phe-sich --data ../data/ct-ich --run runs/best
    python -m training measure --data ../data/ct-ich --out OUT
    python -m training phantoms FOLDER --cases 20

A stage that is done is skipped; one that was interrupted goes on where it was; one whose configuration or inputs
changed starts over. Naming a stage runs what it needs first.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemseg.errors import HemsegError

from .fitting.hardware import Hardware, rank

if TYPE_CHECKING:
    from .config import Config
    from .data.datasets import DataSet

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
TRAINING = ("prepare", "classify", "sequence", "cam", "pseudolabel", "segment", "relabel", "resegment")
STAGES = (*TRAINING, "export", "panels", "evaluate")
ConfigOption = Annotated[
    str, typer.Option("--config", help="A YAML file, or the bare name of one in training/configs.")
]
DataOption = Annotated[
    list[Path] | None,
    typer.Option("--data", help="A data set; may be given several times. Without it, phantoms are made in the run."),
]
TablesOption = Annotated[Path, typer.Option("--out", help="Folder for the tables.")]
RunOption = Annotated[Path, typer.Option("--run", help="Folder of the run.")]
DevicesOption = Annotated[int, typer.Option(help="Devices a node; start one process for each (torchrun, srun).")]
NodesOption = Annotated[int, typer.Option(help="Nodes.")]
SeedOption = Annotated[int | None, typer.Option(help="Instead of the configuration's seed.")]
PrecisionOption = Annotated[str, typer.Option(help="32-true, 16-mixed or bf16-mixed.")]


def _run(
    last: str, config_name: str, data: list[Path] | None, run: Path, hardware: Hardware, seed: int | None = None
) -> None:
    from importlib.util import find_spec

    from .pipeline.runner import console, run_stage

    if missing := next((name for name in ("torch", "lightning", "monai") if find_spec(name) is None), None):
        raise ModuleNotFoundError(name=missing)
    hardware.check()
    config, dataset = _config_and_data(config_name, data, run, seed)
    from .pipeline.recipe import build_stages  # torch takes seconds; a mistake is told before

    stages = build_stages(config, dataset, run, hardware=hardware)
    if last != "all":
        run_stage(stages[last], run, stages)
        return
    run_stage(stages["panels"], run, stages)
    if dataset.part("test"):
        run_stage(stages["evaluate"], run, stages)
    else:
        console.print("evaluate: the data set has no test split, left out")


def _config_and_data(
    config_name: str, data: list[Path] | None, run: Path, seed: int | None = None
) -> tuple[Config, DataSet]:
    from .config import load_config
    from .data.datasets import load_dataset, together

    config = load_config(config_name)
    if seed is not None:
        config = replace(config, seed=seed)
    datasets = [load_dataset(folder, config.seed) for folder in data or ()]
    if not datasets or config.phantoms.beside_data:
        datasets.append(replace(load_dataset(_phantoms(config, run)), name="phantoms"))
    return config, together(datasets)


def _phantoms(config: Config, run: Path) -> Path:
    """The data set of phantoms that a configuration makes for itself."""
    from .data.phantom import Grid, write_dataset
    from .pipeline.runner import console, fingerprint

    if not config.phantoms.cases:
        raise HemsegError(f"configuration {config.name} is meant for real data: give --data FOLDER.")
    folder = run / f"phantoms-{fingerprint(config.phantoms, config.seed)}"
    if not (folder / "split.csv").exists() and rank() == 0:  # written last
        console.print(f"making {config.phantoms.cases} phantoms in {folder}")
        write_dataset(folder, config.phantoms.cases, config.seed, Grid(config.phantoms.shape, config.phantoms.spacing))
    while not (folder / "split.csv").exists():  # another process makes them
        time.sleep(0.2)
    return folder


def _stage_command(name: str) -> None:
    def command(
        config: ConfigOption,
        run: RunOption,
        data: DataOption = None,
        seed: SeedOption = None,
        devices: DevicesOption = 1,
        nodes: NodesOption = 1,
        precision: PrecisionOption = "32-true",
    ) -> None:
        _run(name, config, data, run, Hardware(devices, nodes, precision), seed)

    text = "Run all stages." if name == "all" else f"Run the stage {name}, and what it needs before it."
    app.command(name, help=text)(command)


for _name in ("all", *STAGES):
    _stage_command(_name)


@app.command()
def status(run: RunOption) -> None:
    """Show the stages of a run: done, under way or interrupted, minutes and figures."""
    from rich.console import Console
    from rich.table import Table

    from .pipeline.runner import states

    table = Table("stage", "state", "minutes", "figures")
    for name, state, minutes, figures in states(run):
        table.add_row(name, state, minutes, figures)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command("quality")
def _quality(
    config: ConfigOption,
    run: RunOption,
    data: DataOption = None,
    seed: SeedOption = None,
    permuted: Annotated[bool, typer.Option("--permuted", help="Those of `control`, of permuted slice labels.")] = False,
) -> None:
    """Measure the pseudo-labels of a run against the reference masks of val (Dice, by data set)."""
    import numpy as np

    from .evaluation.quality import label_quality
    from .pipeline.recipe import Variant, build_stages
    from .pipeline.runner import run_stage

    settings, dataset = _config_and_data(config, data, run, seed)
    variant = Variant(permuted=permuted)
    stage = f"pseudolabel{variant.labels}"
    stages = build_stages(settings, dataset, run, variant)
    run_stage(stages[stage], run, stages)
    for source in dataset.sources():
        rows = label_quality(source, settings.preprocessing, run / stage)
        for row in rows:
            print(f"{row['case']:24} Dice {row['dice']:.3f}  volume x {row['volume_ratio']:.2f}  {row['subtypes']}")
        if rows:
            print(f"{source.name}: mean Dice {np.mean([row['dice'] for row in rows]):.3f}, val, {len(rows)} cases")


@app.command("strip")
def _strip(
    run: RunOption,
    stripped: Annotated[list[Path], typer.Option(help="Data set of scans without what lies outside the skull.")],
    heads: Annotated[Path | None, typer.Option(help="The same scans (of the first --stripped) as whole heads.")] = None,
    phantoms: Annotated[int, typer.Option(help="Phantoms beside them.")] = 96,
    epochs: Annotated[int, typer.Option(min=1)] = 8,
    seed: Annotated[int, typer.Option()] = 0,
    precision: PrecisionOption = "32-true",
) -> None:
    """Train the learned skull strip; writes RUN/strip.onnx."""
    from .data.datasets import load_dataset
    from .fitting.strip_network import OPTIMIZATION, paired_cases, phantom_cases, train_strip
    from .pipeline.runner import in_words

    cases = phantom_cases(phantoms, seed) if phantoms else []
    for i, folder in enumerate(stripped):
        whole = load_dataset(heads) if heads and i == 0 else None
        cases += paired_cases(whole, load_dataset(folder), folder)
    optimization = replace(OPTIMIZATION, epochs=epochs, patience=epochs)
    print(in_words(train_strip(cases, run, Hardware(precision=precision), seed, optimization)))


@app.command("stripping")
def _stripping(
    data: Annotated[list[Path], typer.Option(help="A data set; may be given several times.")],
    out: TablesOption,
    heads: Annotated[str, typer.Option(help="Name of the data set of whole heads that --stripped belongs to.")] = "",
    stripped: Annotated[Path | None, typer.Option(help="The same scans without what lies outside the skull.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with a manifest; by default hemseg's.")] = None,
    strip: Annotated[str, typer.Option(help="An ONNX file in place of the weights' strip, or `paper`.")] = "",
) -> None:
    """Measure the skull strip: brain that is lost, muscle that is kept; tables per data set and split."""
    from .data.datasets import load_dataset
    from .evaluation.stripping import strip_predictor, stripping
    from .pipeline.runner import in_words

    predict = strip_predictor(weights, strip)
    pairs = {heads: stripped} if heads and stripped else {}
    tables = stripping([load_dataset(folder) for folder in data], pairs, predict, out)
    for name in ("lost_brain_summary", "whole_heads_summary"):
        for row in tables.get(name, []):
            print(in_words(row))


@app.command("robustness")
def _robustness(
    data: Annotated[Path, typer.Option(help="A data set with reference masks.")],
    out: TablesOption,
    split: Annotated[list[str] | None, typer.Option(help="A split to measure on; may be given several times.")] = None,
    stripped: Annotated[Path | None, typer.Option(help="The same scans without what lies outside the skull.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with a manifest; by default hemseg's.")] = None,
) -> None:
    """Measure weights on scans in other windows, with shifted HU, and cut down to few slices."""
    from hemseg.model import load

    from .data.datasets import load_dataset
    from .evaluation.robustness import (
        change_summary,
        changed_scans,
        few_slices,
        few_summary,
        good_references,
        phantom_heads,
        phantom_summary,
        write_all,
    )
    from .pipeline.runner import in_words

    model, dataset = load(weights), load_dataset(data)
    parts = split or ["test"]
    changed = [row for part in parts for row in changed_scans(dataset, part, model, stripped)]
    few = [row for part in parts for row in few_slices(dataset, part, model)]
    heads = phantom_heads(model)
    summaries = {
        "changes_summary": change_summary(changed, good_references(data)),
        "few_slices_summary": few_summary(few),
        "phantom_heads_summary": phantom_summary(heads),
    }
    tables = {"changes": changed, "few_slices": few, "phantom_heads": heads}
    write_all(summaries | tables, out)
    for rows in summaries.values():
        for row in rows:
            print(in_words(row))


@app.command("slices")
def _slices(
    data: Annotated[Path, typer.Option(help="A data set of single slices, such as rsna-slices.")],
    out: TablesOption,
    split: Annotated[list[str] | None, typer.Option(help="A split to measure on; may be given several times.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with a manifest; by default hemseg's.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a run whose slice classifier is asked, too.")] = None,
    config: Annotated[str, typer.Option(help="The run's configuration.")] = "best",
) -> None:
    """Measure weights on single slices with labels: AUC, found and marked, by kind of hemorrhage."""
    from hemseg.model import load

    from .data.datasets import load_dataset
    from .evaluation.evaluate import write_table
    from .evaluation.single_slices import intracranial_areas, kinds_summary, single_slices, single_summary
    from .pipeline.runner import in_words

    model, dataset, areas = load(weights), load_dataset(data), intracranial_areas(data)
    parts, answers = tuple(split or ["test"]), None
    if run:
        from .config import load_config
        from .experiments.shortcuts import slice_answers

        answers = slice_answers(run, dataset, load_config(config), parts)
    rows = [row for part in parts for row in single_slices(dataset, part, model, areas, answers)]
    tables = {"slices": rows, "summary": single_summary(rows), "kinds": kinds_summary(rows)}
    for name, table in tables.items():
        write_table(table, out / f"{name}.csv")
    for row in (*tables["summary"], *tables["kinds"]):
        print(in_words(row))


@app.command("painted")
def _painted(
    data: Annotated[Path | None, typer.Option(help="A data set, to measure on.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the tables.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="A split to measure on; may be given several times.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with a manifest; by default hemseg's.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Folder of a run, to paint into its prepared training scans.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="The picture of these to write: keep it private.")] = None,
    config: Annotated[str, typer.Option(help="The run's configuration.")] = "best",
    seed: Annotated[int, typer.Option(help="Of the picture.")] = 0,
) -> None:
    """Measure weights on bleeds painted into held-out heads; or show what training paints."""
    from .evaluation.painted_heads import painted_heads, painted_summary, read_plan
    from .pipeline.runner import in_words

    if run and sheet:
        _write_sheet(run, sheet, config, seed)
        return
    if not (data and out):
        raise HemsegError("painted: give --data FOLDER --out OUT to measure, or --run RUN --sheet FILE to look.")
    from hemseg.model import load

    from .data.datasets import load_dataset
    from .evaluation.evaluate import write_table

    model, dataset = load(weights), load_dataset(data)
    rows = [row for part in split or ["test"] for row in painted_heads(dataset, part, model, read_plan())]
    summary = painted_summary(rows)
    write_table(rows, out / "bleeds.csv")
    write_table(summary, out / "summary.csv")
    for row in summary:
        print(in_words(row))


def _write_sheet(run: Path, target: Path, config: str, seed: int) -> None:
    import cv2

    from .config import load_config
    from .data.datasets import training_scans
    from .evaluation.painted_heads import sheet

    settings = load_config(config).preprocessing
    mm = (settings.slice_mm, settings.in_plane_mm, settings.in_plane_mm)
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), sheet(training_scans(run, 60, seed), mm, seed))
    print(f"{target} written")


@app.command("operating-point")
def _operating_point(
    data: Annotated[list[Path], typer.Option(help="A data set; may be given several times.")],
    out: TablesOption,
    weights: Annotated[Path | None, typer.Option(help="Folder with a manifest; by default hemseg's.")] = None,
) -> None:
    """Cut the answers on val at several thresholds: what is found against what is false, as a table."""
    from hemseg.model import load

    from .data.datasets import load_dataset
    from .evaluation.evaluate import write_table
    from .evaluation.operating_point import operating_points, write_froc
    from .pipeline.runner import in_words

    model = load(weights)
    rows = [row for folder in data for row in operating_points(load_dataset(folder), model)]
    write_table(rows, out / "operating_points.csv")
    write_froc(rows, model.manifest, out / "froc.png")
    for row in rows:
        print(in_words(row))


@app.command("shortcuts")
def _shortcuts(config: ConfigOption, run: RunOption, data: DataOption = None, seed: SeedOption = None) -> None:
    """Tell whether the classifier's answer depends on the data set a slice is from (its negative val slices)."""
    from .experiments.shortcuts import shortcuts
    from .fitting.classifier import SliceNetwork
    from .fitting.trainer import load_network
    from .pipeline.recipe import build_stages
    from .pipeline.runner import in_words, run_stage

    settings, dataset = _config_and_data(config, data, run, seed)
    stages = build_stages(settings, dataset, run)
    run_stage(stages["classify"], run, stages)
    network = SliceNetwork(replace(settings.classifier, pretrained=""))
    load_network(network, run / "classify" / "network.pt")
    for row in shortcuts(network, dataset, settings, run / "prepare"):
        print(in_words(row))


@app.command("measure")
def _measure(
    data: Annotated[list[Path], typer.Option(help="A data set; may be given several times.")],
    out: TablesOption,
    split: Annotated[list[str] | None, typer.Option(help="A split to measure on; may be given several times.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Folder with a manifest; by default hemseg's.")] = None,
    threshold: Annotated[bool, typer.Option("--threshold", help="A threshold without learning instead.")] = False,
    pictures: Annotated[Path | None, typer.Option(help="Folder for panels of real scans: keep them private.")] = None,
) -> None:
    """Measure weights on data sets: tables and plots (Bland-Altman, Dice by volume, ROC of slices)."""
    from hemseg.model import default_weights
    from hemseg.preprocessing import Settings

    from .data.datasets import load_dataset, together
    from .evaluation.evaluate import network_predictor, threshold_predictor
    from .evaluation.measure import measure_all
    from .pipeline.runner import in_words

    dataset = together([load_dataset(folder) for folder in data])
    predict = threshold_predictor(Settings()) if threshold else network_predictor(weights or default_weights())
    for name, value in measure_all(dataset, predict, tuple(split or ["test"]), out, pictures).items():
        print(in_words({name: value}))


@app.command()
def optimize(folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="Folder with manifest.json.")]) -> None:
    """Rewrite the graph of weights that an older export made, so that it runs faster; it computes the same."""
    from .export.graph import optimize_weights

    print(f"{folder}: rewritten; probabilities differ by {optimize_weights(folder):.1g} at most")


@app.command("record")
def _record(
    identity: Annotated[str, typer.Argument(metavar="ID", help="Name of the experiment.")],
    recipe: Annotated[str, typer.Option(help="What was done, in a few words.")],
    order: Annotated[int, typer.Option(help="Its place in the table.")],
    evaluation: Annotated[Path | None, typer.Option(help="Folder of tables; by default that of the run.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the run that made it, if one did.")] = None,
    variant: Annotated[str, typer.Option(help="Suffix of the run's stages, such as @supervised.")] = "",
    config: Annotated[str, typer.Option(help="The run's configuration.")] = "",
    data: DataOption = None,
    selection: Annotated[str, typer.Option(help="What val masks were used for.")] = "",
    seed: SeedOption = None,
) -> None:
    """Write an experiment to docs/results/runs, for the table that `experiments` makes."""
    import json

    from .evaluation.quality import mean_dice
    from .experiments.records import RUNS, gather
    from .pipeline.runner import fingerprint, minutes

    record: dict[str, object] = {"id": identity, "order": order, "recipe": recipe, "selection": selection}
    folder = evaluation or (run / f"evaluate{variant}" if run else None)
    if folder is None:
        raise HemsegError("record: give --run RUN, or --evaluation FOLDER.")
    record["test"] = gather(folder)
    if run:
        settings, dataset = _config_and_data(config, data, run, seed)
        record |= {"config": settings.name, "config_hash": fingerprint(settings), "seed": settings.seed}
        record["label_dice_val"] = mean_dice(dataset, settings.preprocessing, run / f"pseudolabel{variant}")
        record["minutes"] = round(sum(minutes(run, variant).values()), 1)
    RUNS.mkdir(parents=True, exist_ok=True)
    (RUNS / f"{identity}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{RUNS / identity}.json written")


@app.command("experiments")
def _experiments() -> None:
    """Make docs/results/experiments.md from what was recorded."""
    from .experiments.records import TABLE, write_experiments

    write_experiments()
    print(f"{TABLE} written")


@app.command("bundle")
def _bundle(
    config: ConfigOption,
    run: RunOption,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    data: DataOption = None,
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    precision: PrecisionOption = "32-true",
    seed: SeedOption = None,
) -> None:
    """Write the U-Net of a run as a MONAI bundle; runs what is not done yet."""
    from .export.bundle import write_bundle

    _run("export", config, data, run, Hardware(devices, nodes, precision), seed)
    write_bundle(_config_and_data(config, data, run, seed)[0], run, out)


@app.command("crossval")
def _crossval(
    config: ConfigOption,
    run: RunOption,
    out: TablesOption,
    data: DataOption = None,
    folds: Annotated[int, typer.Option(help="Disjoint test sets of a fifth of the patients each.")] = 3,
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    precision: PrecisionOption = "32-true",
) -> None:
    """Cross-validate the whole recipe by patient; write the tables to OUT."""
    from .experiments.crossval import crossvalidate

    hardware = Hardware(devices, nodes, precision)
    hardware.check()
    crossvalidate(*_config_and_data(config, data, run), run, folds, out, hardware)


@app.command("bench")
def _bench(
    config: ConfigOption, run: RunOption, data: DataOption = None, precision: PrecisionOption = "32-true"
) -> None:
    """Time the loader, the network alone and real training, in slices a second and as ratios."""
    try:
        from benchmarks.loader import bench
    except ModuleNotFoundError as error:
        if error.name != "benchmarks":
            raise
        raise HemsegError("bench: the benchmarks come with a clone; run `python -m training bench` there.") from None

    rates = bench(*_config_and_data(config, data, run), run, precision=precision)
    for name in ("loader", "network", "training"):
        print(f"{name:9} {rates[name]:8.1f} slices/s, {rates[name] / rates['network']:.2f} of the network alone")


@app.command("ablate")
def _ablate(
    config: ConfigOption,
    run: RunOption,
    out: TablesOption,
    data: DataOption = None,
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    precision: PrecisionOption = "32-true",
    seed: SeedOption = None,
) -> None:
    """Run the paper's ablation (Table 2), the supervised upper bound and the threshold; write the tables to OUT."""
    from .experiments.ablation import ablate

    hardware = Hardware(devices, nodes, precision)
    hardware.check()
    ablate(*_config_and_data(config, data, run, seed), run, out, hardware)


@app.command("tradeoff")
def _tradeoff(
    config: ConfigOption,
    run: RunOption,
    out: TablesOption,
    data: DataOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of each U-Net.")] = 20,
    seed: SeedOption = None,
) -> None:
    """Train U-Nets of other grids and widths on what the weights outline; Dice on val against time, as a table."""
    from .experiments.tradeoff import tradeoff
    from .pipeline.runner import in_words

    for row in tradeoff(*_config_and_data(config, data, run, seed), run, out, epochs):
        print(in_words(row))


@app.command("control")
def _control(
    config: ConfigOption,
    run: RunOption,
    data: DataOption = None,
    devices: DevicesOption = 1,
    nodes: NodesOption = 1,
    precision: PrecisionOption = "32-true",
    seed: SeedOption = None,
) -> None:
    """Train once more with slice labels permuted within each volume: it must fail. Dice beside the threshold's."""
    from .experiments.ablation import control

    hardware = Hardware(devices, nodes, precision)
    hardware.check()
    for name, dice in control(*_config_and_data(config, data, run, seed), run, hardware).items():
        for source, value in dice.items():
            print(f"{name}, {source} {value:.4f}" if source else f"{name} {value:.4f}")


@app.command()
def phantoms(folder: Path, cases: int = 20, seed: int = 0, size: int = 256, slices: int = 28) -> None:
    """Make a data set of phantoms: scans, masks, slice labels with subtypes, and a split."""
    from .data.phantom import Grid, write_dataset

    write_dataset(folder, cases, seed, Grid((slices, size, size), (230 / size, 230 / size, 140 / slices)))


@app.command()
def samples(root: Path = Path("test")) -> None:
    """Make the sample scans of test/cases, their truth, and the masks that the present weights give."""
    from .data.samples import write_samples

    write_samples(root)


@app.command()
def kinds(
    weights: Annotated[Path | None, typer.Option(help="Folder with manifest.json; by default those of hemseg.")] = None,
    out: Annotated[Path, typer.Option(help="The table.")] = Path("docs/results/phantom_kinds.csv"),
) -> None:
    """Measure weights on phantoms of each kind of hemorrhage, and on healthy ones."""
    from .data.samples import measure_kinds
    from .pipeline.runner import in_words

    for row in measure_kinds(weights, out):
        print(in_words(row))


def main() -> None:
    """Run the command line; a mistake of the user ends in one sentence."""
    try:
        app(standalone_mode=True)
    except HemsegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("hemseg", (__package__ or "").split(".")[0]):
            raise
        print(f"error: training needs {error.name}; `pip install 'hemseg[training]'`.", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
