"""Grand Challenge's legacy layout: evalutils' algorithm, without its traps. Imports evalutils, which takes a while.

evalutils 0.4.2 tries folders and JSON files as images, loses ``results.json`` for all when one case fails, overwrites
a mask when two subfolders hold a file of one name, rejects identical images, and needs an output folder that exists.
Finding, running and saving are therefore our own.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import SimpleITK as sitk
from evalutils import SegmentationAlgorithm
from pandas import DataFrame

from hemseg.cohort import Found, Job, Outcome, find_studies, known_refusal, own_name, run
from hemseg.model import Model
from hemseg.names import printable
from hemseg.outputs import refuse_conflicts
from hemseg.report import write_json
from hemseg.segmentation import segment
from hemseg.volume import from_itk, mask_name, mask_to_itk

logger = logging.getLogger("hemseg")


def is_results(path: Path) -> bool:
    """Whether a file is a ``results.json`` as it is written here (and by evalutils): it may be replaced."""
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    keys = {"outputs", "inputs", "error_messages"}
    return isinstance(entries, list) and all(isinstance(entry, dict) and set(entry) == keys for entry in entries)


class HemorrhageSegmentation(SegmentationAlgorithm):
    """Scans of ``input_path`` to ``output_path/images`` and ``output_path/results.json``.

    Args:
        scans: paths relative to ``input_path``.
        dicom: the files of DICOM studies, likewise.
        report: where the report of a single scan goes, if anywhere.
        unread: files that cannot be read: a study beside them is not done, as slices would be missing.
        overwrite: replace what hemseg did not write.
    """

    def __init__(
        self,
        input_path: Path,
        output_path: Path,
        model: Model,
        scans: Sequence[PurePosixPath],
        report: Path | None = None,
        dicom: Sequence[PurePosixPath] = (),
        unread: Collection[Path] = (),
        overwrite: bool = False,
    ) -> None:
        super().__init__(
            input_path=input_path,
            output_path=output_path / "images",
            output_file=output_path / "results.json",
            validators={},
        )
        self._model, self._report = model, report
        found: list[Found] = [(Path(scan), input_path / scan, ()) for scan in scans]
        found += find_studies(input_path, [input_path / p for p in dicom], alone=not scans)
        self._found = sorted((own_name(case, input_path), path, files) for case, path, files in found)
        self._unread, self._overwrite = unread, overwrite
        self.failed = 0

    def load(self) -> None:
        """Name the scans; they are read later."""
        self._cases = {self._index_key: DataFrame(self._found, columns=["case", "path", "files"])}

    def process_cases(self, file_loader_key: str | None = None) -> None:
        """All cases, each on its own: a bad one is named, and the others are done."""
        table = self._cases[file_loader_key or self._index_key]
        jobs = [
            Job(
                case,
                path,
                self._output_path / (f"{case.name}.mha" if files else mask_name(path)),
                report=self._report,
                files=files,
            )
            for case, path, files in table.itertuples(index=False)
        ]
        jobs = [replace(job, refusal=known_refusal(job, self._unread)) for job in jobs]
        table_of_results = Path(self._output_file)
        tables = [] if is_results(table_of_results) else [table_of_results]
        refuse_conflicts(jobs, tables=tables, overwrite=self._overwrite)
        ended: dict[Job, str] = {}
        try:
            with closing(run(jobs, self._model, lambda o: ended.update({o.job: o.error}))) as outcomes:
                for number, outcome in enumerate(outcomes, start=1):
                    self._case_results.append(self.process_case(idx=number - 1, case=outcome))
                    said = "failed" if outcome.error else "done"
                    logger.info("[%d/%d] %s: %s", number, len(jobs), printable(str(outcome.job.case)), said)
                    for line in outcome.told:
                        print(line, file=sys.stderr)
        except (SystemExit, KeyboardInterrupt):  # at any moment: tell what there is
            left = jobs[len(self._case_results) :]
            self._case_results += [self._entry(job, ended.get(job, f"{job.case}: not done, stopped.")) for job in left]
            self.save()
            raise

    def process_case(self, *, idx: int, case: Any) -> dict[str, Any]:
        """The entry in ``results.json`` of a case that was done."""
        outcome: Outcome = case
        self.failed += bool(outcome.error)
        return self._entry(outcome.job, outcome.error)

    @staticmethod
    def _entry(job: Job, error: str) -> dict[str, Any]:
        return {
            "outputs": [] if error else [{"type": "metaio_image", "filename": job.mask.name}],
            "inputs": [{"type": "metaio_image", "filename": job.case.name}],
            "error_messages": [error] if error else [],
        }

    def predict(self, *, input_image: sitk.Image) -> sitk.Image:
        """Segment an image in memory: evalutils' own interface, for those who call it."""
        volume = from_itk(input_image)
        return mask_to_itk(segment(volume, self._model).mask, volume)

    def save(self) -> None:
        """Write ``results.json``, all or nothing."""
        write_json(self._case_results, Path(self._output_file))
