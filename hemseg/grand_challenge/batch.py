"""One run of the container over what is mounted, in every mode but ``serve``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hemseg.errors import HemsegError, one_line
from hemseg.folder.jobs import run_jobs
from hemseg.folder.outputs import refuse_conflicts
from hemseg.folder.plan import Job, known_refusal
from hemseg.grand_challenge.outputs import (
    check_mounts,
    check_outputs,
    is_results,
    plan_jobs,
    print_messages,
    survey,
)
from hemseg.grand_challenge.sockets import RESULTS, load_sockets, plan_run, read_inputs
from hemseg.io.files import remove_leftovers
from hemseg.manifest import default_weights
from hemseg.model import load
from hemseg.names import printable
from hemseg.startup import import_nibabel

if TYPE_CHECKING:
    from hemseg.model import Model

logger = logging.getLogger("hemseg")
WITH_RESULTS = ("legacy", "gc-generic")  # modes that write evalutils' results.json


def run_container(
    source: Path,
    target: Path,
    predict: Path,
    mode: str,
    weights: Path | None,
    device: str,
    overwrite: bool = False,
    operating_point: str = "",
) -> list[str]:
    """One run of the container, in every mode but ``serve``; returns why cases failed and files could not be read.

    Args:
        source, target, predict: ``/input``, ``/output`` and, for INSTANCE, ``/predict``.
        mode: one of `hemseg.grand_challenge.sockets.MODES`, or ``auto``.
        weights: folder with a manifest; `hemseg.manifest.default_weights` when None.
        device: see `hemseg.model.load`.
        overwrite: replace files that hemseg did not write.
        operating_point: see `hemseg.manifest.Manifest.at`.

    Raises:
        HemsegError: there is nothing to do, or it is refused before any work.
    """
    check_mounts(source, (target, predict))
    weights = weights or default_weights()
    sockets = load_sockets(os.environ, weights)
    unread: dict[Path, str] = {}
    files, dicom = survey(source, target, unread)
    run_plan = plan_run(files, read_inputs(source), predict.is_dir(), sockets, mode, dicom)
    if run_plan.mode == "instance" and not predict.is_dir():
        raise HemsegError(f"mode instance writes to {predict}, but there is no such folder; mount it.")
    jobs = [
        replace(job, refusal=known_refusal(job, unread))
        for job in plan_jobs(run_plan, source, target, predict, sockets)
    ]
    with_results = run_plan.mode in WITH_RESULTS
    if with_results:
        require_evalutils(run_plan.mode)
    results = (target / RESULTS,) if with_results else ()
    check_outputs([*(path for job in jobs for path in job.outputs), *results], source, files, (target, predict))
    refuse_conflicts(jobs, tables=[path for path in results if not is_results(path)], overwrite=overwrite)
    for folder in (target, predict):
        remove_leftovers(folder)
    import_nibabel(job.scan for job in jobs)
    model = load(weights, device, scans=len(jobs)).at(operating_point)
    logger.info("weights %s %s on %s", model.manifest.name, model.manifest.version, model.provider)
    slices = f", {len(run_plan.dicom)} DICOM files" if run_plan.dicom else ""
    logger.info("mode %s, %d scan%s%s", run_plan.mode, len(jobs), "s" * (len(jobs) != 1), slices)
    errors = _perform(run_plan.mode, jobs, source, target, model)
    failed = [f"{len(errors)} of {len(jobs)} scans failed; the first: {errors[0]}"] if errors and len(jobs) > 1 else []
    unreadable = [printable(f"{path}: {reason}") for path, reason in unread.items()]
    for reason in unreadable:
        print(one_line(f"error: {reason}"), file=sys.stderr, flush=True)
    return [*failed, *errors, *unreadable]


def require_evalutils(mode: str) -> None:
    """Raise HemsegError if evalutils is not installed, before any work is done."""
    try:
        import evalutils  # noqa: F401
    except ModuleNotFoundError as error:
        raise HemsegError(f"mode {mode} needs {error.name}; `pip install 'hemseg[grand-challenge]'`.") from None


def _perform(mode: str, jobs: Sequence[Job], source: Path, target: Path, model: Model) -> list[str]:
    if mode in WITH_RESULTS:
        from hemseg.grand_challenge.evalutils_layout import HemorrhageSegmentation

        algorithm = HemorrhageSegmentation(source, target, model, jobs)
        algorithm.process()
        return algorithm.errors
    errors = []
    with closing(run_jobs(jobs, model)) as outcomes:
        for outcome in outcomes:
            logger.info("%s: %s", printable(str(outcome.job.case)), "failed" if outcome.error else "done")
            print_messages(outcome)
            if outcome.error:
                errors.append(outcome.error)
    return errors
