"""Entry point of the container, for every way in which Grand Challenge and its users call one.

    docker run --rm -v /path/in:/input -v /path/out:/output hemseg
    python process.py --input IN --output OUT

What is mounted decides the mode (gc, gc-generic, instance, legacy; see docs/grand-challenge.md), --mode or HEMSEG_MODE
overrides it; --mode serve answers the platform's HTTP calls. Exit code 1 if a case failed, 143 after SIGTERM. The last
line of stderr is the reason then: it is all that the platform shows.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from hemseg.errors import HemsegError, one_line
from hemseg.names import given_path
from hemseg.resources import check_start, is_out_of_memory
from hemseg.signals import install_signal_handlers
from hemseg.startup import start_lean
from hemseg.streams import flush_standard_output, open_standard_streams

logger = logging.getLogger("hemseg")
WAITING_CONNECTIONS = 128  # while the model is loaded
STOP_MESSAGES = {
    signal.SIGTERM: "stopped by SIGTERM before all was done.",
    signal.SIGINT: "stopped by Ctrl-C before all was done.",
}


def main() -> int:
    """Run the container; returns the exit code."""
    start_lean()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=_path, default=Path("/input"), help="folder of scans (default: /input)")
    parser.add_argument("--output", type=_path, default=Path("/output"), help="folder for the masks (default: /output)")
    parser.add_argument("--predict", type=_path, default=Path("/predict"), help="folder for INSTANCE's masks")
    modes = "auto, serve, gc, gc-generic, instance or legacy"
    parser.add_argument("--mode", default=os.environ.get("HEMSEG_MODE") or "auto", help=modes)
    parser.add_argument("--weights", type=_path, help="folder with manifest.json")
    point = os.environ.get("HEMSEG_OPERATING_POINT") or ""
    parser.add_argument("--operating-point", default=point, help="of the weights: balanced (the default) or sensitive")
    parser.add_argument("--port", type=int, default=4743, help="of mode serve (default: 4743)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that hemseg did not write")
    parser.add_argument("--device", default=os.environ.get("HEMSEG_DEVICE") or "auto", help="auto, cpu or cuda")
    arguments = parser.parse_args()
    _set_up_output()
    install_signal_handlers(STOP_MESSAGES)
    try:
        if arguments.mode == "serve":
            return _serve(arguments)
        check_start()
        from hemseg.grand_challenge.batch import (
            run_container,  # with numpy and all else: not before it is known that they fit
        )

        folders = (arguments.input, arguments.output, arguments.predict)
        errors = run_container(
            *folders,
            arguments.mode,
            arguments.weights,
            arguments.device,
            arguments.overwrite,
            arguments.operating_point,
        )
        if len(errors) > 1:
            _print_error(errors[0])
        return 1 if errors else 0
    except SystemExit as end:
        if end.code == 128 + signal.SIGTERM:
            _print_error(STOP_MESSAGES[signal.SIGTERM])
        raise
    except KeyboardInterrupt:
        _print_error(STOP_MESSAGES[signal.SIGINT])
        return 128 + signal.SIGINT
    except (HemsegError, OSError) as error:
        _print_error(str(error))
    except Exception as error:  # a fault of ours, or of the set-up
        _print_error(_unexpected_error_message(error))
    return 1


def _serve(arguments: argparse.Namespace) -> int:
    """Open the port, then load the model: who asks in the meantime waits, and is not refused."""
    if arguments.overwrite:
        raise HemsegError("--overwrite: mode serve never replaces files that hemseg did not write; leave it out.")
    listener = _listen(arguments.port)
    try:
        check_start()
        try:
            from hemseg.grand_challenge.server import load_runner, serve
        except ModuleNotFoundError as error:
            raise HemsegError(f"mode serve needs {error.name}; `pip install 'hemseg[serve]'`.") from None

        runner = load_runner(
            arguments.input, arguments.output, arguments.weights, arguments.device, arguments.operating_point
        )
    except BaseException as error:
        is_user_error = isinstance(error, (HemsegError, OSError))
        _answer_unavailable(listener, str(error) if is_user_error else "the server could not start; its log says why.")
        raise
    return serve(runner, listener)


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("0.0.0.0", port), backlog=WAITING_CONNECTIONS)  # noqa: S104  called from outside
    except (OSError, OverflowError) as error:
        raise HemsegError(f"port {port}: cannot be opened ({error}); give another one with --port.") from None


def _answer_unavailable(listener: socket.socket, reason: str) -> None:
    """Answer those who wait for a server that will not be."""
    body = json.dumps({"detail": one_line(reason)}).encode()
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    listener.settimeout(0)
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.settimeout(1)
                connection.recv(1 << 16)
                connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + body)


def _unexpected_error_message(error: Exception) -> str:
    if is_out_of_memory(error):
        return "there is not enough memory; give the container more."
    with suppress(OSError, ValueError):  # stdout may be gone
        traceback.print_exc(file=sys.stdout)
    return f"failed unexpectedly ({type(error).__name__}: {error}); please report it."


def _path(text: str) -> Path:
    try:
        return given_path(text)
    except ValueError as error:  # argparse would leave out its words
        raise argparse.ArgumentTypeError(str(error)) from None


def _set_up_output() -> None:
    """What goes on goes to stdout, what went wrong to stderr; neither fails over a file name that is not Unicode."""
    open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)


def _print_error(reason: str) -> None:
    print(f"error: {one_line(reason)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        code = main()
        sys.exit(code or (0 if flush_standard_output() else 1))
    except KeyboardInterrupt:  # Ctrl-C
        sys.exit(128 + signal.SIGINT)
