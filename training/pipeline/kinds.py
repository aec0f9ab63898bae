"""Train the classifier of lesion kinds: slices, maps, lesions, regression; samples are cached in a folder.

    python -m training kinds-train --config best --run RUN --data A --data B --out OUT [--weights WEIGHTS]

It needs a run that has pseudo-labels: their components are the lesions. With ``--weights``, their slice classifier says
what it sees of each kind, too. Training ends in ``kinds.npz``, and in tables of the lesions of val.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError, first_line
from hemseg.io.files import atomic_write
from hemseg.kinds import KINDS, UNSURE, KindHead, lesion_inputs
from hemseg.lesion_features import FEATURES
from hemseg.manifest import Manifest, default_weights
from hemseg.model import load_classifier, load_kinds
from hemseg.preprocessing import Settings, leveled
from hemseg.resources import cores
from hemseg.second_opinion import SliceClassifier

from ..config import Config
from ..console import console
from ..data.datasets import DataSet, Prepared, prepared
from ..data.slice_kinds import KIND_OF
from ..evaluation.kind_plot import write_confusion
from ..evaluation.kind_slices import slice_aucs
from ..evaluation.kinds import Row, summary
from ..evaluation.tables import write_table
from ..export.kinds import NUMBERS
from ..fitting.kind_slices import (
    PooledSlices,
    classifier_features,
    fit_linear_maps,
    head_without_regression,
    pooled_slices,
)
from ..labels.kind_head import fit_head, unsure_below
from ..labels.lesion_kinds import Inputs, LesionSample, labelled_lesions, painted_lesions
from .runner import fingerprint, finished_fingerprint

COPIES, SINGLES = 4, 300  # painted bleeds of a scan; single slices that get one


@dataclass(frozen=True, eq=False)
class KindData:
    """What kinds are learned from.

    Attributes:
        dataset: all data sets together.
        answers: by case, int8 (slice, answer) on the working grid.
        run: folder with the prepared scans.
        labels: folder with pseudo-labels.
        grid: scans are seen at its brain level, as in inference.
        not_brain_level: cases of single slices that are not at brain level: they are learned from, and no metric counts
            them.
    """

    dataset: DataSet
    answers: dict[str, np.ndarray]
    run: Path
    labels: Path
    grid: Settings
    not_brain_level: frozenset[str] = frozenset()

    def scans(self, split: str) -> Iterator[Prepared]:
        """The prepared scans of a split."""
        for case in prepared(self.run / "prepare", self.dataset, split):
            yield replace(case, hu=leveled(case.hu, case.intracranial, self.grid))

    @property
    def source(self) -> dict[str, str]:
        """The data set of each case."""
        return {case.name: case.source for case in self.dataset.cases}


def train_kinds(data: KindData, weights: Path | None, config: Config, out: Path) -> dict[str, Any]:
    """All steps; writes ``kinds.npz`` and, of the lesions of val, ``lesions.csv``, ``summary.csv`` and a plot.

    Args:
        data: see `KindData`.
        weights: folder of the weights whose slice classifier is asked; None: lesions are named by their own features.
        config: of the run.
        out: where to.

    Raises:
        HemsegError: no slice of train names a kind, or the weights have no classifier.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not any((data.answers[case.name][:, : len(KINDS)] == 1).any() for case in data.dataset.part("train")):
        raise HemsegError(f"{data.dataset.name}: no slice of train is labelled with a kind of hemorrhage.")
    manifest = Manifest.read(weights) if weights else None
    key = samples_key(data, manifest.classifier_sha256 if manifest else "", config)
    maps, classifier = head_without_regression(), None
    if weights and manifest:
        slices = slice_samples(data, weights, config, out / "slices_train.npz", key)
        maps = fit_linear_maps(slices, manifest.classifier_sha256)
        classifier = load_classifier(weights, manifest, maps, cores())
    inputs = lesion_inputs_with(classifier, config)
    train_samples, val_samples = (
        lesion_samples(data, split, inputs, config, out / f"lesions_{split}.npz", f"{key} {COPIES} {SINGLES}")
        for split in ("train", "val")
    )
    val_samples = [sample for sample in val_samples if sample.case not in data.not_brain_level]
    head = with_unsure_threshold(fit_head(train_samples, maps), val_samples)
    head.write(out / NUMBERS)
    rows = lesion_rows(val_samples, kind_probabilities(head, val_samples), "val", head)
    write_table(rows, out / "lesions.csv")
    write_table(summary(rows), out / "summary.csv")
    write_confusion(rows, out / "confusion.png")
    return {"lesions": len(train_samples), "unsure_below": float(head.unsure_below)}


