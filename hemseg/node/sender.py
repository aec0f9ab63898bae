"""The side of the node that calls: results go to their destination by C-STORE, again and again until they are taken."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hemseg.errors import one_line
from hemseg.node.peers import Peer
from hemseg.node.study_queue import SENDING, StudyQueue

logger = logging.getLogger("hemseg")
FIRST_PAUSE, MAX_PAUSE = 10.0, 3600.0  # seconds; each failure doubles the pause
IDLE_SECONDS = 60
CONNECT_SECONDS = 30
_WARNINGS = range(0xB000, 0xC000)  # statuses of objects that were stored all the same


class UnreachableError(Exception):
    """There is no association: nothing can be sent at all."""


class NotStoredError(Exception):
    """The destination did not store an object."""


def send(files: Sequence[Path], title: str, destination: Peer) -> None:
    """Send DICOM files, in order, over one association.

    Args:
        title: our AE title.

    Raises:
        UnreachableError, NotStoredError: with the reason.
    """
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom import AE

    entity = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = IDLE_SECONDS
    entity.connection_timeout = CONNECT_SECONDS
    objects = [dcmread(path) for path in files]
    for kind in dict.fromkeys(str(one.SOPClassUID) for one in objects):
        entity.add_requested_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    association = entity.associate(destination.host, destination.port, ae_title=destination.title)
    if not association.is_established:
        raise UnreachableError("rejects us" if association.is_rejected else "cannot be reached")
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        for one in objects:
            if one.SOPClassUID not in accepted:
                raise NotStoredError(f"does not take {one.Modality} objects")
            status = association.send_c_store(one).get("Status")
            if status is None:
                raise UnreachableError("hung up, or did not answer")
            if status != 0 and status not in _WARNINGS:
                raise NotStoredError(f"answers 0x{status:04X} to {one.Modality}")
    finally:
        association.release()


class Sender(threading.Thread):
    """Sends what the queue has to send, until `stop`.

    What the destination does not take is kept and tried again after pauses that grow: of all cases where it cannot be
    reached, else of the one alone.
    """

    def __init__(
        self, queue: StudyQueue, title: str, destination: Peer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(daemon=True, name="dicom-sender")
        self.queue, self.title, self.destination, self._clock = queue, title, destination, clock
        self._wake, self._stopping = threading.Event(), False
        self._failures: dict[int, int] = {}  # in a row, by the case's number; 0 stands for the destination
        self._next_attempt: dict[int, float] = {}

    def wake(self) -> None:
        """There is something new to send."""
        self._wake.set()

    def stop(self) -> None:
        """End after what is being sent."""
        self._stopping = True
        self._wake.set()

    def run(self) -> None:
        """Send, wait, send."""
        while not self._stopping:
            self._wake.wait(timeout=1.0)
            self._wake.clear()
            self.send_due()

    def send_due(self) -> int:
        """Send the cases whose pause is over; returns how many were taken."""
        taken = 0
        for case in self.queue.cases(SENDING):
            if self._stopping or self._clock() < self._next_attempt.get(0, 0.0):
                break
            if self._clock() < self._next_attempt.get(case.number, 0.0):
                continue
            try:
                send(self.queue.results(case), self.title, self.destination)
            except UnreachableError as error:
                self._pause(0, f"{case}: not sent, {self.destination} {error}")
                break
            except Exception as error:  # also what cannot be read back: kept, and reason
                reason = str(error) if isinstance(error, NotStoredError) else f"failed ({type(error).__name__})"
                self._pause(case.number, f"{case}: not sent, {self.destination} {reason}")
                continue
            for number in (0, case.number):
                self._failures.pop(number, None)
                self._next_attempt.pop(number, None)
            logger.info("%s: sent to %s", case, self.destination)
            self.queue.remove(case)
            taken += 1
        return taken

    def _pause(self, number: int, reason: str) -> None:
        failures = self._failures[number] = self._failures.get(number, 0) + 1
        pause = min(MAX_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 30))
        self._next_attempt[number] = self._clock() + pause
        logger.warning("%s", one_line(f"{reason}; again in {pause:.0f} seconds"))
