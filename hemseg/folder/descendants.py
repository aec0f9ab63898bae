"""The processes that this one began, and those that these began: also where the one between has died.

Only Linux lists them (``/proc``); elsewhere there seem to be none.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

_SET_CHILD_SUBREAPER = 36  # of prctl(2)


def adopt_orphans() -> None:
    """From now on descendants whose parent dies become children of this process, so that it does not lose them."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> set[int]:
    """The process numbers of all that are alive."""
    children: dict[int, list[int]] = defaultdict(list)
    dead: set[int] = set()
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            number, _, rest = place.read_text(errors="replace").partition(" ")
            state, parent = rest.rpartition(")")[2].split()[:2]
            children[int(parent)].append(int(number))
            if state in "ZX":
                dead.add(int(number))
    found: set[int] = set()
    new = [os.getpid()]
    while new:
        new = [child for parent in new for child in children[parent] if child not in found]
        found.update(new)
    return found - dead


def end_processes(which: Callable[[], Collection[int]], grace: float = 0.0) -> None:
    """Kill processes, and those that they begin meanwhile.

    Args:
        which: their numbers, asked for again until there are none.
        grace: seconds that they have to end by themselves.
    """
    until = time.monotonic() + grace
    while which() and time.monotonic() < until:
        time.sleep(0.05)
    until = time.monotonic() + 1.0  # a process that the kernel holds dies when it lets go
    killed: set[int] = set()
    while (left := which()) and time.monotonic() < until:
        killed |= set(left)
        for number in left:
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.02)
    for number in killed:  # no first process of a container may be there to take what it is left
        with suppress(OSError):  # not a child of this process
            os.waitpid(number, os.WNOHANG)
