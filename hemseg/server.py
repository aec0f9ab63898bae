"""The platform's HTTP way of calling a container: ``GET /health``, ``POST /invoke`` on port 4743.

``/invoke`` ignores its body: it reads ``/input``, writes ``/output`` as mode ``gc`` does, and answers 201, or a
sentence with 413 (a body, and a large one), 422 (the input is at fault), 500 (we are) or 503 (too many are waiting, or
it takes too long). The model is loaded once, one case runs at a time. Connections that say nothing are closed.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from hemseg.cohort import Job, attempt, walk
from hemseg.errors import HemsegError
from hemseg.grand_challenge import Sockets, choose, read_inputs

if TYPE_CHECKING:
    from starlette.requests import Request

    from hemseg.model import Model

logger = logging.getLogger("hemseg")
WAITING = 16  # requests that may wait for their turn; the platform sends one at a time
FINISH_SECONDS = 60  # that a running case has after SIGTERM
LONGEST_SECONDS = 1800  # from a request to its answer
SILENT_SECONDS = 20  # until a connection without a whole request is closed, at least; twice as long at most
CONNECTIONS = 512  # at once; the rest get 503
BODY_BYTES = 1 << 20


class UnexpectedError(Exception):
    """Not the input is at fault, but we are."""


def invoke(model: Model, source: Path, target: Path, sockets: Sockets) -> str:
    """Segment the one case that is mounted; returns a sentence about it.

    Raises:
        HemsegError: there is not one case, it leaves the input folder, or it cannot be segmented.
    """
    files = [PurePosixPath(p.relative_to(source)) for p in walk(source)]
    inputs = read_inputs(source)
    work = choose(files, inputs, sockets=sockets, mode="auto" if inputs is not None else "gc")
    (scan,) = work.scans
    path = source / scan
    if leaving := next((f for f in files if not (source / f).resolve().is_relative_to(source.resolve())), None):
        raise HemsegError(f"{leaving}: is a link that leaves the input folder.")
    report = target / sockets.report_path if sockets.report_path else None
    folder = target / ("images" if work.mode == "gc-generic" else sockets.mask_path)
    outcome = attempt(Job(Path(scan), path, folder / "output.mha", report=report), model)
    if outcome.result is None:
        raise (UnexpectedError if outcome.unexpected else HemsegError)(outcome.error)
    return f"{scan}: {outcome.result.volume_ml:.1f} mL"


def application(model: Model, source: Path, target: Path, sockets: Sockets) -> Starlette:
    """The ASGI application."""
    turn = ThreadPoolExecutor(1)
    under_way: set[Future[str]] = set()

    async def health(_: Request) -> Response:
        return Response(status_code=200)

    async def call(request: Request) -> Response:
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > BODY_BYTES:
            return _answer(413, "the body is not read; send none.")
        if len(under_way) > WAITING:
            return _answer(503, "too many requests are waiting; one case is segmented at a time.")
        case = turn.submit(invoke, model, source, target, sockets)
        under_way.add(case)
        case.add_done_callback(under_way.discard)
        try:
            said = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(case)), LONGEST_SECONDS)
        except TimeoutError:
            case.cancel()  # unless it has begun: then it goes on, and has its place in the queue
            return _answer(503, f"there is no answer after {LONGEST_SECONDS} seconds; ask again later.")
        except (HemsegError, OSError) as error:
            logger.error("error: %s", error)
            return _answer(422, str(error))
        except UnexpectedError as error:
            logger.error("error: %s", error)
            return _answer(500, str(error))
        except Exception as error:  # say so, and live on
            logger.exception("error: /invoke failed unexpectedly")
            return _answer(500, f"failed unexpectedly ({type(error).__name__}); please report it.")
        logger.info("%s", said)
        return _answer(201, said)

    return Starlette(routes=[Route("/health", health, methods=["GET"]), Route("/invoke", call, methods=["POST"])])


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which would wait for ever for a request's headers."""

    _seen: Any = ...  # what was under way at the last look
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # noqa: D102
        super().connection_made(transport)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._seen is self.cycle:
            self.transport.abort()
            return
        self._seen = self.cycle
        self._timer = self.loop.call_later(SILENT_SECONDS, self._look)


def _answer(status: int, said: str) -> Response:
    return JSONResponse({"detail": said}, status)


def serve(model: Model, source: Path, target: Path, sockets: Sockets, port: int) -> None:
    """Answer until SIGTERM or SIGINT; a case that runs then is finished first."""
    logger.info("weights %s %s on %s", model.manifest.name, model.manifest.version, model.provider)
    logger.info("mode serve, port %d", port)
    uvicorn.run(
        application(model, source, target, sockets),
        host="0.0.0.0",  # noqa: S104  the platform calls from outside the container
        port=port,
        access_log=False,
        http=ImpatientProtocol,
        ws="none",
        limit_concurrency=CONNECTIONS,
        log_level="warning",
        timeout_graceful_shutdown=FINISH_SECONDS,
    )