def lesion_inputs_with(classifier: SliceClassifier | None, config: Config) -> Inputs:
    """A function that computes the inputs of lesions, with the maps of a classifier if there is one."""
    mm, background = config.preprocessing.spacing, config.preprocessing.hu_range[0]

    def compute(lesions: list[np.ndarray], hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
        touched = np.flatnonzero(np.logical_or.reduce([lesion.any(axis=(1, 2)) for lesion in lesions]))
        output = classifier.classify(touched, hu, inside, background) if classifier else None
        return lesion_inputs(lesions, hu, inside, mm, output)

    return compute


def with_unsure_threshold(head: KindHead, val_samples: list[LesionSample]) -> KindHead:
    """The head with its threshold for "unsure" calibrated on lesions of val (`unsure_below`)."""
    own = [s for s in val_samples if s.source not in ("painted", "phantoms") and s.largest and s.allowed.sum() == 1]
    if not own:
        return head
    level = unsure_below(kind_probabilities(head, own), np.stack([s.allowed for s in own]))
    return replace(head, unsure_below=np.array(level))


def samples_key(data: KindData, classifier: str, config: Config) -> str:
    """Changes with all that samples of slices and lesions are made of: scans, labels, masks, settings, and the
    classifier (its sha256). What is painted counts for lesions alone, whose numbers are added to their key."""
    digest = hashlib.sha256()
    for case in data.dataset.cases:
        label = data.labels / f"{case.name}.npz"
        digest.update(repr((case.name, case.split, case.source, data.answers[case.name].tolist())).encode())
        digest.update(label.read_bytes() if label.exists() else b"none")
    scans = finished_fingerprint(data.run / "prepare")
    settings = (data.grid, config.preprocessing, config.classifier, config.seed)
    return fingerprint(digest.hexdigest(), classifier, scans, *settings)


def _load_samples(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The samples of a file, if they are there, whole, and were made of the same (`samples_key`)."""
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            columns = dict(file)
        reason = "made of other data, or with another seed"
    except Exception as error:  # zipfile, zlib and numpy raise many types
        columns, reason = {}, f"cannot be read ({first_line(error)})"
    if str(columns.pop("key", "")) == key:
        return columns
    console.print(f"{path}: {reason}; made anew", markup=False, highlight=False)
    return None


def _save_samples(columns: dict[str, np.ndarray], path: Path, key: str) -> None:
    """Write samples whole or not at all, for `_load_samples` to find."""
    with atomic_write(path) as partial:
        np.savez_compressed(partial, key=np.array(key), **columns)  # type: ignore[arg-type]


def slice_samples(data: KindData, weights: Path, config: Config, path: Path, key: str) -> PooledSlices:
    """What the weights' slice classifier sees of the slices of train; phantoms are left out.

    Args:
        path: where they are cached.
        key: of what they are made of, `samples_key`; samples of another key are recomputed.
    """
    columns = _load_samples(path, key)
    if columns is None:
        real = replace(data, dataset=data.dataset.without(("phantoms",)))
        scans = track(real.scans("train"), "kinds of slices", len(real.dataset.part("train")), console=console)
        field, background = Manifest.read(weights).classifier_field, config.preprocessing.hu_range[0]
        columns = vars(pooled_slices(scans, data.answers, classifier_features(weights), field, background))
        _save_samples(columns, path, key)
    return PooledSlices(**columns)


def evaluate_slices(data: KindData, weights: Path | None, splits: tuple[str, ...]) -> list[Row]:
    """How well the slice classifier of weights distinguishes kinds, by data set and split: rows of `slice_aucs`.

    Raises:
        HemsegError: the weights name no kinds, or without a classifier.
    """
    folder = weights or default_weights()
    manifest = Manifest.read(folder)
    head, features = load_kinds(folder, manifest), classifier_features(folder)
    if head is None or not head.has_maps:
        raise HemsegError(f"{folder}: these weights do not read kinds off their slice classifier.")
    rows: list[Row] = []
    field, background = manifest.classifier_field, manifest.preprocessing.hu_range[0]
    for source in data.dataset.sources():
        found: dict[str, PooledSlices] = {}
        for split in splits:
            cases = tuple(c for c in source.part(split) if c.name not in data.not_brain_level)
            if not any((data.answers[case.name][:, : len(KINDS)] == 1).any() for case in cases):
                continue
            own = replace(data, dataset=replace(source, cases=cases))
            scans = track(own.scans(split), f"{source.name}, {split}", len(cases), console=console)
            found[split] = pooled_slices(scans, data.answers, features, field, background)
        if len(found) > 1:
            found[" + ".join(found)] = PooledSlices.merge(list(found.values()))
        for split, slices in found.items():
            rows += slice_aucs(slices, head, source.name, split)
    return rows


def lesion_samples(
    data: KindData, split: str, inputs: Inputs, config: Config, path: Path, key: str
) -> list[LesionSample]:
    """Lesions of pseudo-labels, by data set, and painted ones.

    Args:
        data: see `KindData`.
        split: ``train`` or ``val``.
        inputs: what the head gets to see of lesions.
        config: working grid, seed.
        path: where they are cached.
        key: of what they are made of, `samples_key`; samples of another key are recomputed.
    """
    columns = _load_samples(path, key)
    if columns is None:
        samples: list[LesionSample] = []
        mm, source = config.preprocessing.spacing, data.source
        count = len(data.dataset.part(split))
        for case in track(data.scans(split), f"lesions, {split}", count, console=console):
            if (label := data.labels / f"{case.name}.npz").exists():
                with np.load(label) as file:
                    pair = [(case, file["mask"] > 0)]
                samples += labelled_lesions(pair, data.answers, source[case.name], mm, inputs)
        rng = np.random.default_rng([config.seed, 31])
        names = [c.name for c in data.dataset.part(split) if source[c.name] != "phantoms"]
        healthy = [n for n in names if len(data.answers[n]) == 1 and data.answers[n][0, -1] == 0]
        chosen = {n for n in names if len(data.answers[n]) > 1} | set(rng.permutation(healthy)[:SINGLES].tolist())
        scans = (case for case in data.scans(split) if case.name in chosen)
        samples += painted_lesions(scans, KIND_OF, COPIES, mm, inputs, config.seed)
        columns = {name: np.array([getattr(s, name) for s in samples]) for name in LesionSample.__dataclass_fields__}
        _save_samples(columns, path, key)
    rows = zip(*columns.values(), strict=True)
    return [LesionSample(**dict(zip(columns, row, strict=True))) for row in rows]


def kind_probabilities(head: KindHead, samples: list[LesionSample]) -> np.ndarray:
    """Probabilities (lesion, kind) of lesions."""
    return head.probabilities(np.stack([s.inputs for s in samples])) if samples else np.zeros((0, len(KINDS)))


def lesion_rows(samples: list[LesionSample], probabilities: np.ndarray, split: str, head: KindHead) -> list[Row]:
    """The largest lesion of each scan as `training.evaluation.kinds` has it."""
    rows: list[Row] = []
    for sample, probability in zip(samples, probabilities, strict=True):
        if not sample.largest:
            continue
        truth = " ".join(kind for kind, may_be in zip(KINDS, sample.allowed, strict=True) if may_be)
        certain = probability.max() >= float(head.unsure_below)
        rows.append(
            {
                "data": sample.source,
                "split": split,
                "case": sample.case,
                "kinds": truth,
                "lesion": 1,
                "ml": round(float(np.exp(sample.inputs[len(head.inputs) - len(FEATURES)])), 3),
                "truth": truth,
                "called": KINDS[int(probability.argmax())] if certain else UNSURE,
                "most_probable": KINDS[int(probability.argmax())],
                "probability": round(float(probability.max()), 3),
            }
        )
    return rows
