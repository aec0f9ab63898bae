"""Where messages and progress go: stderr, so that results on stdout can be piped."""

from __future__ import annotations

from typing import Any

from rich.console import Console

console = Console(stderr=True)


def in_words(metrics: dict[str, Any]) -> str:
    """Names and values in one line, three significant digits."""
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items())
