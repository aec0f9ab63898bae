"""Grand Challenge's legacy layout: evalutils' algorithm, without its traps. Imports evalutils, which takes a while.

evalutils 0.4.2 tries folders and JSON files as images, loses ``results.json`` for all when one case fails, overwrites
a mask when two subfolders hold a file of one name, rejects identical images, and needs an output folder that exists.
Finding, running and saving are therefore our own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import SimpleITK as sitk
from evalutils import SegmentationAlgorithm
from pandas import DataFrame

from hemseg.folder.jobs import Outcome, run_jobs
from hemseg.folder.plan import Job
from hemseg.grand_challenge.outputs import print_messages, results_entry
from hemseg.grand_challenge.sockets import RESULTS
from hemseg.io.files import write_json
from hemseg.io.images import from_itk
from hemseg.io.writers import mask_to_itk
from hemseg.model import Model
from hemseg.names import printable
from hemseg.segmentation import segment

logger = logging.getLogger("hemseg")


class HemorrhageSegmentation(SegmentationAlgorithm):
    """Scans of ``input_path`` to ``output_path/images`` and ``output_path/results.json``.

    Args:
        jobs: what is to be done, see `hemseg.grand_challenge.outputs.plan_jobs`.

    Attributes:
        errors: why cases failed, a sentence each.
    """

    def __init__(self, input_path: Path, output_path: Path, model: Model, jobs: Sequence[Job]) -> None:
        super().__init__(
            input_path=input_path,
            output_path=output_path / "images",
            output_file=output_path / RESULTS,
            validators={},
        )
        self._model, self._jobs = model, list(jobs)
        self.errors: list[str] = []

    def load(self) -> None:
        """Name the scans; they are read later."""
        self._cases = {self._index_key: DataFrame({"job": self._jobs})}

    def process_cases(self, file_loader_key: str | None = None) -> None:
        """All cases, each on its own: a bad one is named, and the others are done."""
        jobs = list(self._cases[file_loader_key or self._index_key]["job"])
        ended: dict[Job, str] = {}
        try:
            with closing(run_jobs(jobs, self._model, lambda o: ended.update({o.job: o.error}))) as outcomes:
                for number, outcome in enumerate(outcomes, start=1):
                    self._case_results.append(self.process_case(idx=number - 1, case=outcome))
                    outcome_word = "failed" if outcome.error else "done"
                    logger.info("[%d/%d] %s: %s", number, len(jobs), printable(str(outcome.job.case)), outcome_word)
                    print_messages(outcome)
        except (SystemExit, KeyboardInterrupt):  # at any moment: list what there is
            left = jobs[len(self._case_results) :]
            self._case_results += [
                results_entry(job, ended.get(job, f"{job.case}: not done, stopped.")) for job in left
            ]
            self.save()
            raise

    def process_case(self, *, idx: int, case: Any) -> dict[str, Any]:
        """The entry in ``results.json`` of a case that was done."""
        outcome: Outcome = case
        if outcome.error:
            self.errors.append(outcome.error)
        return results_entry(outcome.job, outcome.error)

    def predict(self, *, input_image: sitk.Image) -> sitk.Image:
        """Segment an image in memory: evalutils' own interface, for those who call it."""
        volume = from_itk(input_image)
        return mask_to_itk(segment(volume, self._model).mask, volume)

    def save(self) -> None:
        """Write ``results.json``, all or nothing."""
        write_json(self._case_results, Path(self._output_file))
