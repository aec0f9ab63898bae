"""BIDS: masks as a derivative data set, beside a table by participant, of a BIDS tree or of any folder of scans.

The Brain Imaging Data Structure (https://bids-specification.readthedocs.io) names files by entities:
``sub-01/ses-02/anat/sub-01_ses-02_desc-hemorrhage_mask.nii.gz``. It has no suffix for CT yet; ``_ct`` is what data sets
use. Plans and tables here, files at the edges; what is segmented, and how, `hemseg.folder` knows.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemseg import __version__
from hemseg.errors import HemsegError
from hemseg.folder.plan import Job, known_refusal, names_mask
from hemseg.io.files import write_json, write_text
from hemseg.io.fingerprint import Fingerprint
from hemseg.io.formats import stem, suffix
from hemseg.io.marks import mark
from hemseg.mask_formats import SAME
from hemseg.names import case_name, to_cell
from hemseg.report.kinds import kinds_path
from hemseg.report.probability import probability_path

if TYPE_CHECKING:
    from hemseg.folder.rows import Row

VERSION = "1.10.0"  # of the specification
DESCRIPTION, PARTICIPANTS, IGNORED = "dataset_description.json", "participants.tsv", ".bidsignore"
TABLE, README = "hemorrhage.tsv", "README.md"
KEPT_ENTITIES = ("acq", "ce", "rec", "run")  # of the scan's name, in the specification's order
MISSING = "n/a"
_ENTITY = re.compile(r"([a-z]+)-([0-9A-Za-z]+)")
_NO_SCANS = {"derivatives", "sourcedata", "code", "stimuli", "phenotype"}
# what a run writes beside the derivative data set, for validators to ignore; the table too: the specification's tables
# have one line for each participant, and a participant may have several scans
_IGNORED_PATTERNS = ("summary.csv", "summary.html", "thumbnails", "lesions.csv", "hemorrhage.*", "*_mask", "*.png",
           "*_probability.*", "*_kinds.*")  # fmt: skip
_README = """# Intracranial hemorrhage on head CT

Masks that hemseg {version} made, a derivative data set of BIDS. `hemorrhage.tsv` has a line for each mask.

Research only. Not a medical device: not for diagnosis, triage or treatment.
"""
COLUMNS: dict[str, dict[str, str]] = {
    "participant_id": {"Description": "The participant, as in the names of folders."},
    "session_id": {"Description": "The session, where the scan is of one."},
    "mask": {"Description": "The mask, seen from the folder of the data set."},
    "volume_ml": {"Description": "Volume of all intracranial hemorrhage.", "Units": "mL"},
    "lesions": {"Description": "Number of connected components of hemorrhage."},
    "largest_ml": {"Description": "Volume of the largest component.", "Units": "mL"},
    "implausible": {"Description": "What cannot be about the result; n/a for almost all."},
    "warnings": {"Description": "What looks odd about the scan."},
    "doubtful_slices": {
        "Description": "Slices in which U-Net and slice classifier see hemorrhage and nothing is outlined, "
        "counted from 1, from inferior; n/a for none."
    },
}
_ROW_COLUMNS = ("volume_ml", "lesions", "largest_ml", "implausible", "warnings", "doubtful_slices")  # as in summary.csv
_ADDED_COLUMNS = ("doubtful_slices",)  # columns that older tables do not have


@dataclass(frozen=True)
class Entities:
    """What a name says of a scan.

    Attributes:
        subject, session: labels, without ``sub-`` and ``ses-``; the session may be ''.
        others: the other entities that a mask keeps, (name, label).
    """

    subject: str
    session: str = ""
    others: tuple[tuple[str, str], ...] = ()

    @property
    def folder(self) -> Path:
        """Of the mask, in the data set."""
        return Path(f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else []), "anat")

    @property
    def mask(self) -> Path:
        """Of the mask, in the data set."""
        parts = [f"sub-{self.subject}", *([f"ses-{self.session}"] if self.session else [])]
        parts += [f"{name}-{label}" for name, label in self.others]
        return self.folder / f"{'_'.join([*parts, 'desc-hemorrhage'])}_mask.nii.gz"


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set: its description says so."""
    return "BIDSVersion" in (_read_description(folder) or {})


