"""How fast hemseg is against another checkout: ``python -m benchmarks.against FOLDER``; see docs/performance.md.

Seconds of one run say little on a shared machine, whose speed changes by a third within minutes. So both checkouts
segment the same scan by turns, in this process's environment, and their fastest and median runs are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.inference import ROOT, THICK, phantom
from hemseg.errors import HemsegError

COMMANDS = {
    "hemseg segment": ("-m", "hemseg.cli", "segment", "{scan}", "{target}", "--device", "cpu"),
    "process.py, mode legacy": (
        *("process.py", "--input", "{source}", "--output", "{target}", "--device", "cpu", "--mode", "legacy"),
    ),
}


def cpu_seconds(checkout: Path, arguments: tuple[str, ...], source: Path, scan: Path) -> float:
    """CPU seconds of a whole process of a checkout, of all threads.

    Args:
        arguments: of Python; ``{source}``, ``{scan}`` and ``{target}`` stand for the folder of the scan, the scan and
            an empty folder.

    Raises:
        HemsegError: it failed.
    """
    with tempfile.TemporaryDirectory() as target, tempfile.TemporaryFile() as printed:
        call = [argument.format(source=source, scan=scan, target=target) for argument in arguments]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        process = subprocess.Popen(
            [sys.executable, *call], stdout=printed, stderr=printed, cwd=checkout, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            raise HemsegError(f"{checkout}: failed: {printed.read().decode(errors='replace')[-400:].strip()}")
    return used.ru_utime + used.ru_stime


def compared(other: Path, scan: Path, times: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of either command: ``{command: {"here": [...], "there": [...]}}``, taken by turns."""
    source = scan.parent
    found: dict[str, dict[str, list[float]]] = {}
    for what, arguments in COMMANDS.items():
        took: dict[str, list[float]] = {"here": [], "there": []}
        for number in range(times):
            by_turns = (("here", ROOT), ("there", other))
            for name, checkout in by_turns if number % 2 else by_turns[::-1]:
                took[name].append(cpu_seconds(checkout, arguments, source, scan))
        found[what] = took
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, metavar="FOLDER", help="another checkout of hemseg, weights included")
    parser.add_argument("--times", type=int, default=7, help="runs of each (default: 7)")
    arguments = parser.parse_args()
    other = arguments.checkout.resolve()
    try:
        if not ((other / "hemseg" / "cli.py").is_file() and (other / "process.py").is_file()):
            raise HemsegError(f"{arguments.checkout}: is no checkout of hemseg: it lacks hemseg/cli.py or process.py.")
        with tempfile.TemporaryDirectory() as folder:
            scan = Path(folder) / "phantom.nii.gz"
            phantom(scan, *THICK)
            found = compared(other, scan, max(1, arguments.times))
    except (HemsegError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    for what, took in found.items():
        here, there = took["here"], took["there"]
        print(
            f"{what:24} CPU seconds here {min(here):.2f} (median {median(here):.2f}), there {min(there):.2f} "
            f"(median {median(there):.2f}); ratio {min(here) / min(there):.2f} (of the medians "
            f"{median(here) / median(there):.2f})"
        )


if __name__ == "__main__":
    main()
