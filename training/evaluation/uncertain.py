"""Which scans to label next: those about which the networks do not agree with themselves or with each other.

    python -m training uncertain --scans FOLDER --run RUN
    python -m training uncertain --scans FOLDER --run RUN --second runs/other/export

No label is needed or read. Disagreement as a measure of what a label would teach is query by committee (Seung, Opper,
Sompolinsky 1992); the committee is the U-Net, the same on the mirrored head, the slice classifier, and a second set of
weights where one is given. Everything is written below ``RUN/uncertain``: panels show patients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.progress import track
from scipy import stats

from hemseg.errors import HemsegError
from hemseg.io.formats import stem, suffix
from hemseg.model import Model
from hemseg.preprocessing import WorkingImage, working_image
from hemseg.scan import read
from hemseg.sliding_window import network_probability

from ..config import Config
from ..console import console
from ..data.dataset_tables import left_out_cases
from ..data.datasets import IMAGES, Prepared
from ..data.field_of_view import network_slices
from ..fitting.classifier import predict
from ..networks.slice_network import SliceNetwork
from .panels import PanelRow, write_panel
from .tables import write_table

CRITERIA = ("mirrored_ml", "disputed_slices", "second_ml")


@dataclass(frozen=True, eq=False)
class Committee:
    """Who is asked about a scan.

    Attributes:
        unet: the weights in question.
        classifier: their slice classifier with its configuration; None where it is not available.
        second: other weights, of another seed for instance; None for none.
    """

    unet: Model
    classifier: tuple[SliceNetwork, Config] | None = None
    second: Model | None = None


@dataclass(frozen=True, eq=False)
class CommitteeAnswers:
    """What the committee says about a scan, on the working grid of the weights in question.

    Attributes:
        working: the scan.
        unet, mirrored: probability of hemorrhage, float32 (z, y, x); of the head as it is, and of the mirrored head,
            mirrored back.
        slices: the classifier's probability, float32 (z,), or None.
        second: probability by the other weights, on their own working grid brought to this one, or None.
    """

    working: WorkingImage
    unet: np.ndarray
    mirrored: np.ndarray
    slices: np.ndarray | None = None
    second: np.ndarray | None = None

    def disagreement(self) -> dict[str, float]:
        """By criterion: mL of probability that differ, or the number of slices that are in dispute."""
        ml = float(np.prod(self.working.grid.spacing)) / 1000
        found = {"mirrored_ml": float(np.abs(self.unet - self.mirrored).sum()) * ml}
        if self.slices is not None:
            found["disputed_slices"] = float(self._disputed().sum())
        if self.second is not None:
            found["second_ml"] = float(np.abs(self.unet - self.second).sum()) * ml
        return found

    def by_slice(self) -> np.ndarray:
        """How much each slice adds to it, float (z,): where to look."""
        total = np.abs(self.unet - self.mirrored).max(axis=(1, 2))
        if self.slices is not None:
            total = total + self._disputed()
        return total if self.second is None else total + np.abs(self.unet - self.second).max(axis=(1, 2))

    def _disputed(self) -> np.ndarray:
        present = self.working.intracranial.any(axis=(1, 2))
        assert self.slices is not None
        return np.abs(self.slices - self.unet.max(axis=(1, 2))) * present


def ask_committee(path: Path, committee: Committee) -> CommitteeAnswers:
    """What the committee says about a scan.

    Raises:
        HemsegError: it cannot be read.
    """
    volume, unet = read(path), committee.unet
    settings, patch = unet.manifest.preprocessing, unet.manifest.patch
    working = working_image(volume, settings, unet.strip)
    hu, inside = working.hu, working.intracranial
    flipped = network_probability(
        np.ascontiguousarray(hu[..., ::-1]), np.ascontiguousarray(inside[..., ::-1]), settings, unet, patch
    )
    slices = second = None
    if committee.classifier:
        network, config = committee.classifier
        case = Prepared("", "", hu, inside, np.zeros(len(hu), np.int8))
        slices = predict(network, network_slices(case, config)).sigmoid().numpy()
    if other := committee.second:
        other_working = working_image(volume, other.manifest.preprocessing, other.strip)
        probability = network_probability(
            other_working.hu, other_working.intracranial, other.manifest.preprocessing, other, other.manifest.patch
        )
        shape = other_working.grid.scan_shape
        whole = other_working.grid.to_scan(probability, slice(0, shape[1]), slice(0, shape[2]))
        second = working.grid.from_scan(np.ascontiguousarray(whole, np.float32))
    return CommitteeAnswers(
        working, network_probability(hu, inside, settings, unet, patch), flipped[..., ::-1], slices, second
    )


def disagreement_scores(rows: list[dict[str, float]]) -> np.ndarray:
    """A score of each row, float (n,), 1 for the most disagreement by every criterion, 0 for the least.

    The criteria have different units, so their ranks are averaged, not their values.
    """
    if len(rows) < 2:
        return np.ones(len(rows))
    present = [name for name in CRITERIA if name in rows[0]]
    ranks = [stats.rankdata([row[name] for row in rows]) for name in present]
    return np.asarray((np.mean(ranks, axis=0) - 1) / (len(rows) - 1))


def scans_in(folder: Path) -> dict[str, Path]:
    """The scans of a folder, or of a data set's folder of images, by name; without those that ``left_out.txt`` names.

    Raises:
        HemsegError: there is none, two have the same name, or one that is not there is to be left out.
    """
    place = next((folder / name for name in IMAGES if (folder / name).is_dir()), folder)
    files = [p for p in sorted(place.glob("*")) if suffix(p) and not p.name.startswith(".")]
    found = {stem(path): path for path in files}
    if not found:
        raise HemsegError(f"{folder}: has no scans (.nii.gz, .nii, .mha, .mhd, .nrrd).")
    if len(found) < len(files):
        raise HemsegError(f"{folder}: two scans have the same name but for its ending; rename one.")
    faults: list[str] = []
    left_out = left_out_cases(folder, found, faults)
    if faults:
        raise HemsegError(f"{folder}:", faults)
    return {name: path for name, path in found.items() if name not in left_out}


def rank_scans(
    folder: Path, committee: Committee, out: Path, panels: int = 12
) -> tuple[list[dict[str, object]], list[str]]:
    """Rank the scans of a folder; writes ``ranking.csv`` and panels of the first ones to ``out``.

    Args:
        out: below the run's folder: pictures of patients go nowhere else.
        panels: how many scans get a picture, with at most eight slices each.

    Returns:
        the ranking, the scan to label first in its first row; and a sentence for each scan that cannot be used.
    """
    names, measured, faults = [], [], []
    files = scans_in(folder)
    for name, path in track(files.items(), "uncertain", console=console):
        try:
            measured.append(ask_committee(path, committee).disagreement())
            names.append(name)
        except HemsegError as error:
            faults.append(str(error))
    scores = disagreement_scores(measured)
    order = np.argsort(-scores, kind="stable")
    rows: list[dict[str, object]] = [
        {"place": place, "case": names[i], "score": float(scores[i]), **measured[i]}
        for place, i in enumerate(order, start=1)
    ]
    if rows:
        write_table(rows, out / "ranking.csv")
    hu_range = committee.unet.manifest.preprocessing.hu_range
    for row in rows[:panels]:
        shown = shown_slices(ask_committee(files[str(row["case"])], committee), committee.unet.manifest.threshold)
        write_panel(shown, hu_range, out / f"{row['place']:03d}-{row['case']}.png")
    return rows, faults


def shown_slices(answers: CommitteeAnswers, threshold: float, most: int = 8) -> list[PanelRow]:
    """The slices of a scan with most disagreement, in order: what each member of the committee outlines."""
    worst = np.sort(np.argsort(-answers.by_slice(), kind="stable")[:most])
    members = {"U-Net": answers.unet, "mirrored": answers.mirrored}
    if answers.second is not None:
        members["second"] = answers.second
    rows = []
    for z in worst:
        says = "" if answers.slices is None else f"classifier {answers.slices[z]:.2f}"
        outlines = {name: probability[z] >= threshold for name, probability in members.items()}
        rows.append(replace(PanelRow(answers.working.hu[z]), outlines=outlines, caption=f"slice {z} {says}".strip()))
    return rows
