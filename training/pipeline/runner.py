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
    return {type(value).__name__: dict(_fingerprint_item(f, _plain(v)) for f, v in fields if v != _default(f))}


def _fingerprint_item(field: dataclasses.Field, value: Any) -> tuple[str, Any]:
    name, values = field.metadata.get("key"), field.metadata.get("values", {})
    return name or field.name, values.get(value, value) if isinstance(value, str) else value


def _default(field: dataclasses.Field) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: also the name of its folder.
        needs: the stages whose results it reads.
        settings: the part of the configuration (and other plain values) that its result depends on.
        run: does the work in the given folder and returns metrics for ``done.json``.
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
    """Run a stage unless its result stands; the stages that it needs first. Returns its metrics."""
    if stage.check:  # on the way down, so those of all stages come before any work
        stage.check()
    for needed in stage.needs:
        run_stage(stages[needed], run, stages)
    folder = run / stage.name
    digest = stage_fingerprint(stage, stages)
    started = _read_json(folder / "started.json").get("fingerprint")
    done = _read_json(folder / DONE)
    if done.get("fingerprint") == digest:
        if rank() == 0:
            console.print(f"[dim]{stage.name}: done before, skipped[/dim]")
        return dict(done["figures"])
    if rank() > 0:
        return _join_first_process(stage, folder, digest)
    if folder.exists() and started != digest:
        if finished_fingerprint(former := _former_folder(folder, digest)) == digest:
            return _restore_former_result(stage, folder, former, done.get("fingerprint", ""))
        kept = _set_aside(folder, done.get("fingerprint", ""))
        trained = f"; what it had trained is kept in {kept}" if kept else ""
        console.print(f"{stage.name}: its configuration or inputs changed, starts over{trained}", soft_wrap=True)
    elif folder.exists():
        console.print(f"{stage.name}: was interrupted, goes on")
        remove_leftovers(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "started.json", {"fingerprint": digest})
    start = time.perf_counter()
    metrics = stage.run(folder)
    minutes = (time.perf_counter() - start) / 60
    _write_json(folder / DONE, {"fingerprint": digest, "minutes": round(minutes, 2), "figures": metrics})
    console.print(f"[bold]{stage.name}[/bold] ({minutes:.1f} min): {in_words(metrics)}")
    return metrics


def _set_aside(folder: Path, digest: str) -> Path | None:
    """Make room for a stage. A network that was trained to its end took hours, and whoever only tried a setting did not
    mean to lose it: the stage is moved, and its new folder is returned. All else can be made again."""
    if not digest or not (folder / NETWORK).exists():
        shutil.rmtree(folder)
        return None
    kept = _former_folder(folder, digest)
    shutil.rmtree(kept, ignore_errors=True)  # of the same settings and inputs
    kept.parent.mkdir(exist_ok=True)
    folder.rename(kept)
    return kept


def _former_folder(folder: Path, digest: str) -> Path:
    """Where a stage's folder is kept when its settings or inputs have changed."""
    return folder.parent / "former" / f"{folder.name}-{digest}"


def _restore_former_result(stage: Stage, folder: Path, former: Path, digest: str) -> dict[str, Any]:
    """Restore the former result of the same settings and inputs."""
    _set_aside(folder, digest)
    former.rename(folder)
    console.print(f"{stage.name}: done before with these settings and inputs, taken back from {former}", soft_wrap=True)
    return dict(_read_json(folder / DONE)["figures"])


def is_done(stage: Stage, run: Path, stages: dict[str, Stage]) -> bool:
    """Whether the result that a run has of a stage still stands."""
    return _read_json(run / stage.name / DONE).get("fingerprint") == stage_fingerprint(stage, stages)


def finished_fingerprint(folder: Path) -> str:
    """The fingerprint that a stage left in its folder when it was through; '' where it is not."""
    return str(_read_json(folder / DONE).get("fingerprint", ""))


def _join_first_process(stage: Stage, folder: Path, digest: str) -> dict[str, Any]:
    """What the other processes of a run do: take part if the stage is distributed, and wait for the first one."""
    if stage.distributed:
        _wait(folder / "started.json", digest)
        if (
            finished_fingerprint(folder) != digest
        ):  # else the first process restored a former result, and does not train
            stage.run(folder)
    return dict(_wait(folder / DONE, digest)["figures"])


def _wait(path: Path, digest: str) -> dict[str, Any]:
    while (values := _read_json(path)).get(
        "fingerprint"
    ) != digest:  # torchrun and Slurm end all when one process fails
        time.sleep(0.2)
    return values


def stage_fingerprint(stage: Stage, stages: dict[str, Stage]) -> str:
    """Hash of what a stage depends on, through all the stages before it."""
    return fingerprint(stage.name, list(stage.settings), [stage_fingerprint(stages[n], stages) for n in stage.needs])


def stage_minutes(run: Path, variant: str = "") -> dict[str, float]:
    """Minutes that each finished stage took (of its last, uninterrupted part), by stage.

    Args:
        variant: suffix of a variant's stages (``@resnet``): of its own ones, and of those it shares.
    """
    minutes = {p.parent.name: float(_read_json(p)["minutes"]) for p in sorted(run.glob(f"*/{DONE}"))}
    stages = dict.fromkeys(without_suffix(name) for name in minutes)
    folders = (folder_of(stage, variant, set(minutes)) for stage in stages)
    return {folder: minutes[folder] for folder in folders if folder}


def stage_states(run: Path) -> list[tuple[str, str, str, str]]:
    """Name, state, minutes and metrics of every stage that a run has begun, in the order in which they began.

    Raises:
        HemsegError: there is no such run.
    """
    paths = sorted(run.glob("*/started.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        raise HemsegError(f"{run}: is not the folder of a run.")
    rows = []
    for folder in (path.parent for path in paths):
        done = _read_json(folder / DONE)
        epochs = len((folder / "metrics.csv").read_text().splitlines()) - 1 if (folder / "metrics.csv").exists() else 0
        if done:
            rows.append((folder.name, "done", str(done["minutes"]), in_words(done["figures"])))
        else:
            rows.append((folder.name, "not done", "", f"{epochs} epochs so far" if epochs else ""))
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2, default=str) + "\n")
