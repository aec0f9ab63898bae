"""The node at work: one study at a time, from the queue to its results."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hemseg.errors import HemsegError, one_line
from hemseg.folder.jobs import Outcome, run_job
from hemseg.folder.plan import Job
from hemseg.io.files import exclusive_access
from hemseg.node.peers import Peer
from hemseg.node.receiver import Receiver
from hemseg.node.sender import Sender
from hemseg.node.study_queue import FAILED, RESULTS, SENDING, WAITING, Case, StudyQueue

if TYPE_CHECKING:
    from hemseg.model import Model

logger = logging.getLogger("hemseg")
POLL_SECONDS = 1.0  # between two checks for studies that are quiet


@dataclass(frozen=True)
class Settings:
    """What a node is.

    Attributes:
        title: its AE title.
        address: where it listens, host ('' for all) and port.
        destination: where results go.
        allowed: who may send to it.
        queue: the folder that holds what is under way.
        quiet_seconds: without a new image, after which a study is whole.
        strict: see `hemseg.folder.jobs.Job`.
    """

    title: str
    address: tuple[str, int]
    destination: Peer
    allowed: tuple[Peer, ...]
    queue: Path
    quiet_seconds: float = 30.0
    strict: bool = False


def require_pynetdicom() -> None:
    """Raise HemsegError if what the node needs is not installed."""
    try:
        import highdicom  # noqa: F401
        import pynetdicom  # noqa: F401
    except ImportError:
        raise HemsegError("the node needs pynetdicom and highdicom; `pip install 'hemseg[node]'`.") from None


class Node:
    """A node that listens, segments and sends. `run` works until it is stopped; `step` does what is due now."""

    def __init__(self, settings: Settings, model: Model) -> None:
        require_pynetdicom()
        self.settings, self.model = settings, model
        self._wake = threading.Event()
        self.queue = StudyQueue(settings.queue, settings.quiet_seconds)
        self.receiver = Receiver(settings.title, settings.address, settings.allowed, self.queue)
        self.sender = Sender(self.queue, settings.title, settings.destination)

    def run(self) -> None:
        """Listen, and do one study after the other, until `stop` or a signal."""
        with ExitStack() as stack:
            self.receiver.start()
            stack.callback(self.receiver.stop)
            self.sender.start()
            stack.callback(self.sender.stop)
            found = {state: len(self.queue.cases(state)) for state in (WAITING, SENDING, FAILED)}
            logger.info("%s listens on port %d, returns to %s", self.settings.title, self.receiver.port,
                        self.settings.destination)  # fmt: skip
            logger.info("in the queue: %s", ", ".join(f"{count} {state}" for state, count in found.items()))
            while not self._wake.is_set():
                if not self.step():
                    self._wake.wait(POLL_SECONDS)

    def stop(self) -> None:
        """End after the study that is being segmented."""
        self._wake.set()

    def step(self) -> bool:
        """Look which studies are quiet, and segment one that waits; returns whether there was one."""
        for case in self.queue.queue_quiet_studies():
            logger.info("%s: complete, %d files", case, case.count)
        started = self.queue.start_next()
        if started is None:
            return False
        case, files = started
        outcome = run_job(self._job(case, files), self.model)
        self._record_outcome(case, files, outcome)
        self.sender.wake()
        return True

    def _job(self, case: Case, files: Sequence[Path]) -> Job:
        folder = self.queue.path(case)
        return Job(
            case=Path(str(case)),
            scan=folder,
            mask=folder / RESULTS / "1-segmentation.dcm",
            format="dicom",
            companion=folder / RESULTS / "2-report.dcm",
            files=tuple(files),
            strict=self.settings.strict,
        )

    def _record_outcome(self, case: Case, files: Sequence[Path], outcome: Outcome) -> None:
        """Give a study its next state, and say which. No value of a header is in the log, nor a library's words."""
        if outcome.result is not None:
            if self.queue.finish(case, files):
                result = outcome.result
                logger.info("%s: %s, %.1f s", case, result.headline, result.seconds)
            else:
                logger.info("%s: more images came while it was segmented; it waits for the rest", case)
            return
        if outcome.unexpected:
            again = self.queue.put_back(case, files, outcome.error)
            end = "it is tried again" if again else f"kept, with the reason, in {FAILED}/{case.name}"
            logger.error("%s: failed unexpectedly; %s", case, end)
        elif self.queue.fail(case, outcome.error, files):
            logger.warning("%s", one_line(f"{case}: nothing is sent back: {outcome.error}"))


def run_node(settings: Settings, weights: Path, device: str) -> None:
    """Run a node until a signal ends it.

    Raises:
        HemsegError: an extra is missing, the queue or the port cannot be used, or the weights are not what they should
            be.
    """
    require_pynetdicom()
    from hemseg.model import load

    log_to_stderr()
    with suppress(OSError):  # which is said below
        settings.queue.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive_access(settings.queue):
        Node(settings, load(weights, device)).run()


def log_to_stderr() -> None:
    """What the node says goes to stderr, with the time; libraries, which would quote what peers send, say nothing."""
    warnings.simplefilter("ignore")
    quiet = logging.getLogger("pynetdicom")
    quiet.setLevel(logging.CRITICAL + 1)
    quiet.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
