"""What a run trains on: devices, nodes, precision, and which of several processes this one is."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from hemseg.errors import HemsegError
from hemseg.resources import cores

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")  # Lightning's names
# Of a processor that is faster in bfloat16. One with avx512_bf16 alone multiplies it, too, and takes 1.2 to 1.5 times
# as long as in float32 over a step of either network (docs/training.md); others emulate it, several times slower.
BF16_FLAG = "amx_bf16"
CPU_INFO = Path("/proc/cpuinfo")
MAX_WORKERS = 4  # loader's processes beside a training process that needs the cores itself
MAX_WORKERS_BESIDE_GPU = 16  # and beside one that computes on a GPU: then making the samples takes the time


@dataclass(frozen=True)
class Hardware:
    """What to train on. More than one process comes from ``torchrun`` or Slurm, which say so in the environment."""

    devices: int = 1  # a node
    nodes: int = 1
    precision: str = "32-true"  # Lightning's names: 32-true, 16-mixed, bf16-mixed
    accelerator: str = "auto"
    workers: int = 0  # processes that make samples ahead of each training process; 0: it makes them itself
    compile: bool = False  # the networks by torch.compile: a minute each at first, then up to twice as fast on a CPU

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.devices * self.nodes

    def check(self) -> None:
        """Raises HemsegError where the processes that were asked for are not the ones that were started."""
        if self.processes != world_size():
            raise HemsegError(
                f"{self.devices} devices on {self.nodes} nodes make {self.processes} processes, but {world_size()} "
                f"were started; start them with `torchrun --nproc-per-node {self.devices} -m -- training ...` or srun."
            )


def world_size() -> int:
    """Processes that ``torchrun`` or Slurm started."""
    return int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))


def rank() -> int:
    """Number of this process among them."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def choose_hardware(
    devices: str, nodes: int, precision: str, workers: str = "0", compile: bool = False
) -> tuple[Hardware, list[str]]:
    """What a run trains on, and sentences on what was chosen in place of ``auto``.

    Args:
        devices: processes per node; ``auto``: as many as were started.
        nodes: how many.
        precision: of `PRECISIONS`, or ``auto``.
        workers: loader's processes beside each of them; ``auto``: see `default_workers`.
        compile: the networks, with `torch.compile`.

    Raises:
        HemsegError: neither a number nor ``auto``, an unknown precision, processes that were not started, or no
            compiler.
    """
    reasons = []
    if devices != "auto" and not (devices.isdecimal() and int(devices)):
        raise HemsegError(f"--devices {devices}: give a number from 1 on, or auto.")
    if devices == "auto":
        if world_size() % nodes:
            raise HemsegError(f"{world_size()} processes were started, which cannot be shared by {nodes} nodes.")
        count = world_size() // nodes
        if (present := cuda_devices()) > count:
            reasons.append(
                f"devices {count} of {present}: start one process per GPU to use all of them "
                f"(`torchrun --nproc-per-node {present} -m -- training ...`)"
            )
    else:
        count = int(devices)
    if precision == "auto":
        precision, why = best_precision()
        reasons.append(f"precision {precision}: {why}")
    elif precision not in PRECISIONS:
        raise HemsegError(f"--precision {precision} is not known; known: auto, {', '.join(PRECISIONS)}.")
    if workers != "auto" and not workers.isdecimal():
        raise HemsegError(f"--workers {workers}: give a number from 0 on, or auto.")
    making = default_workers(count) if workers == "auto" else int(workers)
    if compile and not _compiler():
        raise HemsegError("--compile needs a C++ compiler (g++ or clang++), and there is none; leave the option out.")
    hardware = Hardware(count, nodes, precision, workers=making, compile=compile)
    hardware.check()
    return hardware, reasons


def default_workers(processes: int) -> int:
    """Loader's processes for each training process: half of the cores together, beside GPUs all but those of the
    training processes; none where a process cannot fork."""
    if sys.platform != "linux":
        return 0
    if cuda_devices():
        return min(MAX_WORKERS_BESIDE_GPU, max(0, cores() // processes - 1))
    return min(MAX_WORKERS, cores() // 2 // processes)


def _compiler() -> str | None:
    """The C++ compiler that torch.compile would call for a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def best_precision(cpu_info: Path = CPU_INFO) -> tuple[str, str]:
    """bf16-mixed where the device is faster in it, else 32-true; and why.

    bfloat16 has float32's range, so no loss has to be scaled; float16 (``16-mixed``) is never chosen by itself.
    """
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{name} computes in bfloat16"
        return "32-true", f"{name} does not compute in bfloat16"
    if torch.backends.mps.is_available():
        return "32-true", "bfloat16 was not tried on this kind of GPU"
    flags = cpu_flags(cpu_info)
    if BF16_FLAG in flags:
        return "bf16-mixed", f"this processor has {BF16_FLAG}"
    lacking = f"this processor has no {BF16_FLAG}, and is slower in bfloat16"
    return "32-true", lacking if flags else f"{cpu_info} does not say what this processor can do"


def cpu_flags(cpu_info: Path = CPU_INFO) -> frozenset[str]:
    """What the processor can do, in Linux' words; empty where the system does not say."""
    try:
        lines = cpu_info.read_text().splitlines()
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def cuda_devices() -> int:
    """GPUs that this process sees."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def processor() -> str:
    """The name of what this process trains on: the GPU's, or the processor's."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else cpu_name()


def cpu_name() -> str:
    """The name of the processor, and how many threads torch has on it."""
    import torch

    try:
        lines = CPU_INFO.read_text().splitlines()
    except (OSError, UnicodeError):
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{named}, {torch.get_num_threads()} threads"
