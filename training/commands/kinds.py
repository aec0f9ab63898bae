"""Commands that teach weights to name kinds of hemorrhage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemseg.errors import HemsegError
from hemseg.options import path

from .options import (
    ConfigOption,
    DataSetsOption,
    RunOption,
    SeedOption,
    SplitOption,
    TablesOption,
    WeightsOption,
)

if TYPE_CHECKING:
    import numpy as np

    from ..config import Config
    from ..pipeline.kinds import KindData

app = typer.Typer()


@app.command("kinds-train")
def _train(
    run: RunOption,
    data: DataSetsOption,
    out: Annotated[Path, typer.Option(parser=path, help="Folder for kinds.npz and the tables of val.")],
    config: ConfigOption = "best",
    weights: Annotated[
        Path | None,
        typer.Option(parser=path, help="Weights whose slice classifier is used as well; by default, none is used."),
    ] = None,
    labels: Annotated[str, typer.Option(help="Stage of the run whose masks define the lesions.")] = "relabel",
    seed: SeedOption = None,
) -> None:
    """Learn to name the kinds of lesions; writes kinds.npz and, for the lesions of val, tables and a plot."""
    from ..console import in_words
    from ..pipeline.kinds import train_kinds

    settings, kinds = _data(config, data, run, labels, seed)
    print(in_words(train_kinds(kinds, weights, settings, out)))


def _data(config: str, folders: list[Path], run: Path, labels: str, seed: int | None) -> tuple[Config, KindData]:
    """Configuration and data sets of a run, with those phantoms that it made for itself."""
    from dataclasses import replace

    from ..config import load_config
    from ..data.datasets import load_dataset, merge_datasets
    from ..data.slice_kinds import read_slice_kinds
    from ..evaluation.single_slices import BRAIN_LEVEL_PX, intracranial_areas
    from ..pipeline.kinds import KindData

    settings = load_config(config)
    if seed is not None:
        settings = replace(settings, seed=seed)
    loaded = [(folder, load_dataset(folder, settings.seed)) for folder in folders]
    loaded += [(folder, replace(load_dataset(folder), name="phantoms")) for folder in sorted(run.glob("phantoms-*"))]
    whole = merge_datasets([dataset for _, dataset in loaded])
    answers: dict[str, np.ndarray] = {}
    not_brain_level: set[str] = set()
    for folder, dataset in loaded:
        prefix = f"{dataset.name}_" if len(loaded) > 1 else ""
        answers |= {prefix + name: rows for name, rows in read_slice_kinds(folder, dataset).items()}
        areas = intracranial_areas(folder)
        not_brain_level |= {prefix + name for name, area in areas.items() if area <= BRAIN_LEVEL_PX}
    return settings, KindData(whole, answers, run, run / labels, settings.preprocessing, frozenset(not_brain_level))


@app.command("kinds-attach")
def _attach(
    source: Annotated[Path, typer.Argument(parser=path, help="Folder written by `kinds-train`.")],
    weights: Annotated[Path, typer.Argument(parser=path, help="Folder with manifest.json.")],
    measured: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="summary.csv of `kinds-measure`; reports then state how often kinds were right on test."
        ),
    ] = None,
) -> None:
    """Copy the output of `kinds-train` to a folder of weights and enter it in their manifest."""
    from ..export.kinds import attach_kinds

    attach_kinds(source, weights, measured)
    print(f"{weights / 'manifest.json'}: names kinds of hemorrhage")


@app.command("kinds-slices")
def _slices(
    run: RunOption,
    data: DataSetsOption,
    out: Annotated[Path, typer.Option(parser=path, help="CSV file for the table.")],
    split: SplitOption = None,
    weights: WeightsOption = None,
    config: ConfigOption = "best",
) -> None:
    """Measure how well the slice classifier tells kinds of hemorrhage apart in the prepared slices of a run."""
    from ..console import in_words
    from ..evaluation.tables import write_table
    from ..pipeline.kinds import evaluate_slices

    rows = evaluate_slices(_data(config, data, run, "relabel", None)[1], weights, tuple(split or ["val"]))
    write_table(rows, out)
    for row in rows:
        print(in_words(row))


@app.command("kinds-measure")
def _measure(
    data: DataSetsOption,
    out: TablesOption,
    split: SplitOption = None,
    weights: WeightsOption = None,
    phantoms: Annotated[int, typer.Option(help="Number of phantoms of each kind.")] = 4,
    painted: Annotated[
        Path | None, typer.Option(parser=path, help="Data set whose test heads get the planned painted bleeds.")
    ] = None,
    painted_heads: Annotated[int, typer.Option(help="Number of these heads to use.")] = 20,
) -> None:
    """Measure the kinds assigned to lesions; writes tables by data set, split and kind, and a confusion matrix."""
    from hemseg.model import load

    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..data.slice_kinds import read_slice_kinds
    from ..evaluation import kinds
    from ..evaluation.kind_plot import write_confusion
    from ..evaluation.painted_heads import MIN_ML, read_plan
    from ..evaluation.single_slices import BRAIN_LEVEL_PX, intracranial_areas
    from ..evaluation.tables import write_table

    model = load(weights)
    if model.kinds is None:
        raise HemsegError(f"{model.folder}: these weights name no kinds; attach them (kinds-attach).")
    rows = []
    for folder in data:
        dataset, areas = load_dataset(folder), intracranial_areas(folder)
        answers = read_slice_kinds(folder, dataset)
        level = {name for name, area in areas.items() if area > BRAIN_LEVEL_PX} if areas else None
        for part in split or ["val"]:
            rows += kinds.labelled_scans(dataset, part, answers, model, level)
    if phantoms:
        rows += kinds.phantoms(model, phantoms)
    if painted:
        plan = [bleed for bleed in read_plan() if bleed.head < painted_heads]
        rows += kinds.painted_bleeds(load_dataset(painted), "test", model, plan, MIN_ML)
    table = kinds.summary(rows)
    write_table(rows, out / "lesions.csv")
    write_table(table, out / "summary.csv")
    write_table(kinds.by_patient(rows), out / "patients.csv")
    write_confusion(rows, out / "confusion.png")
    for row in table:
        print(in_words(row))
