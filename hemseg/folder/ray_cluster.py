"""A folder of scans on Ray: actors that load the model once, lost ones replaced, a bounded number of jobs under way.

Ray itself waits a minute for a head that died and then ends the process, or waits for ever; so the head is watched.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hemseg.errors import HemsegError, first_line
from hemseg.folder.descendants import adopt_orphans, descendants, end_processes
from hemseg.folder.jobs import run_job
from hemseg.folder.plan import Job
from hemseg.folder.rows import Row, failed_row, row_of
from hemseg.model import load
from hemseg.signals import called_on_exit, signal_handlers_restored

MAX_ATTEMPTS = 3
CHECK_SECONDS = 1.0  # between two checks of the head
GRACE_SECONDS = 1.0  # that Ray has to end its processes
LOCAL_TIMEOUT_SECONDS = 5.0  # a head on this machine that does not answer for so long is dead
REMOTE_TIMEOUT_SECONDS = 30.0  # one elsewhere: networks have their moments, and some heads are started again


class Worker:
    """What runs in a Ray actor."""

    def __init__(self, weights: str, device: str, threads: int) -> None:
        self._model = load(weights, device, threads)

    def do(self, job: Job, key: str, target: Path) -> Row:
        """One job."""
        return row_of(run_job(job, self._model), key, target)


class HeadLostError(HemsegError):
    """The head of the Ray cluster died, or this machine's part of it."""


class HeadWatch:
    """Checks that what the cluster cannot do without still answers.

    Args:
        endpoints: host and port, or the path of a Unix socket, of each of its parts.
        seconds: for which one may be silent; `LOCAL_TIMEOUT_SECONDS` when 0.
    """

    def __init__(self, endpoints: Sequence[str], seconds: float = 0.0) -> None:
        self._endpoints, self._timeout = endpoints, seconds or LOCAL_TIMEOUT_SECONDS
        self._last_answer = self._last_check = time.monotonic()

    def check(self) -> None:
        """Try to connect, but no more often than every `CHECK_SECONDS`.

        Raises:
            HeadLostError: for too long one did not answer.
        """
        if time.monotonic() - self._last_check < CHECK_SECONDS:
            return
        if self._all_answer():
            self._last_answer = time.monotonic()
        self._last_check = time.monotonic()
        if self._last_check - self._last_answer > self._timeout:
            raise HeadLostError(
                "the head of the Ray cluster does not answer any more; what was done is kept: "
                "start the cluster anew, then run the same command again."
            )

    def wait(self) -> None:
        """Wait until all of them answer: what goes wrong before is no fault of a worker's.

        Raises:
            HeadLostError: as `check`.
        """
        while not self._all_answer():
            time.sleep(CHECK_SECONDS)
            self.check()

    def _all_answer(self) -> bool:
        return all(map(_accepts_connection, self._endpoints))


def _exit_without_shutdown() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(1)


def _accepts_connection(endpoint: str) -> bool:
    """Whether somebody listens there."""
    host, _, port = endpoint.rpartition(":")
    try:
        if endpoint.startswith("/"):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(CHECK_SECONDS)
                connection.connect(endpoint)
        else:
            socket.create_connection((host.strip("[]"), int(port)), CHECK_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def run_on_ray(
    jobs: Sequence[Job], weights: Path, device: str, key: str, target: Path, address: str, workers: int
) -> Generator[Row]:
    """Do the jobs on a Ray cluster; rows come as they are ready.

    Every node must see the input, the output and the weights under the same paths.

    Args:
        weights, device: as for `hemseg.model.load`, which each actor calls.
        key: see `hemseg.folder.rows.settings_key`.
        target: the output folder, from which the rows' paths are seen.
        address: of the cluster, ``auto``, or ``local`` for a cluster on this machine alone.
        workers: number of actors, each on one CPU core (or one GPU with device ``cuda``).

    Raises:
        HemsegError: Ray is not installed, the cluster cannot be reached, or its head died.
    """
    try:
        import ray
        from ray.exceptions import RayActorError, RayError
    except ImportError:
        raise HemsegError("a cluster needs Ray; `pip install 'hemseg[cluster]'`.") from None
    resources: dict[str, Any] = {"num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    with _cluster(address, workers) as watch:
        actor: Any = ray.remote(**resources)(Worker)
        idle_workers: deque[Any] = deque(actor.remote(str(weights), device, 1) for _ in range(workers))
        remaining, attempts = deque(jobs), Counter[Job]()
        submitted: dict[Any, tuple[Any, Job]] = {}
        while remaining or submitted:
            while remaining and idle_workers:  # one job per worker: an idle one takes the next, and nothing piles up
                job, worker = remaining.popleft(), idle_workers.popleft()
                attempts[job] += 1
                submitted[worker.do.remote(job, key, target)] = (worker, job)
            watch.check()
            try:
                ready, _ = ray.wait(list(submitted), num_returns=1, timeout=CHECK_SECONDS)
            except (RayError, ConnectionError) as error:
                raise HeadLostError(
                    f"the Ray cluster was lost ({first_line(error)}); run the same command again."
                ) from None
            if not ready:
                continue
            worker, job = submitted.pop(ready[0])
            try:
                row = ray.get(ready[0])
                idle_workers.append(worker)
                yield row
            except RayActorError:  # the worker or its machine is gone: a new one, and the job once more
                watch.wait()
                idle_workers.append(actor.remote(str(weights), device, 1))
                if attempts[job] < MAX_ATTEMPTS:
                    remaining.appendleft(job)
                else:
                    why = f"its worker died {MAX_ATTEMPTS} times while it was under way."
                    yield failed_row(job, key, target, f"{job.scan}: {why}")


@contextmanager
def _cluster(address: str, workers: int) -> Iterator[HeadWatch]:
    """A connection to a cluster for the time of a `with` block; of one of our own no process outlives it.

    Raises:
        HemsegError: it cannot be reached.
    """
    import ray

    connects, own = not ray.is_initialized(), address == "local"
    if not connects:
        yield HeadWatch([ray.get_runtime_context().gcs_address], REMOTE_TIMEOUT_SECONDS)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no calls home
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    options |= {"address": "local", "num_cpus": workers, "include_dashboard": False} if own else {"address": address}
    others = descendants()

    def end_own_processes(grace: float = 0.0) -> None:
        if own:
            end_processes(lambda: descendants() - others, grace)

    if own:
        adopt_orphans()
    with called_on_exit(end_own_processes):
        try:
            with signal_handlers_restored():  # Ray's own handlers end with other exit codes
                context = ray.init(**options)
        except Exception as error:  # of many kinds, a bare Exception where it starts too slowly
            end_own_processes()
            raise HemsegError(f"the Ray cluster {address} cannot be reached ({first_line(error)}).") from None
        info = getattr(context, "address_info", {})  # a client (ray://) has none: it notices itself
        lost = False
        try:
            endpoints = [info[name] for name in ("gcs_address", "raylet_socket_name") if info.get(name)]
            yield HeadWatch(endpoints, LOCAL_TIMEOUT_SECONDS if own else REMOTE_TIMEOUT_SECONDS)
        except HeadLostError:
            lost = True
            atexit.unregister(ray.shutdown)  # it would wait for the head,
            atexit.register(_exit_without_shutdown)  # and taking its parts down one by one ends in a crash
            raise
        finally:
            if not lost:
                ray.shutdown()
            end_own_processes(GRACE_SECONDS)
