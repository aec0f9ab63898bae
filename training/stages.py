"""A run's folder: which stages are done, and what they were done with.

Every stage reads files and writes files below ``RUN/<stage>/``. When it is through it leaves ``done.json`` with
its fingerprint: a hash of its part of the configuration, of the data and of the stages that it builds on. A stage
whose fingerprint still holds is skipped; one whose fingerprint changed starts over.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(stderr=True)
DONE = "done.json"


def fingerprint(*parts: Any) -> str:
    """A short hash of plain values and dataclasses."""
    plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: also the name of its folder.
        needs: the stages whose results it reads.
        settings: the part of the configuration (and other plain values) that its result depends on.
        run: does the work in the given folder and returns figures for ``done.json``.
    """

    name: str
    needs: tuple[str, ...]
    settings: tuple[Any, ...]
    run: Callable[[Path], dict[str, Any]]


def run_stage(stage: Stage, run: Path, stages: dict[str, Stage]) -> dict[str, Any]:
    """Run a stage unless its result stands; the stages that it needs first. Returns its figures."""
    for needed in stage.needs:
        run_stage(stages[needed], run, stages)
    folder = run / stage.name
    mark = stage_fingerprint(stage, stages)
    started = _read(folder / "started.json").get("fingerprint")
    done = _read(folder / DONE)
    if done.get("fingerprint") == mark:
        console.print(f"[dim]{stage.name}: done before, skipped[/dim]")
        return dict(done["figures"])
    if folder.exists() and started != mark:
        console.print(f"{stage.name}: its configuration or inputs changed, starts over")
        shutil.rmtree(folder)
    elif folder.exists():
        console.print(f"{stage.name}: was interrupted, goes on")
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "started.json", {"fingerprint": mark})
    start = time.perf_counter()
    figures = stage.run(folder)
    minutes = (time.perf_counter() - start) / 60
    _write(folder / DONE, {"fingerprint": mark, "minutes": round(minutes, 2), "figures": figures})
    shown = ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    console.print(f"[bold]{stage.name}[/bold] ({minutes:.1f} min): {shown}")
    return figures


def stage_fingerprint(stage: Stage, stages: dict[str, Stage]) -> str:
    """Hash of what a stage depends on, through all the stages before it."""
    return fingerprint(stage.name, list(stage.settings), [stage_fingerprint(stages[n], stages) for n in stage.needs])


def minutes(run: Path) -> dict[str, float]:
    """Minutes that each finished stage took (of its last, uninterrupted part)."""
    return {p.parent.name: _read(p)["minutes"] for p in sorted(run.glob(f"*/{DONE}"))}


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _write(path: Path, values: dict[str, Any]) -> None:
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(values, indent=2, default=str) + "\n")
    partial.replace(path)
