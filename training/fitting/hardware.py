"""What a run trains on: devices, nodes, precision, and which of several processes this one is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hemseg.errors import HemsegError


@dataclass(frozen=True)
class Hardware:
    """What to train on. More than one process comes from ``torchrun`` or Slurm, which say so in the environment."""

    devices: int = 1  # a node
    nodes: int = 1
    precision: str = "32-true"  # Lightning's names: 32-true, 16-mixed, bf16-mixed
    accelerator: str = "auto"

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
