"""How fast hemseg is here: ``python -m benchmarks.inference``. Documented in docs/performance.md.

Every figure is of a fresh process, so that start-up, page faults and first-use costs are in it. CPU seconds are user
and system time of all threads, peak is the largest resident size. On a shared machine either changes by a third within
minutes: of `hemseg segment` and `process.py` the fastest of three runs counts, and `benchmarks.against` compares two
checkouts by turns.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hemseg.errors import HemsegError

ROOT = Path(__file__).parent.parent
THICK, THIN = (28, 5.0), (300, 0.5)  # slices, mm
RUNS = 3  # of a command, of which the fastest counts
FOLDER = 8  # scans in the folder that is timed


@dataclass(frozen=True)
class Row:
    """One line of the table. Peak is in MiB, 0 where it means nothing."""

    what: str
    cpu_seconds: float
    wall_seconds: float
    peak_mib: float = 0.0


def _cpu(who: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def environment() -> dict[str, str]:
    """Of the processes that are timed: without PYTHONDONTWRITEBYTECODE, with which each start may compile all modules
    again, and that is not hemseg's time. The first run compiles; of commands the fastest counts.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def command(what: str, arguments: list[str], checkout: Path = ROOT) -> Row:
    """Time a whole process, from start to files on disk.

    Args:
        arguments: of Python.
        checkout: whose modules run.

    Raises:
        HemsegError: it failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        call, own = [sys.executable, *arguments], environment() | {"PYTHONPATH": str(checkout)}
        process = subprocess.Popen(call, stdout=said, stderr=said, cwd=checkout, env=own)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            raise HemsegError(f"{' '.join(arguments)}: failed: {said.read().decode()[-400:]}")
    return Row(what, used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024)


def fastest(what: str, arguments: list[str]) -> Row:
    """The fastest of some runs of a process: what other users of a shared machine slowed least."""
    return min((command(what, arguments) for _ in range(RUNS)), key=lambda row: row.cpu_seconds)


def stages(scan: Path, folder: Path) -> list[Row]:
    """The stages of one scan in this process, which must be fresh: its start-up is the first of them."""
    rows: list[Row] = []
    cpu, wall = 0.0, time.perf_counter() - time.process_time()

    def lap(what: str) -> None:
        nonlocal cpu, wall
        rows.append(Row(what, _cpu() - cpu, time.perf_counter() - wall, resource.getrusage(0).ru_maxrss / 1024))
        cpu, wall = _cpu(), time.perf_counter()

    from hemseg.startup import import_nibabel, start_lean

    start_lean()
    from hemseg.checks import check_scan
    from hemseg.model import load
    from hemseg.scan import read
    from hemseg.segmentation import postprocess, second_opinion
    from hemseg.sliding_window import working_probability

    import_nibabel([scan])
    model = load(device="cpu")
    lap("start-up: libraries, runtime, model")
    volume = read(scan)
    lap("read")
    volume, working = check_scan(volume, model.manifest.preprocessing, strip=model.strip)
    lap("preprocess and check")
    probability = working_probability(working, model)
    lap("network")
    opinion = second_opinion(probability, working, model)
    lap("second opinion")
    postprocess(volume, working, probability, model.manifest, opinion).save(folder / scan.name)
    lap("restore and write")
    return rows


def network(threads: int) -> Row:
    """The network alone on one patch, by ONNX Runtime, after a first run; the median of five."""
    import numpy as np

    from hemseg.model import load

    model = load(device="cpu", threads=threads)
    shape = (1, len(model.manifest.preprocessing.channels), *model.manifest.patch)
    image = np.random.default_rng(0).random(shape, np.float32)
    return repeated(f"ONNX Runtime, {threads} thread{'s' * (threads > 1)}", lambda: model(image))


def repeated(what: str, call: Callable[[], Any], times: int = 5) -> Row:
    """The median of some calls after a first one."""
    call()
    laps = []
    for _ in range(times):
        cpu, wall = _cpu(), time.perf_counter()
        call()
        laps.append((_cpu() - cpu, time.perf_counter() - wall))
    cpu, wall = (sorted(lap[i] for lap in laps)[times // 2] for i in (0, 1))
    return Row(what, cpu, wall)


def phantom(path: Path, slices: int, spacing: float) -> None:
    """Write a head of 512 x 512 pixels with blood in it.

    Raises:
        HemsegError: the phantoms are not here, in an installed package.
    """
    try:
        from training.data.phantom import Grid, make_phantom, write_image
    except ImportError:
        raise HemsegError(
            "the phantoms come with a clone, not with the package; name a scan: benchmarks.inference SCAN"
        ) from None
    made = make_phantom(3, ("intraparenchymal",), Grid((slices, 512, 512), (0.45, 0.45, spacing)))
    write_image(made.volume.hu, made.volume, path)


def of_scan(scan: Path, folder: Path) -> list[Row]:
    """All of one scan: the commands as people call them, then their stages."""
    source = folder / "source"
    source.mkdir()
    (source / scan.name).symlink_to(scan.resolve())
    call = ["-m", "hemseg.cli", "segment", str(scan), str(folder / "a"), "--device", "cpu", "--redo", "--overwrite"]
    rows = [fastest("hemseg segment", call)]
    if (ROOT / "process.py").is_file():
        call = ["process.py", "--input", str(source), "--output", str(folder / "b"), "--device", "cpu", "--overwrite"]
        rows.append(fastest("process.py, mode legacy", [*call, "--mode", "legacy"]))
    return rows + _child("stages", str(scan), str(folder))


def of_folder(scan: Path, folder: Path, alone: list[Row]) -> dict[str, float]:
    """A folder of copies of a scan, against the CPU seconds of its slower part: the network, or all the rest of it.

    Args:
        alone: the stages of one scan.
    """
    source = folder / "many"
    source.mkdir()
    for number in range(FOLDER):
        (source / f"{number}-{scan.name}").symlink_to(scan.resolve())
    call = ["-m", "hemseg.cli", "segment", str(source), str(folder / "masks"), "--device", "cpu"]
    whole = command("folder", call)
    took = {row.what: row.cpu_seconds for row in alone}
    start = next(row.wall_seconds for row in alone if row.what.startswith("start-up"))
    rest = took["read"] + took["preprocess and check"] + took["restore and write"]
    return {
        "scans": FOLDER,
        "wall_seconds": whole.wall_seconds,
        "cpu_seconds": whole.cpu_seconds,
        "peak_mib": whole.peak_mib,
        "cores_busy": whole.cpu_seconds / whole.wall_seconds,
        "ratio": (whole.wall_seconds - start) / (FOLDER * max(took["network"], rest)),
    }


def by_workers(counts: list[int], scans: int = 2 * FOLDER) -> list[Row]:
    """A folder of 28-slice phantoms with ``--jobs N``, and with Ray on this machine if it is installed."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "many"
        source.mkdir()
        _child("phantom", str(source / "0.nii.gz"), *map(str, THICK))
        for number in range(1, scans):
            (source / f"{number}.nii.gz").symlink_to(source / "0.nii.gz")
        for how in ("", "--ray local ") if importlib.util.find_spec("ray") else ("",):
            for count in counts:
                options = f"{how}--jobs {count}"
                call = ["-m", "hemseg.cli", "segment", str(source), str(Path(temporary) / options), "--device", "cpu"]
                rows.append(command(options, [*call, *options.split()]))
    return rows


