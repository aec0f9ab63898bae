"""What can be chosen by name, as types: command lines list the names, and answer ``--help`` without heavy libraries."""

from __future__ import annotations

from typing import Literal

Device = Literal["auto", "cpu", "cuda"]  # CUDA where it works, else CPU; CPU; CUDA or an error
