"""Commands that measure weights, masks and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hemseg.errors import HemsegError
from hemseg.options import path

from .inputs import config_and_data, require_training
from .options import (
    ConfigOption,
    DataOption,
    DataSetsOption,
    RunConfigOption,
    RunOption,
    SeedOption,
    SplitOption,
    StrippedOption,
    TablesOption,
    WeightsOption,
)

app = typer.Typer()


@app.command("measure")
def _measure(
    data: DataSetsOption,
    out: TablesOption,
    split: SplitOption = None,
    weights: WeightsOption = None,
    threshold: Annotated[
        bool, typer.Option("--threshold", help="Measure a threshold without learning instead.")
    ] = False,
    pictures: Annotated[
        Path | None, typer.Option(parser=path, help="Folder for panels of real scans; keep them private.")
    ] = None,
) -> None:
    """Measure weights on data sets; writes tables and plots (Bland-Altman, Dice by volume, slice ROC)."""
    from hemseg.manifest import default_weights
    from hemseg.preprocessing import Settings

    from ..console import in_words
    from ..data.datasets import load_dataset, merge_datasets
    from ..evaluation.evaluate import network_predictor, threshold_predictor
    from ..evaluation.measure import measure_all

    dataset = merge_datasets([load_dataset(folder) for folder in data])
    predict = threshold_predictor(Settings()) if threshold else network_predictor(weights or default_weights())
    for name, value in measure_all(dataset, predict, tuple(split or ["test"]), out, pictures).items():
        print(in_words({name: value}))


@app.command("quality")
def _quality(
    config: ConfigOption,
    run: RunOption,
    data: DataOption = None,
    seed: SeedOption = None,
    permuted: Annotated[
        bool, typer.Option("--permuted", help="Measure those of `control` (permuted slice labels).")
    ] = False,
) -> None:
    """Measure the pseudo-labels of a run against the reference masks of val (Dice by data set)."""
    import numpy as np

    from ..evaluation.quality import label_quality
    from ..pipeline.recipe import build_stages
    from ..pipeline.runner import run_stage
    from ..stage_names import Variant, stage_names

    settings, dataset = config_and_data(config, data, run, seed)
    variant = Variant(permuted=permuted)
    stage = stage_names(variant).pseudolabel
    stages = build_stages(settings, dataset, run, variant)
    run_stage(stages[stage], run, stages)
    for source in dataset.sources():
        rows = label_quality(source, settings.preprocessing, run / stage)
        for row in rows:
            print(f"{row['case']:24} Dice {row['dice']:.3f}  volume x {row['volume_ratio']:.2f}  {row['subtypes']}")
        if rows:
            print(f"{source.name}: mean Dice {np.mean([row['dice'] for row in rows]):.3f}, val, {len(rows)} cases")


@app.command("slices")
def _slices(
    data: Annotated[Path, typer.Option(parser=path, help="Data set of single slices, such as rsna-slices.")],
    out: TablesOption,
    split: SplitOption = None,
    weights: WeightsOption = None,
    run: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Folder of a run whose slice classifier is used instead of the one in the weights."
        ),
    ] = None,
    config: RunConfigOption = "best",
) -> None:
    """Measure weights on labeled single slices: AUC, slices found and slices marked, by kind of hemorrhage."""
    from hemseg.model import load

    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..evaluation.single_slices import intracranial_areas, kinds_summary, single_slices, single_summary
    from ..evaluation.tables import write_table

    model, dataset, areas = load(weights), load_dataset(data), intracranial_areas(data)
    parts, answers = tuple(split or ["test"]), None
    if run:
        from ..config import load_config
        from ..experiments.shortcuts import slice_answers

        answers = slice_answers(run, dataset, load_config(config), parts)
    rows = [row for part in parts for row in single_slices(dataset, part, model, areas, answers)]
    tables = {"slices": rows, "summary": single_summary(rows), "kinds": kinds_summary(rows)}
    for name, table in tables.items():
        write_table(table, out / f"{name}.csv")
    for row in (*tables["summary"], *tables["kinds"]):
        print(in_words(row))


@app.command()
def kinds(
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option(parser=path, help="CSV file for the table.")] = Path(
        "docs/results/phantom_kinds.csv"
    ),
) -> None:
    """Measure weights on phantoms of each kind of hemorrhage and on healthy ones."""
    from ..console import in_words
    from ..evaluation.samples import measure_kinds

    for row in measure_kinds(weights, out):
        print(in_words(row))


@app.command("painted")
def _painted(
    data: Annotated[Path | None, typer.Option(parser=path, help="Data set to measure on.")] = None,
    out: Annotated[Path | None, typer.Option(parser=path, help="Folder for the tables.")] = None,
    split: SplitOption = None,
    weights: WeightsOption = None,
    run: Annotated[
        Path | None,
        typer.Option(parser=path, help="Folder of a run; bleeds are painted into its prepared training scans."),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(parser=path, help="File for a picture of these; keep it private.")
    ] = None,
    config: RunConfigOption = "best",
    seed: Annotated[int, typer.Option(help="Random seed of the picture.")] = 0,
) -> None:
    """Measure weights on bleeds painted into held-out heads, or show what training paints."""
    from ..console import in_words
    from ..evaluation.painted_heads import painted_heads, painted_summary, read_plan

    if run and sheet:
        _write_sheet(run, sheet, config, seed)
        return
    if not (data and out):
        raise HemsegError("painted: give --data FOLDER --out OUT to measure, or --run RUN --sheet FILE to look.")
    from hemseg.model import load

    from ..data.datasets import load_dataset
    from ..evaluation.tables import write_table

    model, dataset = load(weights), load_dataset(data)
    rows = [row for part in split or ["test"] for row in painted_heads(dataset, part, model, read_plan())]
    summary = painted_summary(rows)
    write_table(rows, out / "bleeds.csv")
    write_table(summary, out / "summary.csv")
    for row in summary:
        print(in_words(row))


def _write_sheet(run: Path, target: Path, config: str, seed: int) -> None:
    import cv2

    from ..config import load_config
    from ..data.datasets import training_scans
    from ..evaluation.painted_heads import sheet

    mm = load_config(config).preprocessing.spacing
    target.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(target), sheet(training_scans(run, 60, seed), mm, seed))
    print(f"{target} written")


@app.command("operating-point")
def _operating_point(
    data: DataSetsOption,
    out: TablesOption,
    weights: WeightsOption = None,
) -> None:
    """Apply several thresholds to the network output on val; tabulates and plots detections against false positives."""
    from hemseg.model import load

    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..evaluation.operating_point import operating_points, write_froc
    from ..evaluation.tables import write_table

    model = load(weights)
    rows = [row for folder in data for row in operating_points(load_dataset(folder), model)]
    write_table(rows, out / "operating_points.csv")
    write_froc(rows, model.manifest, out / "froc.png")
    for row in rows:
        print(in_words(row))


@app.command("range")
def _range(
    data: DataSetsOption,
    out: TablesOption,
    weights: Annotated[
        Path, typer.Option(parser=path, help="Folder with manifest.json, to which thresholds and margin are written.")
    ],
    keep: Annotated[bool, typer.Option("--keep", help="Leave the manifest unchanged.")] = False,
) -> None:
    """Calibrate the range of volumes on val; writes thresholds and margin to the manifest and a table to --out."""
    from dataclasses import replace

    from hemseg.model import load

    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..evaluation.evaluate import write_table
    from ..evaluation.volume_range import calibrate, page, rounded_up, scans_of, write_page

    model = load(weights)
    scans = [scan for folder in data for scan in scans_of(load_dataset(folder), model)]
    rows, chosen = calibrate(scans)
    write_table(rows, out / "range.csv")
    write_page(page(rows, chosen, scans, f"{model.manifest.name} {model.manifest.version}"), out)
    for row in rows:
        print(in_words(row))
    if not keep:
        pair = (chosen["low_threshold"], chosen["high_threshold"])
        replace(model.manifest, range_thresholds=pair, range_margin=rounded_up(chosen["margin"])).write(weights)


@app.command("stripping")
def _stripping(
    data: DataSetsOption,
    out: TablesOption,
    heads: Annotated[str, typer.Option(help="Name of the data set of whole heads that --stripped belongs to.")] = "",
    stripped: StrippedOption = None,
    weights: WeightsOption = None,
    strip: Annotated[
        str, typer.Option(help="ONNX file to use instead of the skull strip of the weights, or `paper`.")
    ] = "",
) -> None:
    """Measure the skull strip: brain lost and muscle kept; writes tables by data set and split."""
    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..evaluation.stripping import strip_predictor, stripping

    predict = strip_predictor(weights, strip)
    pairs = {heads: stripped} if heads and stripped else {}
    tables = stripping([load_dataset(folder) for folder in data], pairs, predict, out)
    for name in ("lost_brain_summary", "whole_heads_summary"):
        for row in tables.get(name, []):
            print(in_words(row))


@app.command("robustness")
def _robustness(
    data: Annotated[Path, typer.Option(parser=path, help="Data set with reference masks.")],
    out: TablesOption,
    split: SplitOption = None,
    stripped: StrippedOption = None,
    weights: WeightsOption = None,
) -> None:
    """Measure weights on scans in other windows, with shifted HU, and reduced to few slices."""
    from hemseg.model import load

    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..evaluation.robustness import (
        change_summary,
        changed_scans,
        few_slices,
        few_summary,
        good_references,
        phantom_heads,
        phantom_summary,
        write_all,
    )

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


@app.command("retest")
def _retest(
    out: TablesOption,
    data: Annotated[
        Path | None, typer.Option(parser=path, help="Data set of whole heads; its val split is measured.")
    ] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Number of phantoms.")] = 12,
    weights: WeightsOption = None,
    seed: Annotated[int, typer.Option(help="Random seed of rotations, shifts and noise.")] = 0,
) -> None:
    """Measure the difference between two scans of an unchanged head; `hemseg compare` reads the resulting limits."""
    from functools import partial

    from hemseg.model import load

    from ..data.datasets import load_dataset
    from ..evaluation.retest import LIMITS, measure, rescan_head, rescan_phantom, write

    model = load(weights)
    cases = load_dataset(data).part("val") if data else []
    heads = [partial(rescan_phantom, number, seed) for number in range(phantoms)]
    limits = write(measure([*heads, *(partial(rescan_head, case, seed) for case in cases)], model), model, out)
    print((out / "table.md").read_text())
    print(
        f"{LIMITS}: {limits.low_percent:+.1f} to {limits.high_percent:+.1f} %, below {limits.above_ml:g} mL "
        f"{limits.low_ml:+.2f} to {limits.high_ml:+.2f} mL"
    )


@app.command("uncertain")
def _uncertain(
    scans: Annotated[Path, typer.Option(parser=path, help="Folder of scans; labels are not needed.")],
    run: RunOption,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            parser=path,
            help="Folder with manifest.json; by default, that of the run, otherwise hemseg's own.",
        ),
    ] = None,
    second: Annotated[
        Path | None, typer.Option(parser=path, help="Other weights to consult as well, of another seed or older.")
    ] = None,
    panels: Annotated[int, typer.Option(min=0, help="Number of scans that get a picture.")] = 12,
) -> None:
    """Rank scans by disagreement (mirrored head, slice classifier, other weights): label the top ones first."""
    require_training()
    from hemseg.manifest import MANIFEST
    from hemseg.model import load

    from ..console import console, in_words
    from ..evaluation.uncertain import Committee, rank_scans
    from ..pipeline.initial_weights import classifier_of, find_initial_weights
    from ..stage_names import stage_names

    own = run / stage_names().export
    model = load(weights or (own if (own / MANIFEST).is_file() else None))
    try:
        found = find_initial_weights(str(model.folder))
        classifier = classifier_of(found) if found else None
    except HemsegError as error:
        classifier = None
        console.print(f"the slice classifier is not asked: {error}", markup=False, highlight=False)
    committee = Committee(model, classifier, load(second) if second else None)
    rows, faults = rank_scans(scans, committee, run / "uncertain", panels)
    for row in rows[:20]:
        print(in_words(row))
    console.print(f"{run / 'uncertain'}: ranking.csv and pictures; they show patients, keep them where the scans are")
    if faults:
        raise HemsegError(f"{len(faults)} scans cannot be used; the others are ranked:", faults)
