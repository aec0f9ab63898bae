"""A run of planned jobs: one process has the folder, what was done before is left out, rows go to the journal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.folder.console import PrintOptions, messages, print_json, print_table
from hemseg.folder.journal import Journal
from hemseg.folder.outputs import refuse_conflicts
from hemseg.folder.plan import Job, OutputOptions
from hemseg.folder.processes import run_in_processes, run_in_this_process
from hemseg.folder.rows import Row, settings_key_of_weights
from hemseg.io.files import exclusive_access, remove_leftovers
from hemseg.manifest import Manifest, default_weights
from hemseg.model import load
from hemseg.names import printable
from hemseg.signals import raise_pending_signal
from hemseg.startup import import_nibabel
from hemseg.streams import print_text


@dataclass(frozen=True)
class RunOptions:
    """How jobs are done.

    Attributes:
        weights: folder with a manifest; `hemseg.manifest.default_weights` when None.
        device: see `hemseg.model.load`.
        jobs: processes, or workers of a Ray cluster.
        ray: address of that cluster; '' for none.
        redo: do cases again that are done already.
        overwrite: replace files that hemseg did not write.
    """

    weights: Path | None = None
    device: str = "auto"
    jobs: int = 1
    ray: str = ""
    redo: bool = False
    overwrite: bool = False


def run_plan(
    planned: list[Job],
    target: Path,
    options: OutputOptions,
    run: RunOptions,
    printed: PrintOptions,
    finish: Callable[[list[Row]], None] | None = None,
) -> int:
    """Do what is planned and was not done before, and print what came of it.

    Args:
        planned: the jobs, of one scan or of a folder.
        target: the folder, or the mask of the one scan.
        options: what was planned for; they are part of what makes a case done.
        run: how to do it.
        printed: what to print.
        finish: gets the rows of all cases when the last one is done.

    Returns:
        How many cases failed.

    Raises:
        HemsegError: nothing was done: files are in the way, another process has the folder, or the weights do not fit.
    """
    folder = run.weights or default_weights()
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
            done = [] if run.redo else [job for job in planned if journal.is_done(job, key)]
            before = set(done)
            todo = [job for job in planned if job not in before]
            refuse_conflicts(todo, planned, journal.to_check, journal.lists, run.overwrite)
            journal.start(journal.kept(planned, done))
            if done and not printed.quiet:
                print(f"{len(done)} of {len(planned)} scans were done before; --redo does them again", file=sys.stderr)
        else:
            refuse_conflicts(planned, overwrite=run.overwrite)
        rows = []
        if todo:
            incoming = _run_jobs(todo, folder, key, target, run, journal, printed)
            rows = _with_progress(incoming, len(todo), journal, printed)
        if journal:
            journal.finish(planned)
            rows = list(journal.rows.values())
        if finish:
            finish(rows)
    failed = sum(row.status != "done" for row in rows)
    if printed.as_json:
        print_json(rows)
    elif not printed.quiet:
        print_table(rows)
        if journal:
            failures = f", {failed} failed" if failed else ""
            page = printable(str(journal.path.with_suffix(".html")))
            print_text(f"{len(rows) - failed} of {len(rows)} scans done{failures}; see {page}\n")
    return failed


def _run_jobs(
    todo: list[Job],
    weights: Path,
    key: str,
    target: Path,
    run: RunOptions,
    journal: Journal | None,
    printed: PrintOptions,
) -> Generator[Row]:
    """Rows as they come, from this process, from several, or from Ray."""
    if run.ray:
        from hemseg.folder.ray_cluster import run_on_ray

        return run_on_ray(todo, weights, run.device, key, target, run.ray, run.jobs)
    if run.jobs > 1 and len(todo) > 1:
        return run_in_processes(todo, weights, run.device, key, target, min(run.jobs, len(todo)))
    import_nibabel(job.scan for job in todo)
    model = load(weights, run.device, scans=len(todo))
    if printed.verbose:
        print(f"weights {model.manifest.name} {model.manifest.version}, {model.provider}", file=sys.stderr)
    return run_in_this_process(todo, model, target, journal.add if journal else None, key)


def _with_progress(incoming: Generator[Row], total: int, journal: Journal | None, printed: PrintOptions) -> list[Row]:
    """The rows, with a progress bar; errors go to stderr as they come, rows to the journal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console, rows = Console(stderr=True), []
    hidden = printed.quiet or total == 1 or not console.is_terminal  # in a file it would leave an empty line
    with closing(incoming), Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("segmenting", total=total)
        for row in incoming:
            rows.append(row)
            if journal:
                journal.add(row)
            for kind, text, style in messages(row, printed):
                bar.console.print(f"{kind}: {text}", style=style, markup=False, highlight=False, soft_wrap=True)
            bar.advance(task)
            raise_pending_signal()
    return rows
