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

from hemseg.io.files import abandon

STOPS = (signal.SIGINT, signal.SIGTERM)
KILL_SECONDS = 1.0  # that workers have to end
_stopping = 0  # the signal that came
_nothing_to_wait_for = False
_last_words: Mapping[int, str] = {}
_enders: list[Callable[[], object]] = []


def install(last_words: Mapping[int, str] = _last_words) -> None:
    """Handle SIGTERM and Ctrl-C as this module says, from now on.

    Args:
        last_words: what an end at once says on stderr, by the signal.
    """
    global _last_words
    _last_words = last_words
    for number in STOPS:
        signal.signal(number, _stop)


@contextmanager
def at_once() -> Iterator[None]:
    """For the time of a `with` block the first signal ends the process: there is no other scan to be noted.

    In the main thread, that is: what runs in another one does not say what the process waits for.
    """
    global _nothing_to_wait_for
    _nothing_to_wait_for = current_thread() is main_thread()
    try:
        yield
    finally:
        _nothing_to_wait_for = False


@contextmanager
def ended_with(ender: Callable[[], object]) -> Iterator[None]:
    """For the time of a `with` block an end at once calls this too: it ends processes that others began for us."""
    _enders.append(ender)
    try:
        yield
    finally:
        _enders.remove(ender)


@contextmanager
def handlers_restored() -> Iterator[None]:
    """The handlers of signals are what they were, after a `with` block in which a library sets its own."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        if current_thread() is main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _stop(number: int, _: FrameType | None) -> None:
    global _stopping
    if _stopping or _nothing_to_wait_for:
        end_now(128 + number, _last_words.get(number, ""))
    _stopping = number
    _raise(number)


def _raise(number: int) -> NoReturn:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)  # every `finally` runs


def stop_if_asked() -> None:
    """Raise once more what a signal has raised in the main thread, if that was lost: Python drops what comes out of a
    finaliser or a callback, and a handler may run in one.
    """
    if _stopping and current_thread() is main_thread():
        _raise(_stopping)


def end_now(code: int, last_words: str = "") -> None:
    """End this process and its workers without waiting for threads, and without a partial file."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    workers = active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(KILL_SECONDS / len(workers))
        worker.kill()
    for ender in _enders:
        with suppress(Exception):
            ender()
    abandon()
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # the progress bar hides the cursor
    if last_words:
        with suppress(OSError):
            os.write(2, f"error: {last_words}\n".encode())
    os._exit(code)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """For the time of a `with` block signals wait; processes that begin in it begin with them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """In a worker: Ctrl-C, which reaches all processes of a terminal, is for the parent; SIGTERM ends it at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_worker)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _end_worker(number: int, _: FrameType | None) -> None:
    abandon()
    os._exit(128 + number)
