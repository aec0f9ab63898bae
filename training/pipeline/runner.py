"""A run's folder: which stages are done, and what they were done with.

Every stage reads files and writes files below ``RUN/<stage>/``. When it is through it leaves ``done.json`` with
its fingerprint: a hash of its part of the configuration, of the data and of the stages that it builds on. A stage
whose fingerprint still holds is skipped; one whose fingerprint changed starts over, and a network that it had
trained to its end is kept in ``RUN/former``.
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

from hemseg.errors import HemsegError
from hemseg.io.files import atomic_write, remove_leftovers

from ..console import console, in_words
from ..fitting.hardware import rank
from ..stage_names import NETWORK, folder_of, without_suffix

DONE = "done.json"


def fingerprint(*parts: Any) -> str:
    """A short hash of plain values and dataclasses.

    A field at its default does not count: a new setting, whose default is what was done before, leaves old runs valid.
    A field, or a value, that was renamed counts under its former name (its ``metadata``), for the same reason.
    """
    text = json.dumps([_plain(p) for p in parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = ((f, getattr(value, f.name)) for f in dataclasses.fields(value))
    return {type(value).__name__: dict(_former(f, _plain(v)) for f, v in fields if v != _default(f))}


def _former(field: dataclasses.Field, value: Any) -> tuple[str, Any]:
    name, values = field.metadata.get("key"), field.metadata.get("values", {})
    return name or field.name, values.get(value, value) if isinstance(value, str) else value


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: also the name of its folder.
        needs: the stages whose results it reads.
        settings: the part of the configuration (and other plain values) that its result depends on.
        run: does the work in the given folder and returns figures for ``done.json``.
        distributed: all processes of a run work on it together; other stages are the first process's alone.
        check: raises HemsegError where it could not run, before the stages that it needs do.
    """

    name: str
    needs: tuple[str, ...]
    settings: tuple[Any, ...]
    run: Callable[[Path], dict[str, Any]]
    distributed: bool = False
    check: Callable[[], None] | None = None


def run_stage(stage: Stage, run: Path, stages: dict[str, Stage]) -> dict[str, Any]:
    """Run a stage unless its result stands; the stages that it needs first. Returns its figures."""
    if stage.check:  # on the way down, so those of all stages come before any work
        stage.check()
    for needed in stage.needs:
        run_stage(stages[needed], run, stages)
    folder = run / stage.name
    mark = stage_fingerprint(stage, stages)
    started = _read(folder / "started.json").get("fingerprint")
    done = _read(folder / DONE)
    if done.get("fingerprint") == mark:
        if rank() == 0:
            console.print(f"[dim]{stage.name}: done before, skipped[/dim]")
        return dict(done["figures"])
    if rank() > 0:
        return _follow(stage, folder, mark)
    if folder.exists() and started != mark:
        if mark_of(former := _former_folder(folder, mark)) == mark:
            return _taken_back(stage, folder, former, done.get("fingerprint", ""))
        kept = _set_aside(folder, done.get("fingerprint", ""))
        trained = f"; what it had trained is kept in {kept}" if kept else ""
        console.print(f"{stage.name}: its configuration or inputs changed, starts over{trained}", soft_wrap=True)
    elif folder.exists():
        console.print(f"{stage.name}: was interrupted, goes on")
        remove_leftovers(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "started.json", {"fingerprint": mark})
    start = time.perf_counter()
    figures = stage.run(folder)
    minutes = (time.perf_counter() - start) / 60
    _write(folder / DONE, {"fingerprint": mark, "minutes": round(minutes, 2), "figures": figures})
    console.print(f"[bold]{stage.name}[/bold] ({minutes:.1f} min): {in_words(figures)}")
    return figures


def _set_aside(folder: Path, mark: str) -> Path | None:
    """Make room for a stage. A network that was trained to its end took hours, and whoever only wanted a figure did not
    mean to lose it: it is moved with all of the stage, and where it is now is returned. All else can be made again."""
    if not mark or not (folder / NETWORK).exists():
        shutil.rmtree(folder)
        return None
    kept = _former_folder(folder, mark)
    shutil.rmtree(kept, ignore_errors=True)  # of the same settings and inputs
    kept.parent.mkdir(exist_ok=True)
    folder.rename(kept)
    return kept


def _former_folder(folder: Path, mark: str) -> Path:
    """Where a stage's folder is kept when its settings or inputs are others."""
    return folder.parent / "former" / f"{folder.name}-{mark}"


def _taken_back(stage: Stage, folder: Path, former: Path, mark: str) -> dict[str, Any]:
    """The result of settings and inputs that are those of before again."""
    _set_aside(folder, mark)
    former.rename(folder)
    console.print(f"{stage.name}: done before with these settings and inputs, taken back from {former}", soft_wrap=True)
    return dict(_read(folder / DONE)["figures"])


def is_done(stage: Stage, run: Path, stages: dict[str, Stage]) -> bool:
    """Whether the result that a run has of a stage still stands."""
    return _read(run / stage.name / DONE).get("fingerprint") == stage_fingerprint(stage, stages)


def mark_of(folder: Path) -> str:
    """The fingerprint that a stage left in its folder when it was through; '' where it is not."""
    return str(_read(folder / DONE).get("fingerprint", ""))


def _follow(stage: Stage, folder: Path, mark: str) -> dict[str, Any]:
    """What the other processes of a run do: take part if the stage is distributed, and wait for the first one."""
    if stage.distributed:
        _wait(folder / "started.json", mark)
        if mark_of(folder) != mark:  # else the first process took back what was done before, and does not train
            stage.run(folder)
    return dict(_wait(folder / DONE, mark)["figures"])


def _wait(path: Path, mark: str) -> dict[str, Any]:
    while (values := _read(path)).get("fingerprint") != mark:  # torchrun and Slurm end all when one process fails
        time.sleep(0.2)
    return values


def stage_fingerprint(stage: Stage, stages: dict[str, Stage]) -> str:
    """Hash of what a stage depends on, through all the stages before it."""
    return fingerprint(stage.name, list(stage.settings), [stage_fingerprint(stages[n], stages) for n in stage.needs])


def minutes(run: Path, variant: str = "") -> dict[str, float]:
    """Minutes that each finished stage took (of its last, uninterrupted part), by stage.

    Args:
        variant: suffix of a variant's stages (``@resnet``): of its own ones, and of those it shares.
    """
    taken = {p.parent.name: float(_read(p)["minutes"]) for p in sorted(run.glob(f"*/{DONE}"))}
    stages = dict.fromkeys(without_suffix(name) for name in taken)
    folders = (folder_of(stage, variant, set(taken)) for stage in stages)
    return {folder: taken[folder] for folder in folders if folder}


def states(run: Path) -> list[tuple[str, str, str, str]]:
    """Name, state, minutes and figures of every stage that a run has begun, in the order in which they began.

    Raises:
        HemsegError: there is no such run.
    """
    begun = sorted(run.glob("*/started.json"), key=lambda path: path.stat().st_mtime)
    if not begun:
        raise HemsegError(f"{run}: is not the folder of a run.")
    rows = []
    for folder in (path.parent for path in begun):
        done = _read(folder / DONE)
        epochs = len((folder / "metrics.csv").read_text().splitlines()) - 1 if (folder / "metrics.csv").exists() else 0
        if done:
            rows.append((folder.name, "done", str(done["minutes"]), in_words(done["figures"])))
        else:
            rows.append((folder.name, "not done", "", f"{epochs} epochs so far" if epochs else ""))
    return rows


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _write(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2, default=str) + "\n")