def entities_of(case: Path) -> Entities:
    """What a case's name says: its entities, or, where it has none, a label made of its letters and digits.

    Args:
        case: path of the scan (a file, or the folder of a DICOM study) relative to the folder of scans.

    Raises:
        HemsegError: no label can be made of it.
    """
    words = [word for part in case.parts for word in stem(Path(part)).split("_")]
    found = {match[1]: match[2] for word in words if (match := _ENTITY.fullmatch(word))}
    others = tuple((name, found[name]) for name in KEPT_ENTITIES if name in found)
    if subject := found.get("sub", ""):
        return Entities(subject, found.get("ses", ""), others)
    own = case.parent / stem(case) if suffix(case) else case.with_suffix("") if case.suffix == ".zip" else case
    label = re.sub(r"[^0-9A-Za-z]", "", str(own))
    if not label:
        raise HemsegError(f"{case}: has no letter or digit (of ASCII) in its name, from which BIDS makes a label.")
    return Entities(label)


def mask_format(form: str, target: Path) -> str:
    """The format of masks in BIDS, which is NIfTI, where another one was not asked for.

    Args:
        form: as asked for.

    Raises:
        HemsegError: another format was asked for, or the target is no folder.
    """
    if form not in (SAME, "nii.gz"):
        raise HemsegError(f"--bids writes NIfTI: leave --format {form} out.")
    if names_mask(target):
        raise HemsegError(f"{target}: is the name of one image; --bids needs a folder.")
    return "nii.gz"


def bids_jobs(jobs: Iterable[Job], sources: Sequence[Path], target: Path) -> list[Job]:
    """Planned jobs with the masks where BIDS has them. Of a BIDS tree, the CT scans alone.

    Args:
        jobs: of `hemseg.folder.plan.plan_jobs`, with NIfTI masks.
        sources: what was given to it.
        target: the folder of the derivative data set.

    Raises:
        HemsegError: a BIDS tree has no CT scan, or the target is another data set.
    """
    _refuse_foreign_dataset(target)
    trees = [source for source in sources if source.is_dir() and is_bids(source)]
    chosen = []
    for job in jobs:
        tree = next((tree for tree in trees if tree == job.scan or tree in job.scan.parents), None)
        if tree and not _is_ct(job.scan.relative_to(tree)):
            continue
        try:
            mask = target / entities_of(job.case).mask
        except HemsegError as error:
            chosen.append(replace(job, refusal=job.refusal or str(error)))
            continue
        own = mask.with_name(stem(mask))
        moved = replace(
            job,
            mask=mask,
            overlay=own.with_name(f"{own.name}.png") if job.overlay else None,
            report=own / "report.json" if job.report else None,
            probability=probability_path(mask, own) if job.probability else None,
            kinds=kinds_path(mask, own) if job.kinds else None,
        )
        chosen.append(replace(moved, refusal=job.refusal or known_refusal(moved, ())))
    if not chosen:
        named = ", ".join(str(tree) for tree in trees)
        raise HemsegError(f"{named}: is a BIDS data set without a CT scan; hemseg looks for sub-*/**/*_ct.nii.gz.")
    return chosen


