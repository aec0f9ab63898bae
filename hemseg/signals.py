"""SIGTERM and Ctrl-C. The first lets what is under way end; a second one ends the process at once, and so does the
first where nothing but a single scan is under way. Nothing half-written is left by either.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from threading import current_thread, main_thread
from types import FrameType
from typing import NoReturn

from hemseg.io.files import remove_partial_files

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORKER_EXIT_SECONDS = 1.0  # that workers have to end
_pending_signal = 0  # the signal that has arrived
_exits_on_first_signal = False
_exit_messages: Mapping[int, str] = {}
_exit_callbacks: list[Callable[[], object]] = []


def install_signal_handlers(exit_messages: Mapping[int, str] = _exit_messages) -> None:
    """Handle SIGTERM and Ctrl-C as this module says, from now on.

    Args:
        exit_messages: what an immediate exit prints on stderr, by the signal.
    """
    global _exit_messages
    _exit_messages = exit_messages
    for number in STOP_SIGNALS:
        signal.signal(number, _handle_stop_signal)


@contextmanager
def exit_on_first_signal() -> Iterator[None]:
    """For the time of a `with` block the first signal ends the process: there is no other scan to finish.

    Only in the main thread: what runs in another one is not what the process waits for.
    """
    global _exits_on_first_signal
    _exits_on_first_signal = current_thread() is main_thread()
    try:
        yield
    finally:
        _exits_on_first_signal = False


@contextmanager
def called_on_exit(callback: Callable[[], object]) -> Iterator[None]:
    """For the time of a `with` block `exit_now` calls this, too: it ends processes that libraries began for us."""
    _exit_callbacks.append(callback)
    try:
        yield
    finally:
        _exit_callbacks.remove(callback)


@contextmanager
def signal_handlers_restored() -> Iterator[None]:
    """Restore the signal handlers after a `with` block in which a library sets its own."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        if current_thread() is main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _handle_stop_signal(number: int, _: FrameType | None) -> None:
    global _pending_signal
    if _pending_signal or _exits_on_first_signal:
        exit_now(128 + number, _exit_messages.get(number, ""))
    _pending_signal = number
    _raise_stop(number)


def _raise_stop(number: int) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)  # every `finally` runs


def raise_pending_signal() -> None:
    """Raise again in the main thread what a signal raised there, if that was lost: Python drops exceptions that leave a
    finaliser or a callback, and a handler may run in one.
    """
    if _pending_signal and current_thread() is main_thread():
        _raise_stop(_pending_signal)


def exit_now(code: int, message: str = "") -> None:
    """End this process and its workers without waiting for threads, and without a partial file."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    workers = active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(WORKER_EXIT_SECONDS / len(workers))
        worker.kill()
    for callback in _exit_callbacks:
        with suppress(Exception):
            callback()
    remove_partial_files()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # the progress bar hides the cursor
    if message:
        with suppress(OSError):
            os.write(2, f"error: {message}\n".encode())
    os._exit(code)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """For the time of a `with` block signals wait; processes that begin in it begin with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_signals_as_worker() -> None:
    """In a worker: Ctrl-C, which reaches all processes of a terminal, is for the parent; SIGTERM ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_worker)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _exit_worker(number: int, _: FrameType | None) -> None:
    remove_partial_files()
    os._exit(128 + number)
