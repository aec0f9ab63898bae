"""The ``hemseg`` command. Heavy libraries are imported where they are needed, so that ``--help`` answers at once."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from hemseg import __version__, choices
from hemseg.errors import HemsegError
from hemseg.names import printable
from hemseg.node import command

if TYPE_CHECKING:
    from hemseg.folder.journal import Journal
    from hemseg.folder.plan import Job, OutputOptions
    from hemseg.folder.rows import Row

app = typer.Typer(
    help="Find intracranial hemorrhage on non-contrast head CT, outline it in 3D. Research only, not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Weights = Annotated[
    Path | None, typer.Option(help="Folder with manifest.json; by default the weights that came with hemseg.")
]
Device = Annotated[choices.Device, typer.Option(help="auto: CUDA where it works, else CPU; cuda: CUDA, or an error.")]


@app.command()
def segment(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="Scans, zip archives of DICOM, or folders (searched with their subfolders)."
        ),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder; for one scan also the mask's file name.")],
    form: Annotated[
        choices.MaskFormat,
        typer.Option("--format", help="Of the masks; same: as the scan, mha for DICOM; dicom: SEG and SR."),
    ] = choices.SAME,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write a picture of each case, <case>.png.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write <case>/report.html, a viewer to open, and report.json.")
    ] = False,
    probability: Annotated[
        bool,
        typer.Option("--probability", help="Also write the probability of each voxel, <case>_probability.*."),
    ] = False,
    kinds: Annotated[
        bool,
        typer.Option("--kinds", help="Also write <case>_kinds.*: each lesion labelled with its kind, 1-5; 6: unsure."),
    ] = False,
    bids: Annotated[
        bool,
        typer.Option("--bids", help="Write a BIDS derivative data set, in NIfTI; of a BIDS tree, do the CT scans."),
    ] = False,
    series: Annotated[
        str, typer.Option(help="Of a DICOM study: number or SeriesInstanceUID, in place of the rule.")
    ] = "",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Processes for a folder; each takes about 0.7 GB.")
    ] = 1,
    ray: Annotated[
        str, typer.Option(help="Do a folder on a Ray cluster: its address, auto, or local. --jobs: its workers.")
    ] = "",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Refuse what looks odd (a window, part of a head...) or implausible; else a warning."
        ),
    ] = False,
    operating_point: Annotated[
        str, typer.Option(help="Of the weights: balanced, or sensitive, which finds more, and more that is none.")
    ] = "",
    with_range: Annotated[
        bool,
        typer.Option("--range", help="Also give the volume a range; the network runs three times, so it takes longer."),
    ] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Do cases again that are done already.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that hemseg did not write; scans are never replaced.")
    ] = False,
    weights: Weights = None,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table, but errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also print weights, device, the chosen series and every warning.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")] = False,
) -> None:
    """Segment a scan, several, or every scan of a folder.

    Reads NIfTI, MetaImage, NRRD, and DICOM series. The mask has the scan's name, format and geometry; 1 is hemorrhage.
    A folder also gets summary.csv and summary.html; the same command again goes on where it was stopped. Files that
    hemseg did not write are not replaced.

    Exit code 0: every case done; 1: at least one was not (each is named on stderr); 2: wrong usage; 130, 143: stopped.
    """
    from functools import partial

    from hemseg.folder.plan import OutputOptions, plan_jobs

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
    printed = PrintOptions(quiet, verbose, as_json)
    _run_plan(planned, target, options, weights, device, printed, jobs, ray, redo, overwrite, finish)


@app.command()
def measure(
    scan: Annotated[Path, typer.Argument(metavar="SCAN", help="A scan, or a folder (searched with its subfolders).")],
    mask: Annotated[
        Path,
        typer.Argument(metavar="MASK", help="Its mask, or a folder of masks with the paths that the scans have."),
    ],
    target: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A folder for tables, pictures and reports.")],
    label: Annotated[
        int, typer.Option(min=0, help="The value in the mask that counts; 0 for every value above 0.")
    ] = 0,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write a picture of each case, <case>.png.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write <case>/report.html, a viewer to open, and report.json.")
    ] = False,
    series: Annotated[
        str, typer.Option(help="Of a DICOM study: number or SeriesInstanceUID, in place of the rule.")
    ] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse what looks odd or implausible; else a warning.")
    ] = False,
    redo: Annotated[bool, typer.Option("--redo", help="Do cases again that are done already.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that hemseg did not write.")] = False,
    weights: Weights = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON instead of a table.")] = False,
) -> None:
    """Measure masks that are given: corrected ones, or drawn by hand.

    Writes the tables, pictures and reports that `hemseg segment` writes, with the same figures for the same mask.
    Masks are NIfTI, MetaImage or NRRD on the grid of their scan, and are never changed.

    Exit code 0: every case done; 1: at least one was not (each is named on stderr); 2: wrong usage; 130, 143: stopped.
    """
    from hemseg.folder.given_masks import plan_measure
    from hemseg.folder.plan import OutputOptions

    options = OutputOptions(overlay, report, series=series, strict=strict, measure=True, label=label)
    planned = plan_measure(scan, mask, target, options)
    printed = PrintOptions(quiet, False, as_json)
    _run_plan(planned, target, options, weights, "cpu", printed, redo=redo, overwrite=overwrite)


class PrintOptions(NamedTuple):
    """What is printed."""

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False


def _run_plan(
    planned: list[Job],
    target: Path,
    options: OutputOptions,
    weights: Path | None,
    device: str,
    printed: PrintOptions,
    jobs: int = 1,
    ray: str = "",
    redo: bool = False,
    overwrite: bool = False,
    finish: Callable[[list[Row]], None] | None = None,
) -> None:
    """Do what is planned and was not done before, and print what came of it."""
    from contextlib import ExitStack

    from hemseg.folder.journal import Journal
    from hemseg.folder.outputs import refuse_conflicts
    from hemseg.folder.rows import settings_key_of_weights
    from hemseg.io.files import exclusive_access, remove_leftovers
    from hemseg.model import Manifest, default_weights
    from hemseg.streams import print_text

    quiet, verbose, as_json = printed
    folder = weights or default_weights()
    if options.kinds and not Manifest.read(folder).kinds_file:
        raise HemsegError(f"{folder}: these weights name no kinds of hemorrhage; use others, or leave out --kinds.")
    key = settings_key_of_weights(folder, options)
    journal = None
    todo = planned
    with ExitStack() as stack:
        if planned[0].thumbnail:  # a folder
            stack.enter_context(exclusive_access(target))
            remove_leftovers(target)
            journal = Journal(target)
            done = [] if redo else [job for job in planned if journal.is_done(job, key)]
            before = set(done)
            todo = [job for job in planned if job not in before]
            refuse_conflicts(todo, planned, journal.to_check, journal.lists, overwrite)
            journal.start(journal.kept(planned, done))
            if done and not quiet:
                print(f"{len(done)} of {len(planned)} scans were done before; --redo does them again", file=sys.stderr)
        else:
            refuse_conflicts(planned, overwrite=overwrite)
        rows = _work(todo, folder, device, key, target, jobs, ray, journal, quiet, verbose)
        if journal:
            journal.finish(planned)
            rows = list(journal.rows.values())
        if finish:
            finish(rows)
    failed = sum(row.status != "done" for row in rows)
    if as_json:
        import json

        values = [dict(zip(row.columns(), row.cells, strict=True)) for row in rows]
        print_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    elif not quiet:
        _print_table(rows)
        if journal:
            failures = f", {failed} failed" if failed else ""
            page = printable(str(journal.path.with_suffix(".html")))
            print_text(f"{len(rows) - failed} of {len(rows)} scans done{failures}; see {page}\n")
    if failed:
        raise typer.Exit(1)


def _work(
    todo: list[Job],
    weights: Path,
    device: str,
    key: str,
    target: Path,
    jobs: int,
    ray: str,
    journal: Journal | None,
    quiet: bool,
    verbose: bool,
) -> list[Row]:
    """Do what is to be done, with a progress bar; errors go to stderr as they come, rows to the journal."""
    from contextlib import closing

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from hemseg.folder import processes

    if not todo:
        return []
    if ray:
        from hemseg.folder.ray_cluster import run_on_ray

        coming = run_on_ray(todo, weights, device, key, target, ray, jobs)
    elif jobs > 1 and len(todo) > 1:
        coming = processes.run_in_processes(todo, weights, device, key, target, min(jobs, len(todo)))
    else:
        from hemseg.model import load

        model = load(weights, device, scans=len(todo))
        if verbose:
            print(f"weights {model.manifest.name} {model.manifest.version}, {model.provider}", file=sys.stderr)
        coming = processes.run_here(todo, model, target, journal.add if journal else None, key)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console, rows = Console(stderr=True), []
    hidden = quiet or len(todo) == 1 or not console.is_terminal  # in a file it would leave an empty line
    with closing(coming), Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("segmenting", total=len(todo))
        for row in coming:
            rows.append(row)
            if journal:
                journal.add(row)
            for kind, text, style in _messages(row, quiet, verbose):
                bar.console.print(f"{kind}: {text}", style=style, markup=False, highlight=False, soft_wrap=True)
            bar.advance(task)
    return rows


def _messages(row: Row, quiet: bool, verbose: bool) -> list[tuple[str, str, str]]:
    """What is printed of a case beside its line in the table: kind, text and color."""
    about = [("implausible", row.implausible, "red", not quiet), ("warning", row.warnings, "yellow", not quiet)]
    about.append(("series", row.series, "", verbose))
    errors = [("error", row.error, "red")] if row.error else []
    return errors + [(kind, f"{row.case}: {text}", style) for kind, text, style, shown in about if text and shown]


def _print_table(rows: list[Row]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from hemseg.streams import print_text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("case", overflow="fold")
    for name in ("volume (mL)", "lesions", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        volume = f"{float(row.volume_ml):.1f}" if row.status == "done" else "failed"
        seconds = f"{float(row.seconds):.1f}" if row.seconds else ""
        if row.implausible:
            volume += " implausible"
        red = row.status != "done" or row.implausible
        table.add_row(Text(row.case), volume, row.lesions, seconds, style="red" if red else None)
    shown = io.StringIO()  # rich itself would end the process where nobody reads, and fail where nothing can be written
    terminal = sys.stdout.isatty()
    Console(file=shown, force_terminal=terminal, width=Console().width if terminal else 120).print(table)
    print_text(shown.getvalue())


@app.command()
def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="BASELINE FOLLOWUP [OUTPUT]",
            help="Two scans of one patient (files, or folders or zip archives of DICOM), and a folder for results.",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="A CSV of many pairs (columns baseline, followup; see the manual); give OUTPUT alone then."),
    ] = None,
    baseline_mask: Annotated[
        Path | None, typer.Option(help="A mask of the baseline, on its grid; without it hemseg segments.")
    ] = None,
    followup_mask: Annotated[Path | None, typer.Option(help="A mask of the follow-up, on its grid.")] = None,
    baseline_series: Annotated[str, typer.Option(help="Of a DICOM study, as --series of segment.")] = "",
    followup_series: Annotated[str, typer.Option(help="Of a DICOM study, as --series of segment.")] = "",
    least_ml: Annotated[float, typer.Option(min=0.0, help="Expansion: growth by at least so many mL ...")] = 6.0,
    least_percent: Annotated[float, typer.Option(min=0.0, help="... or by more than so many percent.")] = 33.0,
    hours: Annotated[float | None, typer.Option(help="Between the scans, where no DICOM header says it.")] = None,
    any_patient: Annotated[
        bool, typer.Option("--any-patient", help="Compare although the DICOM headers name two patients.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that hemseg did not write; scans are never replaced.")
    ] = False,
    weights: Weights = None,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure growth between two scans of one patient.

    Aligns the scans, measures both in the same orientations, and compares the change with what two scans of a
    hemorrhage that did not change differ by. OUTPUT gets compare.html, compare.json, compare.csv and the masks.

    Exit code 0: every pair compared; 1: at least one was not (each is named on stderr); 2: wrong usage.
    """
    from hemseg.compare.comparison import Options
    from hemseg.compare.pairs import TABLE, Pair, case_of, read_pairs, refuse_conflicts, run_pair, run_pairs
    from hemseg.compare.tables import messages, summary
    from hemseg.model import load
    from hemseg.streams import print_text

    given = paths or []
    of_one = (baseline_mask, followup_mask, baseline_series, followup_series, hours)
    if pairs is None and len(given) not in (2, 3):
        raise typer.BadParameter("give BASELINE and FOLLOWUP, and a folder if files are wanted.")
    if pairs is not None and (len(given) != 1 or any(one not in (None, "") for one in of_one)):
        raise typer.BadParameter("with --pairs give the folder for what is written alone; the table says the rest.")
    if pairs is None:
        series = (baseline_series, followup_series)
        one = Pair(case_of(*given[:2]), given[0], given[1], baseline_mask, followup_mask, *series, hours)
        target = given[2] if len(given) == 3 else None
        planned = [(one, target or Path())]
    else:
        target = given[0]
        planned = [(pair, target / pair.case) for pair in read_pairs(pairs)]
    options = Options(least_ml, least_percent, any_patient=any_patient)
    if target is not None:
        refuse_conflicts(planned, [target / TABLE], overwrite)
    model = load(weights, device)
    outcomes: Iterable[tuple[Pair, dict[str, Any] | str]]
    if target is None:
        outcomes = [(planned[0][0], run_pair(planned[0][0], model, options))]
    else:
        outcomes = run_pairs(planned, model, options, target)
    results, failed = [], False
    for _, outcome in outcomes:
        if isinstance(outcome, str):
            print(f"error: {printable(outcome)}", file=sys.stderr)
            failed = True
            continue
        results.append(outcome)
        if quiet:
            continue
        for line in messages(outcome):
            print(line, file=sys.stderr)
        if not as_json:
            print_text(summary(outcome))
    if as_json:
        import json

        print_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if failed:
        raise typer.Exit(1)


@app.command()
def info(weights: Weights = None, device: Device = "auto") -> None:
    """Print versions, weights and the device that inference would run on."""
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
    print(f"kinds         {'named' if manifest.kinds_file else 'not named by these weights'}")
    points = [manifest, *(manifest.at(name) for name in manifest.operating_points)]
    print("points       ", ", ".join(f"{p.operating_point} ({p.threshold:g}, peak {p.min_peak:g})" for p in points))
    print(f"working grid  {manifest.preprocessing.in_plane_mm:g} mm in plane, slices of about ", end="")
    print(f"{manifest.preprocessing.slice_mm:g} mm, patch {'x'.join(map(str, manifest.patch))} (z, y, x)")
    print(f"device        {model.provider}")


app.command()(command.node)


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
    from hemseg.signals import install
    from hemseg.streams import flush_standard_output, open_standard_streams

    install()
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
        print(f"error: {printable(str(error))}.", file=sys.stderr)
        code = 1
    printed = flush_standard_output()
    sys.exit(code or (0 if printed else 1))


if __name__ == "__main__":
    main()
