"""The side of the node that is called: C-ECHO and C-STORE from those who may, into the queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any
from weakref import WeakSet

from hemseg.dicom.series import CT_CLASSES
from hemseg.errors import HemsegError, one_line
from hemseg.io.inflation import MAX_INSTANCE_BYTES
from hemseg.node.peers import Peer, may_call
from hemseg.node.study_queue import FullError, StudyQueue
from hemseg.resources import available_bytes, resident_bytes

logger = logging.getLogger("hemseg")
SUCCESS, OUT_OF_RESOURCES, MISMATCH, DISCARDED, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xB006, 0xC000  # PS3.4, B.2.3
MAX_ASSOCIATIONS = 8
MAX_CONNECTIONS = 64  # with those that have not said yet who they are
IDLE_SECONDS = 60  # until a peer that says nothing is hung up on
MAX_PDU_BYTES = 1 << 20  # peers are asked to send less
COPIES = 4  # of an image, while it is received and written
# of the transfer syntaxes of images those that are decoded; deflated ones are not offered: they may hide any size
TRANSFER_SYNTAXES = (
    "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2",  # explicit, implicit, big endian
    "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70",  # JPEG
    "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81",  # JPEG-LS
    "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",  # JPEG 2000, high-throughput JPEG 2000
    "1.2.840.10008.1.2.5",  # RLE
)  # fmt: skip


class Receiver:
    """Listens from `start` to `stop`, in threads of its own.

    Args:
        allowed: who may call; everybody else is rejected before anything is accepted.
        arrived: is called when an image is in the queue.
    """

    def __init__(
        self, title: str, address: tuple[str, int], allowed: Sequence[Peer], queue: StudyQueue,
        arrived: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        self.title, self.address, self.allowed, self.queue, self._arrived = (
            title,
            address,
            tuple(allowed),
            queue,
            arrived,
        )
        self._server: Any = None
        self._warned: WeakSet[Any] = WeakSet()  # associations whose warning that not all is kept was given

    @property
    def port(self) -> int:
        """Where it listens: that of the address, or what the system gave for 0."""
        return int(self._server.server_address[1]) if self._server else self.address[1]

    def start(self) -> None:
        """Listen.

        Raises:
            HemsegError: the port cannot be had.
        """
        from pynetdicom import AE, AllStoragePresentationContexts, evt
        from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
        from pynetdicom.transport import ThreadedAssociationServer

        class Server(ThreadedAssociationServer):
            """Takes no more connections than may wait to say who they are."""

            def verify_request(self, request: Any, client_address: Any) -> bool:
                return len(self.active_associations) < MAX_CONNECTIONS

        entity = AE(ae_title=self.title)
        entity.require_called_aet = True
        entity.maximum_associations = MAX_ASSOCIATIONS
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = IDLE_SECONDS
        entity.add_supported_context(Verification)
        for (
            context
        ) in AllStoragePresentationContexts:  # what is not CT is passed over, or whole studies would be refused
            entity.add_supported_context(str(context.abstract_syntax), list(TRANSFER_SYNTAXES))
        handlers: list[Any] = [
            (evt.EVT_CONN_OPEN, _limit),
            (evt.EVT_REQUESTED, self._check),
            (evt.EVT_C_STORE, self._store),
        ]
        try:
            self._server = entity.make_server(self.address, evt_handlers=handlers, server_class=Server)
        except OSError as error:
            host, port = self.address
            raise HemsegError(f"port {port} of {host or 'this host'} cannot be used ({error.strerror}).") from None
        self._server.daemon_threads = True
        entity._servers.append(self._server)  # as `AE.start_server` does
        threading.Thread(target=self._server.serve_forever, daemon=True, name="dicom-listener").start()

    def stop(self) -> None:
        """Listen no longer; who is sending is hung up on."""
        if self._server:
            self._server.shutdown()
            for association in self._server.active_associations:
                association.abort()
            self._server = None

    def _check(self, event: Any) -> None:
        """Reject an association of somebody who may not call."""
        requestor = event.assoc.requestor
        title, host = str(requestor.primitive.calling_ae_title), str(requestor.address)
        if may_call(title, host, self.allowed):
            return
        logger.warning("%s", one_line(f"refused: {title[:16]!r} at {host}; --allow says who may send"))
        event.assoc.acse.send_reject(1, 1, 3)  # permanent, by the service's user, calling AE title not recognized
        event.assoc.kill()

    def _store(self, event: Any) -> int:
        """Take an image; returns a status of DICOM."""
        try:
            return self._store_ct(event)
        except FullError as error:
            logger.error("refused an image: %s", error)
            return OUT_OF_RESOURCES
        except OSError as error:
            logger.error("refused an image: it cannot be written (%s)", error.strerror)
            return OUT_OF_RESOURCES
        except Exception as error:  # pydicom's own are many, and they quote what the header says
            logger.warning("refused an image: it cannot be read as DICOM (%s)", type(error).__name__)
            return NOT_UNDERSTOOD

    def _store_ct(self, event: Any) -> int:
        from pydicom import dcmread

        kind, instance = str(event.request.AffectedSOPClassUID), str(event.request.AffectedSOPInstanceUID)
        if kind not in CT_CLASSES:
            if event.assoc not in self._warned:
                self._warned.add(event.assoc)
                logger.info("%s", one_line(f"what is not CT is passed over, from {event.assoc.requestor.address}"))
            return DISCARDED
        content = event.encoded_dataset()
        names = ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]
        header = dcmread(BytesIO(content), stop_before_pixels=True, specific_tags=list(names))
        values = [str(header.get(name) or "") for name in names]
        if values[:2] != [kind, instance] or not values[2]:
            logger.warning("refused an image: its header is not what the request says, or names no study")
            return MISMATCH
        self.queue.add(values[2], instance, content)
        self._arrived()
        return SUCCESS


class _LimitedReceive:
    """The ``recv`` of a connection, which hangs up on who sends more in one message than any CT has, or than fits into
    the memory.
    """

    def __init__(self, receive: Callable[[int], bytearray]) -> None:
        self._receive, self._received, self._most = receive, 0, 0

    def __call__(self, nr_bytes: int) -> bytearray:
        if self._received == 0:
            available = available_bytes()
            free = MAX_INSTANCE_BYTES if available is None else (available - resident_bytes()) // COPIES
            self._most = min(MAX_INSTANCE_BYTES, free)
        self._received += nr_bytes
        if nr_bytes > MAX_PDU_BYTES or self._received > self._most:
            logger.warning("hung up: a message of more than %d bytes", min(self._most, self._received))
            raise OSError("more than a message may have")
        return self._receive(nr_bytes)

    def reset(self, _: Any) -> None:
        """A message is complete; the next one has the whole limit."""
        self._received = 0


def _limit(event: Any) -> None:
    """A new connection: what is received of it has limits, in time and in bytes."""
    from pynetdicom import evt

    connection = event.assoc.dul.socket
    connection.socket.settimeout(IDLE_SECONDS)
    limited = connection.recv = _LimitedReceive(connection.recv)
    event.assoc.bind(evt.EVT_DIMSE_RECV, limited.reset)
