"""Who writes results in formats that are not images: `hemseg.mask_formats` says it here, `Segmentation.save` asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT_WRITERS: dict[str, Callable[[Any, Path], object]] = {}
"""By the suffix of the mask's file, in lower case; each gets a `hemseg.segmentation.Segmentation` and the path."""
