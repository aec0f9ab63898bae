"""Commands that make data, weights and files for others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from hemseg.errors import HemsegError
from hemseg.options import path

from .inputs import config_and_data, hardware_of, require_training, run_stages
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


@app.command("strip")
def _strip(
    run: RunOption,
    stripped: Annotated[
        list[Path], typer.Option(parser=path, help="Data set of scans with everything outside the skull removed.")
    ],
    heads: Annotated[
        Path | None, typer.Option(parser=path, help="The scans of the first --stripped as whole heads.")
    ] = None,
    phantoms: Annotated[int, typer.Option(help="Number of additional phantoms.")] = 96,
    epochs: Annotated[int, typer.Option(min=1, help="Number of epochs.")] = 8,
    seed: Annotated[int, typer.Option(help="Random seed of weights, order and phantoms.")] = 0,
    precision: PrecisionOption = "auto",
) -> None:
    """Train the learned skull strip; writes RUN/strip.onnx."""
    from ..console import in_words
    from ..data.datasets import load_dataset
    from ..pipeline.strip import OPTIMIZATION, paired_cases, phantom_cases, train_strip

    cases = phantom_cases(phantoms, seed) if phantoms else []
    for i, folder in enumerate(stripped):
        whole = load_dataset(heads) if heads and i == 0 else None
        cases += paired_cases(whole, load_dataset(folder), folder)
    optimization = replace(OPTIMIZATION, epochs=epochs, patience=epochs)
    print(in_words(train_strip(cases, run, hardware_of(precision=precision), seed, optimization)))


@app.command()
def phantoms(
    folder: Annotated[Path, typer.Argument(parser=path, help="Output folder.")],
    cases: Annotated[int, typer.Option(help="Number of phantoms; one in five is healthy.")] = 20,
    seed: Annotated[int, typer.Option(help="Random seed of heads, hemorrhages and noise.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels along each side of a slice (230 mm).")] = 256,
    slices: Annotated[int, typer.Option(help="Number of slices (140 mm in all).")] = 28,
    varied: Annotated[bool, typer.Option("--varied", help="Vary pixel size and noise between phantoms.")] = False,
) -> None:
    """Generate a data set of phantoms: scans, masks, slice labels with subtypes, and a split."""
    from ..data.phantom import Grid, write_dataset

    grid = Grid((slices, size, size), (230 / size, 230 / size, 140 / slices))
    write_dataset(folder, cases, seed, grid, varied=varied)


@app.command()
def samples(root: Annotated[Path, typer.Option(parser=path, help="Folder that contains them.")] = Path("test")) -> None:
    """Generate the sample scans of test/cases, their ground truth, and the masks of the current weights."""
    from ..evaluation.samples import write_samples

    write_samples(root)


@app.command()
def pictures(
    out: Annotated[Path, typer.Option(parser=path, help="Output folder.")] = Path("docs"),
    scans: Annotated[Path, typer.Option(parser=path, help="Folder of the sample scans.")] = Path("test/cases"),
) -> None:
    """Regenerate the pictures of README.md and docs/usage.md: phantoms and the current weights. Requires Chromium."""
    from ..evaluation.pictures import write_pictures

    write_pictures(out, scans)


@app.command("bundle")
def _bundle(
    config: ConfigOption,
    run: RunOption,
    out: Annotated[Path, typer.Option(parser=path, help="Folder of the bundle.")],
    data: DataOption = None,
    devices: DevicesOption = "auto",
    nodes: NodesOption = 1,
    precision: PrecisionOption = "auto",
    seed: SeedOption = None,
) -> None:
    """Export the U-Net of a run as a MONAI bundle; first runs the stages that are not done yet."""
    from ..export.bundle import write_bundle

    require_training()
    settings, dataset = config_and_data(config, data, run, seed)
    run_stages("export", settings, dataset, run, hardware_of(devices, nodes, precision))
    write_bundle(settings, run, out)


@app.command()
def optimize(
    folder: Annotated[Path, typer.Argument(metavar="WEIGHTS", parser=path, help="Folder with manifest.json.")],
) -> None:
    """Rewrite the graph of weights from an older export so that it runs faster; it computes the same."""
    from ..export.graph import optimize_weights

    print(f"{folder}: rewritten; probabilities differ by {optimize_weights(folder):.1g} at most")


@app.command("bench")
def _bench(
    config: ConfigOption, run: RunOption, data: DataOption = None, precision: PrecisionOption = "32-true"
) -> None:
    """Time the data loader, the network alone and real training, in slices per second and as ratios."""
    try:
        from benchmarks.loader import bench
    except ModuleNotFoundError as error:
        if error.name != "benchmarks":
            raise
        raise HemsegError("bench: the benchmarks come with a clone; run `python -m training bench` there.") from None

    rates = bench(*config_and_data(config, data, run), run, precision=hardware_of(precision=precision).precision)
    for name in ("loader", "network", "training"):
        print(f"{name:9} {rates[name]:8.1f} slices/s, {rates[name] / rates['network']:.2f} of the network alone")


@app.command("cli-pages")
def _cli_pages(
    context: typer.Context, out: Annotated[Path, typer.Option(parser=path, help="Folder of the pages.")] = Path("docs")
) -> None:
    """Write cli.md and training-cli.md: every command and option of `hemseg` and `python -m training`."""
    from .reference import write_pages

    for page in write_pages(context.find_root().command, out):
        print(f"{page} written")


@app.command("card")
def _card() -> None:
    """Fill in the tables of README.md and weights/MODEL_CARD.md from docs/results."""
    from ..evaluation.card import PAGES, filled

    for page in PAGES:
        page.write_text(filled(page.read_text()))
        print(f"{page} written")