def show_workers(rows: list[Row], scans: int = 2 * FOLDER) -> None:
    """Print scans an hour, start-up included."""
    print(f"{platform.machine()}, {os.cpu_count()} cores; {scans} scans of 512 x 512 x {THICK[0]}")
    for row in rows:
        print(f"{row.what:22} {row.wall_seconds:7.1f} s {3600 * scans / row.wall_seconds:7.0f} scans an hour")


def _child(*arguments: str) -> list[Row]:
    call = [sys.executable, "-m", "benchmarks.inference", "--child", *arguments]
    done = subprocess.run(call, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise HemsegError(f"{' '.join(arguments)}: failed: {done.stderr[-400:].strip()}")
    return [Row(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def _as_child(what: str, arguments: list[str]) -> None:
    rows: list[Row] = []
    if what == "stages":
        rows = stages(Path(arguments[0]), Path(arguments[1]))
    elif what == "network":
        rows = [network(int(arguments[0]))]
    else:  # in a process of its own because a child is born with its parent's peak
        phantom(Path(arguments[0]), int(arguments[1]), float(arguments[2]))
    print(json.dumps([asdict(row) for row in rows]))


def measure(scans: list[Path]) -> dict[str, Any]:
    """Everything that the table shows."""
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "scans": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not scans:
            scans = [folder / f"phantom-512x512x{slices}.nii.gz" for slices, _ in (THICK, THIN)]
            for scan, (slices, spacing) in zip(scans, (THICK, THIN), strict=True):
                _child("phantom", str(scan), str(slices), str(spacing))
        found["start"] = [
            asdict(command("import hemseg", ["-c", "import hemseg"])),
            asdict(command("hemseg --help", ["-m", "hemseg.cli", "--help"])),
        ]
        for number, scan in enumerate(scans):
            here = folder / str(number)
            here.mkdir()
            rows = of_scan(scan, here)
            found["scans"][scan.name] = [asdict(row) for row in rows]
            if number == 0:
                found["folder"] = of_folder(scan, here, rows)
        found["network"] = [asdict(row) for threads in (1, 2) for row in _child("network", str(threads))]
        if importlib.util.find_spec("torch") and importlib.util.find_spec("training"):
            call = [sys.executable, "-m", "benchmarks.runtimes"]
            done = subprocess.run(call, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
            found["network"] += json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
    return found


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD)
    for name in ("", "CPU seconds", "wall seconds", "peak MiB"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)

    def section(title: str, rows: list[dict[str, Any]]) -> None:
        table.add_row(title, style="bold")
        for row in rows:
            peak = f"{row['peak_mib']:.0f}" if row["peak_mib"] else ""
            table.add_row(f"  {row['what']}", f"{row['cpu_seconds']:.2f}", f"{row['wall_seconds']:.2f}", peak)

    section("start", found["start"])
    for name, rows in found["scans"].items():
        section(name, rows)
    section("network alone, one patch", found["network"])
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(found["machine"])
    console.print(table)
    many = found["folder"]
    console.print(
        f"{many['scans']} copies of the first scan in a folder: {many['wall_seconds']:.1f} s wall, "
        f"{many['cpu_seconds']:.1f} CPU-s, {many['peak_mib']:.0f} MiB, {many['cores_busy']:.1f} cores busy; after "
        f"start-up {many['ratio']:.2f} times the CPU seconds of the slower of the network and the rest"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="*", type=Path, metavar="SCAN", help="default: phantoms of 28 and 300 slices")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--workers", nargs="+", type=int, metavar="N", help="time a folder with so many workers instead"
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        if arguments.child:
            _as_child(arguments.child[0], arguments.child[1:])
            return
        if arguments.workers:
            show_workers(by_workers(arguments.workers))
            return
        found = measure(arguments.scans)
        show(found)
        if arguments.json:
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    except (HemsegError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
