"""The ``hemseg`` command. Heavy libraries are imported where they are needed, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemseg import __version__
from hemseg.errors import HemsegError

if TYPE_CHECKING:
    from hemseg.cohort import Outcome

app = typer.Typer(
    help="Find intracranial hemorrhage on non-contrast head CT, outline it in 3D. Research only, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Weights = Annotated[
    Path | None, typer.Option(help="Folder with manifest.json; by default the weights that came with hemseg.")
]
Device = Annotated[str, typer.Option(help="auto (CUDA where it works, else CPU), cpu, or cuda (CUDA or an error).")]


@app.command()
def segment(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A scan, or a folder of scans (searched with its subfolders).")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder; for one scan also the mask's file name.")],
    weights: Weights = None,
    device: Device = "auto",
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write a picture of each case, <case>.png.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no table; errors are still told.")
    ] = False,
) -> None:
    """Segment a scan, or every scan of a folder.

    Reads NIfTI, MetaImage and NRRD. The mask has the scan's name, format and geometry; 1 is hemorrhage.
    Exit code 0: every case done; 1: at least one was not (each is named on stderr); 2: wrong usage.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hemseg.cohort import plan, run
    from hemseg.model import load

    jobs = plan(source, target, overlay)
    model = load(weights, device)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rows, failed = [], 0
    with Progress(*columns, console=Console(stderr=True), disable=quiet or len(jobs) == 1, transient=True) as progress:
        task = progress.add_task("segmenting", total=len(jobs))
        for outcome in run(jobs, model):
            rows.append(_row(outcome))
            if outcome.error:
                failed += 1
                progress.console.print(
                    f"error: {outcome.error}", style="red", markup=False, highlight=False, soft_wrap=True
                )
            progress.advance(task)
    if not quiet:
        _print_table(rows)
    if failed:
        raise typer.Exit(1)


def _row(outcome: Outcome) -> tuple[str, ...]:
    """What the table shows of a case: name, volume, lesions, seconds. The voxels are let go."""
    result = outcome.result
    if result is None:
        return str(outcome.job.case), "failed", "", ""
    return str(outcome.job.case), f"{result.volume_ml:.1f}", str(len(result.lesions)), f"{result.seconds:.1f}"


def _print_table(rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("case", overflow="fold")
    for name in ("volume (mL)", "lesions", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for case, volume, lesions, seconds in rows:
        table.add_row(Text(case), volume, lesions, seconds, style="red" if volume == "failed" else None)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)


@app.command()
def info(weights: Weights = None, device: Device = "auto") -> None:
    """Tell versions, weights and the device that inference would run on."""
    import platform

    import cv2
    import numpy
    import onnxruntime
    import SimpleITK

    from hemseg.model import load

    model = load(weights, device)
    manifest = model.manifest
    print(f"hemseg        {__version__} (research only, not a medical device)")
    print(f"python        {platform.python_version()} on {platform.platform()}")
    print(
        f"libraries     onnxruntime {onnxruntime.__version__}, SimpleITK {SimpleITK.Version.VersionString()}, ", end=""
    )
    print(f"OpenCV {cv2.__version__}, numpy {numpy.__version__}")
    print(f"weights       {manifest.name} {manifest.version}, sha256 {manifest.sha256[:16]}, from {model.folder}")
    print(f"working grid  {manifest.preprocessing.in_plane_mm:g} mm in plane, slices of about ", end="")
    print(f"{manifest.preprocessing.slice_mm:g} mm, patch {'x'.join(map(str, manifest.patch))} (z, y, x)")
    print(f"device        {model.provider}")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a mistake of the user ends in one sentence."""
    try:
        app()
    except HemsegError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
