"""Memory and cores: how much a scan will take and how much there is; a sentence now in place of a silent kill later."""

from __future__ import annotations

import ctypes
import os
import resource
from functools import cache
from pathlib import Path

from hemseg.errors import HemsegError

# libraries, runtime and all networks, however small the scan: `hemseg segment` on 3 slices of 52 x 52 pixels takes
# 423 MiB (and on 512 x 512 x 28, 487)
PROCESS_BYTES = 415 << 20
MODEL_COPIES = 3  # of a model file, while it is loaded: as read, as parsed, and rearranged for the processor
VOXEL_BYTES = 5  # beside the voxels as stored: float32 and a mask; likewise
CGROUP = Path("/sys/fs/cgroup")
WORKING_VOXEL_BYTES = 30  # of the working grid: the scan, smoothed, masks, labels, channels, answers
_M_ARENA_MAX = -8  # of <malloc.h>
# limit, what is used of it, and the line of memory.stat with what the kernel gives back when asked: versions 2 and 1
_LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def check_memory(path: Path | None, voxels: int, stored_bytes: int) -> None:
    """Raise for a scan that cannot fit, before anything is allocated.

    The estimate is a little below what such a scan takes (docs/performance.md): none is refused that would fit.

    Args:
        stored_bytes: of one voxel in the file.

    Raises:
        HemsegError: it takes more than there is.
    """
    if lacking := _lacking(voxels * (stored_bytes + VOXEL_BYTES)):
        need, room = lacking
        raise HemsegError(
            f"{path or 'the scan'}: takes about {need / 1e9:.1f} GB of memory, and this process can have "
            f"{room / 1e9:.1f} GB; give it more, or fewer --jobs."
        )


def check_working_memory(path: Path | None, voxels: int) -> None:
    """Raise for a working grid that cannot fit beside the scan: coarse pixels make it larger than the scan.

    Raises:
        HemsegError: it takes more than there is.
    """
    if lacking := _lacking(voxels * WORKING_VOXEL_BYTES):
        need, room = lacking
        raise HemsegError(
            f"{path or 'the scan'}: takes about {need / 1e9:.1f} GB of memory on the grid that it is segmented on, and "
            f"this process can have {room / 1e9:.1f} GB; is the header's spacing right?"
        )


def check_start() -> None:
    """Raise where not even the libraries, the network and a small scan fit. Call it before the libraries are imported:
    without memory, OpenBLAS ends the process with no word.

    Raises:
        HemsegError: there is too little.
    """
    room = available_bytes()
    if room is not None and room < PROCESS_BYTES:
        raise HemsegError(
            f"hemseg takes at least {PROCESS_BYTES / 1e9:.1f} GB of memory, and this process can have "
            f"{room / 1e9:.1f} GB; give it more."
        )


def check_model_memory(path: Path) -> None:
    """Raise for a model file that cannot fit, before it is read; nothing where there is no such file.

    Raises:
        HemsegError: it takes more than there is.
    """
    if not path.is_file():
        return
    more = MODEL_COPIES * path.stat().st_size
    if lacking := _lacking(more):
        need, room = lacking
        raise HemsegError(
            f"{path}: takes about {more / 1e9:.1f} GB of memory to load, {need / 1e9:.1f} GB with what hemseg takes "
            f"itself, and this process can have {room / 1e9:.1f} GB; give it more."
        )


def _lacking(more: int) -> tuple[int, int] | None:
    """What the process takes with so many bytes more, and what it can have, where that is less; both in bytes.

    A process that others share (a server in an application, a notebook) may hold more than hemseg's own part already:
    what is new comes on top of it. Memory that was freed but kept goes back before anything is refused.
    """
    for look_again in (True, False):
        room = available_bytes()
        need = max(PROCESS_BYTES, resident_bytes()) + more if room is not None else 0
        if room is None or need <= room:
            break
        if not look_again:
            return need, room
        release_memory()
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, whichever library says so."""
    words = (
        "bad_alloc",
        "bad allocation",
        "Failed to allocate memory",
        "Insufficient memory",
        "Cannot allocate memory",
    )
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def failure(error: Exception, name: str) -> str:
    """Why something failed, in a sentence: our own as it is, else too little memory, or a fault to report."""
    if isinstance(error, HemsegError):
        return str(error)
    if is_out_of_memory(error):
        return f"{name}: there is not enough memory for it."
    return f"{name}: failed unexpectedly ({type(error).__name__}: {error}); please report it."


def available_bytes() -> int | None:
    """The most that this process can have, with what it has already: of the machine, of a container's limit, of
    ``ulimit -v`` and ``ulimit -d``; None where the system does not say.
    """
    try:
        own = resident_bytes()
        free = _field(Path("/proc/meminfo"), "MemAvailable:") * 1024
        data = _field(Path("/proc/self/status"), "VmData:") * 1024
    except (OSError, ValueError):
        return None
    rooms = [own + free, *(own + left for left in _left_in_cgroups())]
    data_limit, _ = resource.getrlimit(resource.RLIMIT_DATA)  # Grand Challenge limits a container's memory by it
    if data_limit != resource.RLIM_INFINITY:
        rooms.append(own + data_limit - data)
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        rooms.append(address_space)
    return max(0, min(rooms))


def resident_bytes(pid: int | str = "self") -> int:
    """Memory that a process has now; OSError where the system does not say."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def share_heap() -> None:
    """Let threads to come allocate from one heap; nothing where the C library is not glibc.

    By default each has a heap of its own ("arena"), and each keeps the holes that scans of other sizes left there: over
    its first few hundred scans a folder's process would grow by a tenth (``test/stress/soak.py``).
    """
    if libc := _glibc():
        libc.mallopt(_M_ARENA_MAX, 1)


def release_memory() -> None:
    """Give memory that was freed back to the system, in a few milliseconds; nothing where there is no glibc."""
    if libc := _glibc():
        libc.malloc_trim(0)


@cache
def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def _left_in_cgroups() -> list[int]:
    found = []
    for limit, used, reclaimed in _LIMITS:
        try:
            most = int((CGROUP / limit).read_text())  # "max" is no number, and no limit
            stat = (CGROUP / limit).with_name("memory.stat")
            found.append(most - int((CGROUP / used).read_text()) + _field(stat, reclaimed))
        except (OSError, ValueError):
            continue
    return found


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.split()[:1] == [name]:
            return int(line.split()[1])
    raise ValueError(f"{path} has no {name}")


def cores() -> int:
    """CPU cores that this process may use: a container's limit counts, the machine's number does not."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return allowed
