"""How fast hemseg is against another checkout: ``python -m benchmarks.against FOLDER``; see docs/performance.md.

Seconds of one run say little on a shared machine, whose speed changes by a third within minutes. So both checkouts
segment the same scan by turns, with the libraries of this one, and their fastest and median runs are compared.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.inference import ROOT, THICK, command, phantom
from hemseg.errors import HemsegError

COMMANDS = {
    "hemseg segment": "-m hemseg.cli segment {scan} {target} --device cpu",
    "process.py, mode legacy": "process.py --input {source} --output {target} --device cpu --mode legacy",
}


def cpu_seconds(checkout: Path, what: str, scan: Path) -> float:
    """CPU seconds of one of `COMMANDS` in a checkout, of all threads.

    Raises:
        HemsegError: it failed.
    """
    with tempfile.TemporaryDirectory() as target:
        call = [word.format(source=scan.parent, scan=scan, target=target) for word in COMMANDS[what].split()]
        return command(what, call, checkout).cpu_seconds


def compare_cpu_seconds(other: Path, scan: Path, times: int) -> dict[str, dict[str, list[float]]]:
    """CPU seconds of either command: ``{command: {"here": [...], "there": [...]}}``, taken by turns."""
    found: dict[str, dict[str, list[float]]] = {}
    for what in COMMANDS:
        took: dict[str, list[float]] = {"here": [], "there": []}
        for number in range(times):
            by_turns = (("here", ROOT), ("there", other))
            for name, checkout in by_turns if number % 2 else by_turns[::-1]:
                took[name].append(cpu_seconds(checkout, what, scan))
        found[what] = took
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path, metavar="FOLDER", help="another checkout of hemseg, weights included")
    parser.add_argument("--times", type=int, default=7, help="runs of each (default: 7)")
    parser.add_argument("--scan", type=Path, help="a file (default: a phantom of 512 x 512 x 28 voxels)")
    arguments = parser.parse_args()
    other = arguments.checkout.resolve()
    try:
        if not ((other / "hemseg" / "cli.py").is_file() and (other / "process.py").is_file()):
            raise HemsegError(f"{arguments.checkout}: is no checkout of hemseg: it lacks hemseg/cli.py or process.py.")
        with tempfile.TemporaryDirectory() as folder:
            if arguments.scan:
                scan = Path(shutil.copy(arguments.scan, folder))
            else:
                phantom(scan := Path(folder) / "phantom.nii.gz", *THICK)
            found = compare_cpu_seconds(other, scan, max(1, arguments.times))
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
