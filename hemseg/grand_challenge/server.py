"""The platform's HTTP way of calling a container: ``GET /health``, ``POST /invoke`` on port 4743.

``/invoke`` reads ``/input`` and writes ``/output`` as a run of the container does, whatever its body says, and answers
201, or a sentence with 422 (the input is at fault), 500 (we are, or the disk), 503 (too many are waiting, or it takes
too long), 400, 408 or 413 (the request is). The reason of a case that failed is the last line of stderr, too. The model
is loaded once, one case runs at a time. Connections that say nothing are closed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from hemseg.errors import HemsegError, OutputError, one_line
from hemseg.folder.jobs import run_job
from hemseg.folder.outputs import refuse_conflicts
from hemseg.grand_challenge.outputs import (
    check_mounts,
    check_outputs,
    is_results,
    plan_jobs,
    print_messages,
    results_entry,
    survey,
)
from hemseg.grand_challenge.sockets import RESULTS, Sockets, load_sockets, plan_run, read_inputs
from hemseg.io import files
from hemseg.io.files import write_json
from hemseg.io.marks import read_mark
from hemseg.manifest import default_weights
from hemseg.model import load
from hemseg.resources import is_out_of_memory
from hemseg.segmentation import slice_numbers

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from hemseg.folder.plan import Job
    from hemseg.model import Model

logger = logging.getLogger("hemseg")
MAX_WAITING_REQUESTS = 16  # requests that may wait for their turn; the platform sends one at a time
FINISH_SECONDS = 3  # that a running case has after SIGTERM; the platform kills after 5
MAX_ANSWER_SECONDS = 1800  # from a request to its answer
IDLE_SECONDS = 20  # until a connection without a whole request is closed, at least; twice as long at most
MAX_CONNECTIONS = 512  # at once; the rest get 503
MAX_BODY_BYTES = 1 << 20
FileState = tuple[int, int, int, int]  # device, inode, bytes, time of the content (ns)


class UnexpectedError(Exception):
    """The fault is ours, not the input's."""


class CaseRunner:
    """The one case that is mounted, again and again.

    Attributes:
        source, target: ``/input`` and ``/output``.
        pending: calls that wait for their turn, or have it.
    """

    def __init__(self, model: Model, source: Path, target: Path, sockets: Sockets) -> None:
        self.model, self.source, self.target, self._sockets = model, source, target, sockets
        self.pending: set[Future[str]] = set()
        self._executor = ThreadPoolExecutor(1)
        self._written: dict[Path, FileState] = {}  # by the case before, and as it was then

    def submit(self) -> Future[str]:
        """Put a call of `invoke` into the queue."""
        case = self._executor.submit(self.invoke)
        self.pending.add(case)
        case.add_done_callback(self.pending.discard)
        return case

    def close(self) -> bool:
        """Begin nothing more; returns whether a case still runs."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        return bool(self.pending)

    def invoke(self) -> str:
        """Segment the case; returns a sentence about it. What an earlier one has written is removed first.

        Raises:
            HemsegError: there is not one case, it leaves the input folder, or it cannot be segmented.
            OutputError: the disk is at fault, or files that hemseg did not write are in the way.
            UnexpectedError: we are.
        """
        check_mounts(self.source, (self.target,))
        paths, dicom = survey(self.source)
        own = {*self._written, *self._sockets.outputs(self.target)}
        check_outputs(own, self.source, paths, (self.target,))
        self._remove_own(own)
        if leaving := next((p for p in paths if not self._is_inside(self.source / p)), None):
            raise HemsegError(f"{leaving}: is a link that leaves the input folder.")
        inputs = read_inputs(self.source)
        run_plan = plan_run(paths, inputs, False, self._sockets, "auto" if inputs is not None else "gc", dicom)
        (job,) = plan_jobs(run_plan, self.source, self.target, Path(), self._sockets)
        results = self.target / RESULTS if run_plan.mode == "gc-generic" else None
        outputs = {*job.outputs, *([results] if results else [])}
        check_outputs(outputs, self.source, paths, (self.target,))
        self._remove_own(outputs, results)
        _refuse_foreign_outputs(job, results)
        try:
            outcome = run_job(job, self.model)
            if results:
                write_json([results_entry(job, outcome.error)], results)
        finally:
            self._written = {path: state for path in outputs if (state := _file_state(path))}
        if outcome.result is None:
            raise (UnexpectedError if outcome.unexpected else HemsegError)(outcome.error)
        print_messages(outcome)
        doubtful = outcome.result.doubtful_slices
        return f"{job.case}: {outcome.result.volume_ml:.1f} mL" + (
            f", doubtful: {slice_numbers(doubtful)}" if doubtful else ""
        )

    def _is_inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.source.resolve())

    def _remove_own(self, outputs: Iterable[Path], results: Path | None = None) -> None:
        """Remove those of these files that hemseg wrote; others stay.

        Args:
            results: which of them is a list of results: it has no mark, and is known by its form.
        """
        for path in outputs:
            if not (self._is_ours(path) or (path == results and is_results(path))):
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{path}: of an earlier case, cannot be removed ({error.strerror}).") from None

    def _is_ours(self, path: Path) -> bool:
        """Whether this server wrote a file, and nobody since, or hemseg's mark is in it."""
        state = _file_state(path)
        return state is not None and (state == self._written.get(path) or read_mark(path) is not None)


