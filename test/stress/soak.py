"""Many scans in one process: ``python test/stress/soak.py [--scans 1000]``. Does its memory grow, does it leave files
in the temporary folder, does it slow down?

Ten phantoms of 28 slices, again and again, with masks, thumbnails and reports (an HTML page for every tenth), by the
same pipeline as ``hemseg segment`` on a folder. Prints a line every hundred scans: time, memory, and the most while
scans were under way; exit code 1 if something is beyond its limit: memory, files, or CPU seconds (wall time is printed;
other work on the machine changes it).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.progress import track

from hemseg.folder.jobs import run_jobs
from hemseg.folder.plan import Job
from hemseg.model import load
from hemseg.resources import resident_bytes
from training.data.phantom import Grid, make_phantom, write_image

HEADS = 10
GRID = Grid((28, 200, 200), (1.0, 1.0, 5.0))
MIB_A_HUNDRED, SLOWER = 1.0, 0.10  # limits
BLOCK = 50  # scans; memory is looked at after each, when none is under way: what those take is no growth
LEAST = 400
WARM_UP = 4  # blocks: caches fill, and the arena of ONNX Runtime comes to have used all of its pages once


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=1000)
    scans = parser.parse_args().scans
    if scans < LEAST:
        parser.error(f"--scans {scans} is too few to see memory grow; give {LEAST} or more.")
    with tempfile.TemporaryDirectory() as place:
        heads = []
        for number in range(HEADS):
            kinds = ("intraparenchymal", "subdural")[: number % 3]
            head = make_phantom(60 + number, kinds, GRID)
            heads.append(Path(place, "in", f"{number}.nii.gz"))
            write_image(head.volume.hu, head.volume, heads[-1])
        out = Path(place, "out")
        out.mkdir()
        jobs = []
        for number in range(scans):
            scan, own = heads[number % HEADS], out / str(number)
            report, thumbnail = own / "report.json", own / "thumbnail.jpg"
            job = Job(
                Path(str(number)), scan, own / scan.name, report=report, thumbnail=thumbnail, page=number % 10 == 0
            )
            jobs.append(job)
        own_folder = Path(place, "tmp")
        own_folder.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(own_folder)
        memory, peaks, seconds, cpu = [], [], [], []
        begun, model = time.perf_counter(), load(device="cpu", scans=scans)
        for first in track(range(0, scans, BLOCK), "segmenting", disable=not sys.stderr.isatty()):
            peak = 0
            for outcome in run_jobs(jobs[first : first + BLOCK], model):
                assert outcome.result, outcome.error
                assert all(path.is_file() for path in outcome.job.outputs)
                shutil.rmtree(outcome.job.mask.parent)
                peak = max(peak, resident_bytes())
            del outcome
            memory.append(resident_bytes() / 2**20)
            peaks.append(peak / 2**20)
            seconds.append(time.perf_counter() - begun)
            cpu.append(time.process_time())
            if len(memory) % 2 == 0:
                line = (
                    f"{first + BLOCK} scans: {seconds[-1]:.0f} s, {memory[-1]:.0f} MiB, at most {max(peaks[-2:]):.0f}"
                )
                print(line, flush=True)
        left = [*own_folder.rglob("*"), *out.rglob("*")]
    slope = float(np.polyfit(np.arange(WARM_UP, len(memory)), memory[WARM_UP:], 1)[0]) * 100 / BLOCK
    by_wall, by_cpu = slower(seconds), slower(cpu)
    print(f"memory {slope:+.2f} MiB a hundred scans, {len(left)} files left; second half against the first: ", end="")
    print(f"wall time {100 * by_wall:+.1f} %, CPU time {100 * by_cpu:+.1f} %")
    return bool(slope > MIB_A_HUNDRED or by_cpu > SLOWER or left)


def slower(clock: list[float]) -> float:
    """How much longer the second half of the blocks took than the first, after the warm-up, as a share."""
    first, middle, last = clock[WARM_UP], clock[(WARM_UP + len(clock)) // 2], clock[-1]
    return (last - middle) / (middle - first) - 1


if __name__ == "__main__":
    sys.exit(main())
