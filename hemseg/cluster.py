"""A folder of scans on Ray: actors that load the model once, lost ones replaced, a bounded number of jobs under way."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from hemseg.cohort import Job, attempt
from hemseg.errors import HemsegError, first_line
from hemseg.model import load
from hemseg.summary import Row, failed_row, row_of

TRIES = 3


class Worker:
    """What runs in a Ray actor."""

    def __init__(self, weights: str, device: str, threads: int) -> None:
        self._model = load(weights, device, threads)

    def do(self, job: Job, key: str, target: Path) -> Row:
        """One job."""
        return row_of(attempt(job, self._model), key, target)


def rows_of_ray(
    jobs: Sequence[Job], weights: Path, device: str, key: str, target: Path, address: str, workers: int
) -> Generator[Row]:
    """Do the jobs on a Ray cluster; rows come as they are ready.

    Every node must see the input, the output and the weights under the same paths.

    Args:
        address: of the cluster, ``auto``, or ``local`` for a cluster on this machine alone.
        workers: number of actors, each on one CPU core (or one GPU with device ``cuda``).

    Raises:
        HemsegError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
        from ray.exceptions import RayActorError, RayError
    except ImportError:
        raise HemsegError("a cluster needs Ray; `pip install 'hemseg[cluster]'`.") from None
    ours = not ray.is_initialized()
    try:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no calls home
        if ours and address == "local":
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **options)
        elif ours:
            ray.init(address=address, **options)
    except (RayError, ConnectionError, ValueError, RuntimeError) as error:
        raise HemsegError(f"the Ray cluster {address} cannot be reached ({first_line(error)}).") from None
    resources: dict[str, Any] = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    actor: Any = ray.remote(**resources)(Worker)
    try:
        team: deque[Any] = deque(actor.remote(str(weights), device, 1) for _ in range(workers))
        left, tries = deque(jobs), Counter[Job]()
        busy: dict[Any, tuple[Any, Job]] = {}
        while left or busy:
            while left and team:  # one job a worker: an idle one takes the next, and nothing piles up
                job, worker = left.popleft(), team.popleft()
                tries[job] += 1
                busy[worker.do.remote(job, key, target)] = (worker, job)
            (ready,), _ = ray.wait(list(busy), num_returns=1)
            worker, job = busy.pop(ready)
            try:
                row = ray.get(ready)
                team.append(worker)
                yield row
            except RayActorError:  # the worker or its machine is gone: a new one, and the job once more
                team.append(actor.remote(str(weights), device, 1))
                if tries[job] < TRIES:
                    left.appendleft(job)
                else:
                    why = f"its worker died {TRIES} times while it was under way."
                    yield failed_row(job, key, target, f"{job.scan}: {why}")
    finally:
        if ours:
            ray.shutdown()
