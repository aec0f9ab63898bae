"""``hemseg compare``."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from hemseg.names import printable
from hemseg.options import Device, Overwrite, Weights, path


def compare(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            parser=path,
            metavar="BASELINE FOLLOWUP [OUTPUT]",
            help="Two scans of one patient (files, or folders or zip archives of DICOM files), and an output folder.",
        ),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            help="CSV table of many pairs (columns baseline, followup; see the manual); give only OUTPUT with it.",
        ),
    ] = None,
    baseline_mask: Annotated[
        Path | None,
        typer.Option(parser=path, help="Mask of the baseline scan, on its grid; without it, hemseg segments the scan."),
    ] = None,
    followup_mask: Annotated[
        Path | None,
        typer.Option(
            parser=path, help="Mask of the follow-up scan, on its grid; without it, hemseg segments the scan."
        ),
    ] = None,
    baseline_series: Annotated[
        str, typer.Option(help="DICOM series of the baseline, as --series of `hemseg segment`.")
    ] = "",
    followup_series: Annotated[
        str, typer.Option(help="DICOM series of the follow-up, as --series of `hemseg segment`.")
    ] = "",
    least_ml: Annotated[float, typer.Option(min=0.0, help="Expansion is growth by at least this many mL ...")] = 6.0,
    least_percent: Annotated[float, typer.Option(min=0.0, help="... or by more than this many percent.")] = 33.0,
    hours: Annotated[
        float | None, typer.Option(help="Hours between the scans, instead of the time from the DICOM headers.")
    ] = None,
    any_patient: Annotated[
        bool, typer.Option("--any-patient", help="Compare even if the DICOM headers name two different patients.")
    ] = False,
    overwrite: Overwrite = False,
    weights: Weights = None,
    device: Device = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Measure the growth of hemorrhage between two scans of one patient.

    Aligns the scans, measures both in the same orientations, and compares the change with the difference between two
    scans of an unchanged hemorrhage. Writes compare.html, compare.json, compare.csv and the masks to OUTPUT, if given.

    Exit codes: 0, all pairs were compared; 1, some failed (each is named on stderr); 2, wrong usage.
    """
    from contextlib import nullcontext

    from hemseg.compare.comparison import Options
    from hemseg.compare.pairs import TABLE, Pair, case_of, read_pairs, refuse_conflicts, run_pair, run_pairs
    from hemseg.compare.tables import messages, summary
    from hemseg.io.files import exclusive_access, remove_leftovers
    from hemseg.model import load
    from hemseg.streams import print_text

    given = paths or []
    of_one = (baseline_mask, followup_mask, baseline_series, followup_series, hours)
    if pairs is None and len(given) not in (2, 3):
        raise typer.BadParameter("give BASELINE and FOLLOWUP, and a folder if files are wanted.")
    if pairs is not None and (len(given) != 1 or any(one not in (None, "") for one in of_one)):
        raise typer.BadParameter("with --pairs give the folder for what is written alone; the table says the rest.")
    if not all(math.isfinite(value) for value in (least_ml, least_percent, hours or 0.0)):
        raise typer.BadParameter("--hours, --least-ml and --least-percent must be finite numbers.")
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
    results, failed = [], False
    with exclusive_access(target) if target else nullcontext():
        if target:
            remove_leftovers(target)
        outcomes: Iterable[tuple[Pair, dict[str, Any] | str]]
        if target is None:
            outcomes = [(planned[0][0], run_pair(planned[0][0], model, options))]
        else:
            outcomes = run_pairs(planned, model, options, target)
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