def _file_state(path: Path) -> FileState | None:
    """Of a file itself, were it a link; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _refuse_foreign_outputs(job: Job, results: Path | None) -> None:
    """Raise OutputError where files are in the way of a job's: in the words that a batch has for them."""
    try:
        refuse_conflicts([job], tables=[results] if results else [], may_overwrite=False)
    except HemsegError as error:
        raise OutputError(str(error)) from None


def load_runner(source: Path, target: Path, weights: Path | None, device: str, operating_point: str = "") -> CaseRunner:
    """Load the model; all that may fail before the server can answer.

    Raises:
        HemsegError: the weights, the sockets or the mounts are not as they should be.
    """
    check_mounts(source, (target,))
    weights = weights or default_weights()
    sockets = load_sockets(os.environ, weights)
    return CaseRunner(load(weights, device).at(operating_point), source, target, sockets)


def application(runner: CaseRunner) -> Starlette:
    """The ASGI application."""

    async def health(_: Request) -> Response:
        return Response(status_code=200)

    async def invoke(request: Request) -> Response:
        try:
            if await asyncio.wait_for(_is_too_large(request), 2 * IDLE_SECONDS):
                return _json_response(413, "the body is too large; send none, it is not used.", close=True)
        except (TimeoutError, ClientDisconnect):
            return _json_response(408, "the body did not come; send none, it is not used.", close=True)
        if len(runner.pending) > MAX_WAITING_REQUESTS:
            return _json_response(503, "too many requests are waiting; one case is segmented at a time.")
        case = runner.submit()
        try:
            message = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(case)), MAX_ANSWER_SECONDS)
        except TimeoutError:
            case.cancel()  # unless it has begun: then it goes on, and has its place in the queue
            return _failure_response(503, f"there is no answer after {MAX_ANSWER_SECONDS} seconds; ask again later.")
        except asyncio.CancelledError:  # the server stops; what became of the case is logged at its end
            return _json_response(503, "the server stops.", close=True)
        except (OutputError, UnexpectedError) as error:
            return _failure_response(500, str(error))
        except (HemsegError, OSError) as error:
            return _failure_response(422, str(error))
        except Exception as error:  # say so, and live on
            if is_out_of_memory(error):
                return _failure_response(500, "there is not enough memory; give the container more.")
            logger.exception("/invoke failed unexpectedly")
            return _failure_response(500, f"failed unexpectedly ({type(error).__name__}: {error}); please report it.")
        logger.info("%s", message)
        return _json_response(201, message)

    routes = [Route("/health", health, methods=["GET"]), Route("/invoke", invoke, methods=["POST"])]
    return Starlette(routes=routes, middleware=[Middleware(RejectAmbiguousLength)])


async def _is_too_large(request: Request) -> bool:
    """Read a body to its end, or until it is too large; nothing of it is kept."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        return True
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return True
    return False


class RejectAmbiguousLength:
    """Rejects requests that give their length in two ways: a proxy may believe the other one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        names = [name for name, _ in scope.get("headers", ())]
        if b"transfer-encoding" in names and b"content-length" in names:
            app: ASGIApp = _json_response(400, "give Content-Length or Transfer-Encoding, not both.", close=True)
        else:
            app = self._app
        await app(scope, receive, send)


class IdleTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a timeout: alone it would wait for ever for a request's headers."""

    _last_cycle: Any = ...  # the request at the last check
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # noqa: D102
        super().connection_made(transport)
        self._close_if_idle()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._timer:
            self._timer.cancel()
        super().connection_lost(exc)

    def _close_if_idle(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._last_cycle is self.cycle:
            self.transport.abort()
            return
        self._last_cycle = self.cycle
        self._timer = self.loop.call_later(IDLE_SECONDS, self._close_if_idle)


def _json_response(status: int, message: str, close: bool = False) -> Response:
    return JSONResponse({"detail": one_line(message)}, status, headers={"connection": "close"} if close else None)


def _failure_response(status: int, reason: str) -> Response:
    """The answer for a case that failed; its reason is on stderr before the answer is sent."""
    print(f"error: {one_line(reason)}", file=sys.stderr, flush=True)
    return _json_response(status, reason)


def serve(runner: CaseRunner, listener: socket.socket) -> int:
    """Answer until SIGTERM or SIGINT; a case that runs then has `FINISH_SECONDS` to end.

    Args:
        listener: a socket that listens; who has connected already is answered, too.

    Returns:
        The exit code. A case that did not end in time ends with the process: then this does not return.
    """
    model = runner.model
    logger.info("weights %s %s on %s", model.manifest.name, model.manifest.version, model.provider)
    logger.info("mode serve, port %d", listener.getsockname()[1])
    server = uvicorn.Server(
        uvicorn.Config(
            application(runner),
            access_log=False,
            http=IdleTimeoutProtocol,
            ws="none",
            limit_concurrency=MAX_CONNECTIONS,
            log_config=None,  # its messages go where ours go: stderr is for the reasons of cases
            log_level="warning",
            timeout_graceful_shutdown=FINISH_SECONDS,
        )
    )
    try:
        server.run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit):  # it raises the signal again when it is done
        if not server.started:
            raise
    if runner.close():
        files.remove_partial_files()
        print(f"error: stopped; the case had not ended after {FINISH_SECONDS} seconds.", file=sys.stderr, flush=True)
        os._exit(143)
    return 0
