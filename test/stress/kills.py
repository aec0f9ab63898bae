"""Kill hemseg at random moments, again and again: ``python test/stress/kills.py [--times 60] [--seed 0]``.

A folder of small scans is segmented in four ways; SIGKILL, SIGTERM or SIGINT comes at a random moment, and the same
command is started again. Every other SIGTERM and SIGINT is followed by a second one, which must end all processes
within two seconds (``--seconds``, for machines that do other work). Whatever there is must be whole at any time, and in
the end every case must be there, once, as an unbroken run makes it, and nothing else. Says what happened how often;
exit code 1 if something was wrong.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.progress import track

ROOT = Path(__file__).parents[2]
CASES = 12
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# negative: before Python took over
CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}
WAYS = {
    "a folder": ["-m", "hemseg.cli", "segment", "IN", "OUT", "--quiet"],
    "two processes": ["-m", "hemseg.cli", "segment", "IN", "OUT", "--quiet", "--jobs", "2"],
    "with reports": ["-m", "hemseg.cli", "segment", "IN", "OUT", "--quiet", "--report", "--overlay"],
    "process.py": ["process.py", "--input", "IN", "--output", "OUT"],
}


def write_scans(folder: Path) -> None:
    """Small phantoms, one in a subfolder, in two formats."""
    from training.data.phantom import Grid, make_phantom, write_image

    bleed = make_phantom(3, ("intraparenchymal",), Grid((16, 96, 96), (2.4, 2.4, 9.0)))
    for number in range(CASES):
        name = f"{'sub/' * (number == 0)}{number}{'.mha' if number % 2 else '.nii.gz'}"
        write_image(bleed.volume.hu, bleed.volume, folder / name)


def start(way: str, source: Path, target: Path) -> subprocess.Popen[str]:
    """The process of a way, in a session of its own, so that Ctrl-C can be sent to all of it."""
    words = [{"IN": str(source), "OUT": str(target)}.get(word, word) for word in WAYS[way]]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's jobs ignore it
    )


def still_there(session: int) -> list[str]:
    """Processes of a session, a second after its first one ended."""
    for _ in range(10):
        found = subprocess.run(
            ["pgrep", "-s", str(session)], capture_output=True, text=True, check=False
        ).stdout.split()
        if not found:
            break
        time.sleep(0.1)
    return found


def files(folder: Path) -> list[Path]:
    """All files below a folder, hidden ones as well."""
    return sorted(Path(parent) / name for parent, _, names in os.walk(folder) for name in names)


def voxels(path: Path) -> np.ndarray:
    """Of an image file."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def wrong(target: Path, whole: dict[str, np.ndarray], complete: bool) -> list[str]:
    """What is wrong with an output folder, in words."""
    found = []
    masks = {str(p.relative_to(target)): p for p in files(target) if p.name.endswith((".nii.gz", ".mha"))}
    masks = {name: path for name, path in masks.items() if not path.name.startswith(".")}
    for name, path in masks.items():
        if name not in whole or not np.array_equal(voxels(path), whole[name]):
            found.append(f"{name} is not what it should be")
    if not complete:
        return found
    found += [f"{name} is missing" for name in whole if name not in masks]
    found += [f"{p.name} was left behind" for p in files(target) if p.name.startswith(".") or "lock" in p.name]
    if (target / "summary.csv").exists():
        with (target / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        if sorted(row["case"] for row in rows if row["status"] == "done") != sorted(whole):
            found.append("summary.csv does not hold every case once")
    return found


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    faults: Counter[str] = Counter()
    findings = []
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "in"
        write_scans(source)
        seconds, references = {}, {}
        for way in WAYS:  # unbroken
            target = Path(place) / "whole" / way
            begun = time.perf_counter()
            process = start(way, source, target)
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            seconds[way] = time.perf_counter() - begun
            masks = [p for p in files(target) if p.name.endswith((".nii.gz", ".mha"))]
            references[way] = {str(p.relative_to(target)): voxels(p) for p in masks}
            assert len(masks) == CASES
        for number in track(range(arguments.times), "killing", disable=not sys.stderr.isatty()):
            way = list(WAYS)[number % len(WAYS)]
            target = Path(place) / "out" / way
            how = rng.choice(SIGNALS)
            process = start(way, source, target)
            time.sleep(rng.uniform(0, 0.9 * seconds[way]))
            ended = process.poll() is not None
            with_others = how == signal.SIGINT  # Ctrl-C reaches every process of the terminal
            if not ended:
                (os.killpg if with_others else os.kill)(process.pid, how)
            twice = how != signal.SIGKILL and not ended and rng.random() < 0.5
            if twice:
                time.sleep(rng.uniform(0, 0.5))
                twice = process.poll() is None
            if twice:
                (os.killpg if with_others else os.kill)(process.pid, how)
                begun = time.perf_counter()
            _, errors = process.communicate(timeout=120)
            code = process.returncode
            what = "had ended" if code == 0 else how.name + " twice" * twice
            faults[f"{way}: {what}"] += 1
            name = f"{number}, {way}, {what}"
            if twice and (took := time.perf_counter() - begun) > arguments.seconds:
                findings.append(f"{name}: it took {took:.1f} s to end")
            if twice and (left := still_there(process.pid)):
                findings.append(f"{name}: {len(left)} processes are left")
            if code != 0 and code not in CODES[how]:
                findings.append(f"{name}: exit code {code}: {errors[-300:]}")
            if "Traceback" in errors and with_others is False:
                findings.append(f"{name}: a traceback: {errors[-300:]}")
            findings += [f"{name}: {text}" for text in wrong(target, references[way], code == 0)]
            if how != signal.SIGKILL and code > 0 and not (twice and "two processes" in way):  # its workers are killed
                findings += [f"{name}: {p.name} was left behind" for p in files(target) if ".part" in p.name]
            if code == 0:
                shutil.rmtree(target)
        for way in WAYS:
            target = Path(place) / "out" / way
            process = start(way, source, target)
            _, errors = process.communicate()
            findings += [f"{way}, at last: exit code {process.returncode}: {errors[-300:]}"] * (process.returncode != 0)
            findings += [f"{way}, at last: {text}" for text in wrong(target, references[way], True)]
    for what, times in sorted(faults.items()):
        print(f"{what}: {times}")
    print(f"{arguments.times} times, {len(findings)} findings")
    print("\n".join(findings))
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