def write_dataset(jobs: Sequence[Job], rows: Iterable[Row], sources: Sequence[Path], target: Path) -> None:
    """Write what makes masks a BIDS data set: its description, a sidecar for each mask, the table by participant.

    Args:
        jobs: of `bids_jobs`.
        rows: what became of them.
        sources: what the jobs were planned from.

    Raises:
        OutputError: a file cannot be written.
    """
    by_case = {row.case: row for row in rows}
    done = [(job, row) for job in jobs if (row := by_case.get(case_name(job.case))) and row.status == "done"]
    trees = [source for source in sources if source.is_dir() and is_bids(source)]
    links = {f"raw{number or ''}": Path(os.path.relpath(tree, target)).as_posix() for number, tree in enumerate(trees)}
    write_json(_dataset_description(links), target / DESCRIPTION)
    write_text("".join(f"{pattern}\n" for pattern in _IGNORED_PATTERNS), target / IGNORED)
    for job, row in done:
        write_json(_sidecar(job, row, dict(zip(links, trees, strict=True))), _sidecar_path(job.mask))
    own = {_relative(job.mask, target): _cells(job, row, target) for job, row in done}
    kept = {
        r["mask"]: r for r in _read_table(target / TABLE) if r["mask"] not in own and (target / r["mask"]).is_file()
    }
    made = io.StringIO(newline="")
    writer = csv.DictWriter(made, list(COLUMNS), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(values for _, values in sorted((kept | own).items()))
    write_text(made.getvalue(), target / TABLE)
    write_json(COLUMNS, (target / TABLE).with_suffix(".json"))
    masks = Counter(values["participant_id"] for values in (kept | own).values())
    lines = ["participant_id\tmasks", *(f"{participant}\t{count}" for participant, count in sorted(masks.items()))]
    write_text("".join(f"{line}\n" for line in lines), target / PARTICIPANTS)
    counted = {"masks": {"Description": "Number of scans that were segmented."}}
    write_json({"participant_id": COLUMNS["participant_id"]} | counted, (target / PARTICIPANTS).with_suffix(".json"))
    write_text(_README.format(version=__version__), target / README)


def _refuse_foreign_dataset(target: Path) -> None:
    """Raise HemsegError for a folder that holds another data set than one of ours."""
    before = _read_description(target)
    if before is not None:
        tools = before.get("GeneratedBy")
        own = isinstance(tools, list) and any(isinstance(tool, dict) and tool.get("Name") == "hemseg" for tool in tools)
        foreign = [] if own else [target / DESCRIPTION]
    else:
        written = [target / name for name in (DESCRIPTION, TABLE, PARTICIPANTS, README)]
        foreign = [path for path in written if os.path.lexists(path)]
    if foreign:
        raise HemsegError(f"{foreign[0]}: belongs to another data set; give another folder for the output.")


def _is_ct(path: Path) -> bool:
    """Whether a file of a BIDS tree, as seen from there, is a CT scan; a folder of DICOM is none."""
    name = stem(path).lower()
    return bool(suffix(path)) and path.parts[0] not in _NO_SCANS and name.startswith("sub-") and name.endswith("_ct")


def _dataset_description(links: dict[str, str]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "Name": "Intracranial hemorrhage on head CT, segmented by hemseg",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {"Name": "hemseg", "Version": __version__, "Description": "Research only. Not a medical device."}
        ],
    }
    return described | ({"DatasetLinks": links} if links else {})


def _sidecar(job: Job, row: Row, trees: dict[str, Path]) -> dict[str, Any]:
    """Of a mask; a scan outside of a BIDS tree is named by nothing: its path may name the patient."""
    link = next((name for name, tree in trees.items() if tree in job.scan.parents), "")
    known = Fingerprint.parse(row.scan)
    sources = [f"bids:{link}:{job.scan.relative_to(trees[link]).as_posix()}"] if link else []
    return {
        "Description": "Intracranial hemorrhage (1) on the grid of the scan",
        "Type": "Lesion",
        "Manual": False,
        "SpatialReference": "orig",
        **({"Sources": sources} if sources else {}),
        "VolumeMilliliter": float(row.volume_ml),
        "Lesions": int(row.lesions),
        "MadeBy": row.made_by,
        "Mark": mark(known.content if known else ""),
    }


def _sidecar_path(mask: Path) -> Path:
    return mask.with_name(f"{stem(mask)}.json")


def _cells(job: Job, row: Row, target: Path) -> dict[str, str]:
    named = entities_of(job.case)
    values = {
        "participant_id": f"sub-{named.subject}",
        "session_id": f"ses-{named.session}" if named.session else "",
        "mask": _relative(job.mask, target),
        **{name: getattr(row, name) for name in _ROW_COLUMNS},
    }
    return {name: to_cell(" ".join(value.split())) or MISSING for name, value in values.items()}


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _read_table(path: Path) -> list[dict[str, str]]:
    """The lines of an earlier table; none where it cannot be read, or is not of this form or one before."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
    older = [name for name in COLUMNS if name not in _ADDED_COLUMNS]
    whole = [row for row in rows if list(row) in (list(COLUMNS), older) and None not in row.values()]
    return [dict.fromkeys(_ADDED_COLUMNS, MISSING) | row for row in whole]


def _read_description(folder: Path) -> dict[str, Any] | None:
    """A data set's description; None where there is none that can be read."""
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
