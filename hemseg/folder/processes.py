"""Who does the jobs of a folder: this process, several processes, or a Ray cluster. All of them give rows.

A job that kills its process (out of memory, say) is tried once more in a new one, and then named as failed; the others
are done.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

from hemseg.errors import HemsegError
from hemseg.folder.jobs import Outcome, run_job, run_jobs
from hemseg.folder.plan import Job
from hemseg.folder.rows import Row, failed_row, row_of, settings_key
from hemseg.model import Model, load
from hemseg.resources import cores
from hemseg.signals import handle_signals_as_worker, signals_blocked

_model: Model | None = None  # of a worker process


def run_in_this_process(
    jobs: Sequence[Job],
    model: Model,
    target: Path,
    on_unclaimed: Callable[[Row], object] | None = None,
    key: str = "",
) -> Generator[Row]:
    """Do the jobs in this process, in order.

    Args:
        key: `hemseg.folder.rows.settings_key`; that of the model and no options when empty.
        on_unclaimed: where the rows are not consumed to the end, gets those of the scans that were under way then.
    """
    key = key or settings_key(model.manifest)
    finished: dict[Job, Row] = {}

    def record(outcome: Outcome) -> None:
        finished[outcome.job] = row_of(outcome, key, target)

    try:
        with closing(run_jobs(jobs, model, record)) as outcomes:
            for outcome in outcomes:
                yield finished.pop(outcome.job)
    finally:
        if on_unclaimed:
            for row in finished.values():
                on_unclaimed(row)


def run_in_processes(
    jobs: Sequence[Job], weights: Path, device: str, key: str, target: Path, processes: int
) -> Generator[Row]:
    """Do the jobs in several processes, each with a model of its own; rows come as they are ready.

    No more than two jobs per process are handed out ahead.

    Args:
        weights, device: as for `hemseg.model.load`, which each process calls.
        key: see `hemseg.folder.rows.settings_key`.
        target: the output folder, from which the rows' paths are seen.
        processes: how many.
    """

    def run_batch(todo: Sequence[Job], processes: int) -> Generator[Row, None, tuple[list[Job], list[Job]]]:
        """Until all is done or a process dies; returns the jobs that were under way then, and those not begun."""
        remaining, submitted = deque(todo), dict[Future[Row], Job]()
        threads = max(1, cores() // processes)
        pool = _pool(processes, weights, device, threads)
        try:
            while remaining or submitted:
                with signals_blocked():  # a process may begin here: a signal is for this one, and waits
                    while remaining and len(submitted) < 2 * processes:
                        submitted[pool.submit(_run_in_worker, remaining[0], key, target)] = remaining[0]
                        remaining.popleft()
                ready, _ = wait(submitted, return_when=FIRST_COMPLETED)
                for future in ready:
                    row = future.result()
                    del submitted[future]
                    yield row
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return list(submitted.values()), list(remaining)

    remaining = list(jobs)
    while remaining:
        in_flight, remaining = yield from run_batch(remaining, processes)
        for job in in_flight:  # one of them is to blame: each alone
            crashed, _ = yield from run_batch([job], 1)
            if crashed:
                why = "its process died while it was under way, perhaps for want of memory."
                yield failed_row(job, key, target, f"{job.scan}: {why}")


def _pool(processes: int, weights: Path, device: str, threads: int) -> ProcessPoolExecutor:
    try:
        return ProcessPoolExecutor(processes, get_context("spawn"), _start_worker, (weights, device, threads))
    except (OSError, ImportError) as error:  # semaphores lie in /dev/shm, which some containers do not have
        reason = getattr(error, "strerror", None) or error
        raise HemsegError(f"--jobs needs shared memory (/dev/shm), which does not work here ({reason}).") from None


def _start_worker(weights: Path, device: str, threads: int) -> None:
    global _model
    handle_signals_as_worker()
    Thread(target=_exit_with_parent, daemon=True).start()
    _model = load(weights, device, threads)


def _exit_with_parent() -> None:
    """A worker waits for work for ever: if its parent is killed, nobody else would end it."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


def _run_in_worker(job: Job, key: str, target: Path) -> Row:
    assert _model
    return row_of(run_job(job, _model), key, target)
