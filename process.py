"""Entry point of the container, as Grand Challenge's legacy evalutils layout calls it.

    docker run --rm -v /path/in:/input -v /path/out:/output hemseg
    python process.py --input IN --output OUT

Every scan below the input folder gets a mask ``OUTPUT/images/<same name>`` (``.mhd`` becomes ``.mha``), and
``OUTPUT/results.json`` tells for each case what was written, or why nothing was. Exit code 1 if a case failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from evalutils import SegmentationAlgorithm
from pandas import DataFrame

from hemseg.cohort import Job, attempt, find_scans, refused
from hemseg.errors import HemsegError
from hemseg.model import DEVICES, Model, load
from hemseg.segmentation import segment
from hemseg.volume import from_itk, mask_name, mask_to_itk

logger = logging.getLogger("hemseg")


class HemorrhageSegmentation(SegmentationAlgorithm):
    """evalutils' algorithm without its traps.

    evalutils 0.4.2 tries folders and JSON files as images, loses ``results.json`` for all when one case fails,
    overwrites a mask when two subfolders hold a file of one name, rejects identical images, and needs an output
    folder that exists. Finding, running and saving are therefore our own.
    """

    def __init__(self, input_path: Path, output_path: Path, model: Model) -> None:
        super().__init__(
            input_path=input_path,
            output_path=output_path / "images",
            output_file=output_path / "results.json",
            validators={},
        )
        self._model = model
        self.failed = 0

    def load(self) -> None:
        """Find the scans; they are read one at a time, later."""
        paths = find_scans(self._input_path, leave_out=self._output_path.parent)
        self._cases = {self._index_key: DataFrame({"path": paths})}

    def process_cases(self, file_loader_key: str | None = None) -> None:
        """All cases, each on its own: a bad one is named, and the others are done."""
        paths = self._cases[file_loader_key or self._index_key]["path"]
        jobs = [Job(p.relative_to(self._input_path), p, self._output_path / mask_name(p)) for p in paths]
        reasons = refused(jobs)
        for number, job in enumerate(jobs):
            result = self.process_case(idx=number, case={"job": job, "refused": reasons.get(job, "")})
            self._case_results.append(result)
            logger.info("[%d/%d] %s: %s", number + 1, len(jobs), job.case, "done" if result["outputs"] else "failed")
            for message in result["error_messages"]:
                print(f"error: {message}", file=sys.stderr)

    def process_case(self, *, idx: int, case: Any) -> dict[str, Any]:
        """Segment and write one case; its entry in ``results.json``."""
        job: Job = case["job"]
        error = case["refused"] or attempt(job, self._model).error
        self.failed += bool(error)
        return {
            "outputs": [] if error else [{"type": "metaio_image", "filename": job.mask.name}],
            "inputs": [{"type": "metaio_image", "filename": job.scan.name}],
            "error_messages": [error] if error else [],
        }

    def predict(self, *, input_image: sitk.Image) -> sitk.Image:
        """Segment an image in memory: evalutils' own interface, for those who call it."""
        volume = from_itk(input_image)
        return mask_to_itk(segment(volume, self._model).mask, volume)

    def save(self) -> None:
        """Write ``results.json``, all or nothing."""
        target = Path(self._output_file)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(".results.json.part")
        partial.write_text(json.dumps(self._case_results, indent=1))
        os.replace(partial, target)


def main() -> int:
    """Run the container; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=Path("/input"), help="folder of scans (default: /input)")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="folder for the masks (default: /output)")
    parser.add_argument("--weights", type=Path, help="folder with manifest.json")
    parser.add_argument("--device", choices=DEVICES, default=os.environ.get("HEMSEG_DEVICE", "auto"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        model = load(arguments.weights, arguments.device)
        logger.info("weights %s %s on %s", model.manifest.name, model.manifest.version, model.provider)
        algorithm = HemorrhageSegmentation(arguments.input, arguments.output, model)
        algorithm.process()
    except (HemsegError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if algorithm.failed else 0


if __name__ == "__main__":
    sys.exit(main())
