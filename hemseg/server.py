"""The platform's HTTP way of calling a container: ``GET /health``, ``POST /invoke`` on port 4743.

``/invoke`` ignores its body: it reads ``/input``, writes ``/output`` as mode ``gc`` does, and answers 201, or a
sentence with 422 (the input is at fault), 500 (we are) or 503 (too many are waiting). The model is loaded once, one
case runs at a time.
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hemseg.cohort import Job, attempt, walk
from hemseg.errors import HemsegError
from hemseg.grand_challenge import Sockets, choose, read_inputs

if TYPE_CHECKING:
    from starlette.requests import Request

    from hemseg.model import Model

logger = logging.getLogger("hemseg")
WAITING = 16  # requests that may wait for their turn; the platform sends one at a time
FINISH_SECONDS = 60  # that a running case has after SIGTERM


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
    if not path.resolve().is_relative_to(source.resolve()):
        raise HemsegError(f"{scan}: is a link that leaves the input folder.")
    report = target / sockets.report_path if sockets.report_path else None
    folder = target / ("images" if work.mode == "gc-generic" else sockets.mask_path)
    outcome = attempt(Job(Path(scan), path, folder / "output.mha", report=report), model)
    if outcome.result is None:
        raise (UnexpectedError if outcome.unexpected else HemsegError)(outcome.error)
    return f"{scan}: {outcome.result.volume_ml:.1f} mL"


def application(model: Model, source: Path, target: Path, sockets: Sockets) -> Starlette:
    """The ASGI application."""
    turn = anyio.CapacityLimiter(1)

    async def health(_: Request) -> Response:
        return Response(status_code=200)

    async def call(_: Request) -> Response:
        if turn.statistics().tasks_waiting >= WAITING:
            return _answer(503, "too many requests are waiting; one case is segmented at a time.")
        try:
            said = await anyio.to_thread.run_sync(invoke, model, source, target, sockets, limiter=turn)
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
        log_level="warning",
        timeout_graceful_shutdown=FINISH_SECONDS,
    )
