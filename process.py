"""Entry point of the container, for every way in which Grand Challenge and its users call one.

    docker run --rm -v /path/in:/input -v /path/out:/output hemseg
    python process.py --input IN --output OUT

What is mounted decides the mode (gc, gc-generic, instance, legacy; see docs/grand-challenge.md), --mode or HEMSEG_MODE
overrides it; --mode serve answers the platform's HTTP calls. Exit code 1 if a case failed, 143 after SIGTERM.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Collection
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hemseg.cohort import Job, known_refusal, run
from hemseg.dicom import is_dicom
from hemseg.errors import HemsegError
from hemseg.files import remove_leftovers
from hemseg.folders import unreadable_dicom, walk, without_masks
from hemseg.grand_challenge import MODES, Sockets, Work, choose, load_sockets, read_inputs
from hemseg.model import DEVICES, default_weights, load
from hemseg.names import printable
from hemseg.outputs import refuse_conflicts
from hemseg.signals import install
from hemseg.streams import flush_standard_output, open_standard_streams
from hemseg.volume import suffix

if TYPE_CHECKING:
    from hemseg.model import Model

logger = logging.getLogger("hemseg")


def perform(
    work: Work,
    source: Path,
    target: Path,
    predict: Path,
    sockets: Sockets,
    model: Model,
    unread: Collection[Path] = (),
    overwrite: bool = False,
) -> int:
    """Do what was chosen; returns how many cases failed.

    Args:
        source, target, predict: ``/input``, ``/output`` and, for INSTANCE, ``/predict``.
        unread, overwrite: see `hemseg.legacy.HemorrhageSegmentation`.
    """
    report = target / sockets.report_path if sockets.report_path else None
    if work.mode in ("legacy", "gc-generic"):
        from hemseg.legacy import HemorrhageSegmentation

        report = report if work.mode == "gc-generic" else None
        algorithm = HemorrhageSegmentation(source, target, model, work.scans, report, work.dicom, unread, overwrite)
        algorithm.process()
        return algorithm.failed
    if work.mode == "instance":
        jobs = [Job(Path(scan), source / scan, predict / scan.name) for scan in work.scans]
    else:
        (scan,) = work.scans
        jobs = [Job(Path(scan), source / scan, target / sockets.mask_path / "output.mha", report=report)]
    jobs = [replace(job, refusal=known_refusal(job, unread)) for job in jobs]
    refuse_conflicts(jobs, overwrite=overwrite)
    failed = 0
    with closing(run(jobs, model)) as outcomes:
        for outcome in outcomes:
            failed += bool(outcome.error)
            logger.info("%s: %s", printable(str(outcome.job.case)), "failed" if outcome.error else "done")
            for line in outcome.told:
                print(line, file=sys.stderr)
    return failed


def main() -> int:
    """Run the container; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=Path("/input"), help="folder of scans (default: /input)")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="folder for the masks (default: /output)")
    parser.add_argument("--predict", type=Path, default=Path("/predict"), help="folder for INSTANCE's masks")
    modes = ("auto", "serve", *MODES)
    parser.add_argument("--mode", default=os.environ.get("HEMSEG_MODE") or "auto", help=f"one of {', '.join(modes)}")
    parser.add_argument("--weights", type=Path, help="folder with manifest.json")
    parser.add_argument("--port", type=int, default=4743, help="of mode serve (default: 4743)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that hemseg did not write")
    parser.add_argument("--device", default=os.environ.get("HEMSEG_DEVICE") or "auto", help=", ".join(DEVICES))
    arguments = parser.parse_args()
    open_standard_streams()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    install()
    try:
        if not 0 < arguments.port < 1 << 16:
            raise HemsegError(f"--port {arguments.port}: give a number from 1 to 65535.")
        weights = arguments.weights or default_weights()
        sockets = load_sockets(os.environ, weights)
        if arguments.mode == "serve":
            try:
                from hemseg.server import serve
            except ModuleNotFoundError as error:
                raise HemsegError(f"mode serve needs {error.name}; `pip install 'hemseg[serve]'`.") from None

            model = load(weights, arguments.device)
            # the server has a handler of its own; when it is done it raises the signal again, for the one before it
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            serve(model, arguments.input, arguments.output, sockets, arguments.port)
            return 0
        if arguments.input.resolve() == arguments.output.resolve():
            raise HemsegError(f"{arguments.output}: is the input folder; give another one for the masks.")
        unread: dict[Path, str] = {}
        found = without_masks(walk(arguments.input, arguments.output, unread))
        unread |= unreadable_dicom(p for p in found if not suffix(p))
        files = [PurePosixPath(p.relative_to(arguments.input)) for p in found]
        dicom = [p for p in files if not suffix(Path(p)) and is_dicom(arguments.input / p)]
        inputs = read_inputs(arguments.input)
        work = choose(files, inputs, arguments.predict.is_dir(), sockets, arguments.mode, dicom)
        if work.mode == "instance" and not arguments.predict.is_dir():
            raise HemsegError(f"mode instance writes to {arguments.predict}, but there is no such folder; mount it.")
        for folder in (arguments.output, arguments.predict):
            remove_leftovers(folder)
        studies = {p.parent for p in work.dicom}
        model = load(weights, arguments.device, scans=len(work.scans) + len(studies))
        logger.info("weights %s %s on %s", model.manifest.name, model.manifest.version, model.provider)
        images = f"{len(work.scans)} scan{'s' * (len(work.scans) != 1)}"
        slices = f", {len(work.dicom)} DICOM files" if work.dicom else ""
        logger.info("mode %s, %s%s", work.mode, images, slices)
        folders = arguments.input, arguments.output, arguments.predict
        failed = perform(work, *folders, sockets, model, unread, arguments.overwrite)
        for path, reason in unread.items():
            print(printable(f"error: {path}: {reason}"), file=sys.stderr)
        failed += len(unread)
    except (HemsegError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        code = main()
        sys.exit(code or (0 if flush_standard_output() else 1))
    except KeyboardInterrupt:  # Ctrl-C
        sys.exit(128 + signal.SIGINT)
