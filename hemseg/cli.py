"""The ``hemseg`` command. Heavy libraries are imported where they are needed, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hemseg import __version__
from hemseg.compare.command import compare
from hemseg.errors import HemsegError, system_error
from hemseg.mask_formats import MASK_FORMATS, SAME, help_text
from hemseg.node.command import node
from hemseg.options import Device, Overlay, Overwrite, Redo, Report, Series, Weights, path

if TYPE_CHECKING:
    from hemseg.folder.rows import Row
    from hemseg.manifest import Manifest

    FormatName = str
else:
    FormatName = Literal[tuple(MASK_FORMATS)]

app = typer.Typer(
    help="Segment intracranial hemorrhage in 3D on non-contrast head CT. For research only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def segment(
    sources: Annotated[
        list[Path],
        typer.Argument(
            parser=path,
            metavar="INPUT...",
            help="Scans, zip archives of DICOM files, or folders (searched recursively).",
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(
            parser=path, metavar="OUTPUT", help="Output folder or, for a single scan, the file name of the mask."
        ),
    ],
    form: Annotated[
        FormatName,
        typer.Option("--format", help=help_text()),
    ] = SAME,
    overlay: Overlay = False,
    report: Report = False,
    probability: Annotated[
        bool,
        typer.Option("--probability", help="Also write the probability of hemorrhage per voxel, <case>_probability.*."),
    ] = False,
    kinds: Annotated[
        bool,
        typer.Option(
            "--kinds", help="Also write <case>_kinds.*, with each lesion labeled by its kind (1-5; 6: unsure)."
        ),
    ] = False,
    bids: Annotated[
        bool,
        typer.Option(
            "--bids", help="Write a BIDS derivative data set (NIfTI). If INPUT is a BIDS tree, segment its CT scans."
        ),
    ] = False,
    series: Series = "",
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs", "-j", min=1, help="Number of processes for a folder; each needs about 0.7 GB of memory."
        ),
    ] = 1,
    ray: Annotated[
        str,
        typer.Option(
            help="Process a folder on a Ray cluster: its address, auto, or local. --jobs sets the number of workers."
        ),
    ] = "",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Reject odd-looking scans (a window, part of a head, ...) and implausible results instead of only "
            "warning.",
        ),
    ] = False,
    operating_point: Annotated[
        str,
        typer.Option(
            help="Operating point of the weights: balanced, or sensitive (finds more hemorrhage, but also more false "
            "positives)."
        ),
    ] = "",
    with_range: Annotated[
        bool,
        typer.Option(
            "--range", help="Also report a range for the volume. Takes longer, because the network runs three times."
        ),
    ] = False,
    redo: Redo = False,
    overwrite: Overwrite = False,
    weights: Weights = None,
    device: Device = "auto",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress and no table; errors are still printed.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print the weights, the device and the selected DICOM series.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")] = False,
) -> None:
    """Segment one scan, several scans, or every scan in a folder.

    Reads NIfTI, MetaImage, NRRD and DICOM series. The mask has the name, format and geometry of the scan; its value 1
    marks hemorrhage. For a folder, summary.csv and summary.html are written as well, and running the same command again
    resumes an interrupted run. Files that hemseg did not write are not replaced.

    Exit codes: 0, all cases succeeded; 1, some failed (each is named on stderr); 2, wrong usage; 130 or 143, stopped.
    """
    from functools import partial

    from hemseg.folder.console import PrintOptions
    from hemseg.folder.plan import OutputOptions, plan_jobs
    from hemseg.folder.run import RunOptions, run_plan

    finish: Callable[[list[Row]], None] | None = None
    if bids:
        from hemseg.bids import bids_jobs, mask_format, write_dataset

        form = mask_format(form, target)
    written = (overlay, report, probability)
    options = OutputOptions(*written, form, series, strict, operating_point, range=with_range, kinds=kinds)
    planned = plan_jobs(sources[0] if len(sources) == 1 else sources, target, options)
    if bids:
        planned = bids_jobs(planned, sources, target)

        finish = partial(write_dataset, planned, sources=sources, target=target)
    run = RunOptions(weights, device, jobs, ray, redo, overwrite)
    _end(run_plan(planned, target, options, run, PrintOptions(quiet, verbose, as_json), finish))


@app.command()
def measure(
    scan: Annotated[
        Path, typer.Argument(parser=path, metavar="SCAN", help="A scan, or a folder of scans (searched recursively).")
    ],
    mask: Annotated[
        Path,
        typer.Argument(
            parser=path,
            metavar="MASK",
            help="Its mask, or a folder of masks with the same relative paths as the scans.",
        ),
    ],
    target: Annotated[
        Path, typer.Argument(parser=path, metavar="OUTPUT", help="Folder for the tables, pictures and reports.")
    ],
    label: Annotated[int, typer.Option(min=0, help="Mask value to measure; 0: all values above 0.")] = 0,
    overlay: Overlay = False,
    report: Report = False,
    series: Series = "",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Reject odd-looking scans and implausible results instead of only warning."),
    ] = False,
    redo: Redo = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that hemseg did not write.")] = False,
    weights: Weights = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress and no table; errors are still printed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")] = False,
) -> None:
    """Measure existing masks, such as corrected or manually drawn ones.

    Writes the same tables, pictures and reports as `hemseg segment`, with the same figures for the same mask. Masks are
    NIfTI, MetaImage or NRRD files on the grid of their scan and are never modified.

    Exit codes: 0, all cases succeeded; 1, some failed (each is named on stderr); 2, wrong usage; 130 or 143, stopped.
    """
    from hemseg.folder.console import PrintOptions
    from hemseg.folder.given_masks import plan_measure
    from hemseg.folder.plan import OutputOptions
    from hemseg.folder.run import RunOptions, run_plan

    options = OutputOptions(overlay, report, series=series, strict=strict, measure=True, label=label)
    planned = plan_measure(scan, mask, target, options)
    run = RunOptions(weights, "cpu", redo=redo, overwrite=overwrite)
    _end(run_plan(planned, target, options, run, PrintOptions(quiet, as_json=as_json)))


def _end(failed: int) -> None:
    """Exit code 1 where cases failed."""
    if failed:
        raise typer.Exit(1)


app.command()(compare)


@app.command()
def info(weights: Weights = None, device: Device = "auto") -> None:
    """Print versions, information on the weights, and the device used for inference."""
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
    print(f"licence       {manifest.license}")
    states = model.folder / "torch"
    print(f"for training  {states if states.is_dir() else 'no torch weights beside these'}")
    right, of = model.kinds.right if model.kinds else (0, 0)
    measured = f", right in {right} of {of} lesions of unseen scans" if of else ""
    print(f"kinds         {f'named{measured}' if model.kinds else 'not named by these weights'}")
    points = [manifest, *(manifest.at(name) for name in manifest.operating_points)]
    print("points       ", ", ".join(map(_in_words, points)))
    least = manifest.doubt_slice_probability
    doubtful = f"slices without an outline, slice classifier from {least:g}" if least else "none are named"
    print(f"doubtful      {doubtful}")
    print(f"working grid  {manifest.preprocessing.in_plane_mm:g} mm in plane, slices of about ", end="")
    print(f"{manifest.preprocessing.slice_mm:g} mm, patch {'x'.join(map(str, manifest.patch))} (z, y, x)")
    print(f"device        {model.provider}")


def _in_words(point: Manifest) -> str:
    """An operating point and its thresholds."""
    opinion = f", slice classifier {point.min_slice_probability:g}" if point.classifier_file else ""
    outline = f", outline {point.outline_threshold:g}" if point.outline_threshold else ""
    return f"{point.operating_point} ({point.threshold:g}{outline}, peak {point.min_peak:g}{opinion})"


app.command()(node)


def _print_version(asked: bool) -> None:
    if asked:
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
    from hemseg.signals import install_signal_handlers
    from hemseg.startup import start_lean
    from hemseg.streams import flush_standard_output, open_standard_streams

    start_lean()
    install_signal_handlers()
    open_standard_streams()
    code: str | int | None = 0
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        code = end.code
    except HemsegError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except BrokenPipeError:  # nobody reads what is printed
        code = 0
    except OSError as error:
        advice = "; check its permissions" if isinstance(error, PermissionError) else ""
        print(f"error: {system_error(error)}{advice}.", file=sys.stderr)
        code = 1
    printed = flush_standard_output()
    sys.exit(code or (0 if printed else 1))


if __name__ == "__main__":
    main()
