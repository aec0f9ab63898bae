"""Training what names kinds: slices, maps, lesions, perceptron; each step's result stays in a folder and is taken up.

    python -m training kinds-train --config best --run RUN --data A --data B --out OUT [--network]

It needs a run that has pseudo-labels: their components are the lesions. With ``--network``, the run's slice classifier
says what it sees of each kind, too. Training ends in ``kinds.npz`` (and ``kinds.onnx``), and in tables of val: lesions
by kind (and AUC of slices by kind).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.kinds import ANSWERS, KINDS, UNSURE, Head, lesion_inputs
from hemseg.lesion_features import FEATURES
from hemseg.preprocessing import Settings, leveled

from ..config import Config
from ..console import console
from ..data.datasets import DataSet, Prepared, prepared
from ..data.slice_kinds import UNKNOWN
from ..evaluation.kind_plot import write_confusion
from ..evaluation.kinds import Row, summary
from ..evaluation.single_slices import auc_with_interval
from ..evaluation.tables import write_table
from ..export.kinds import export_kinds
from ..fitting.kind_slices import (
    FOLDS,
    KIND_OF,
    PooledSlices,
    crossed_maps,
    folds,
    linear_maps,
    pooled_slices,
    view_of,
)
from ..labels.kind_head import Maps, fitted_head, unsure_below
from ..labels.lesion_kinds import Inputs, LesionSample, labelled_lesions, painted_lesions
from ..networks.kind_network import KindNetwork
from .runner import fingerprint, mark_of

COPIES, SINGLES = 1, 300  # painted bleeds of a scan; single slices that get one


@dataclass(frozen=True, eq=False)
class KindData:
    """What kinds are learned from.

    Attributes:
        dataset: all data sets together.
        answers: by case, int8 (slice, answer) on the working grid.
        run: folder with the prepared scans.
        labels: folder with pseudo-labels.
        grid: scans are seen at its brain level, as in inference.
        not_brain: cases of single slices that are not at brain level: no figure counts them.
    """

    dataset: DataSet
    answers: dict[str, np.ndarray]
    run: Path
    labels: Path
    grid: Settings
    not_brain: frozenset[str] = frozenset()

    def scans(self, split: str, without: tuple[str, ...] = ()) -> Iterator[Prepared]:
        """The prepared scans of a split."""
        for case in prepared(self.run / "prepare", self.dataset.without(without), split):
            yield replace(case, hu=leveled(case.hu, case.intracranial, self.grid))

    @property
    def source(self) -> dict[str, str]:
        """The data set of each case."""
        return {case.name: case.source for case in self.dataset.cases}


def train_kinds(data: KindData, network: KindNetwork | None, config: Config, out: Path) -> dict[str, Any]:
    """All steps; writes ``kinds.npz`` and ``lesions.csv``, and with a network ``kinds.onnx`` and ``slices.csv``.

    Args:
        network: the slice classifier's; None: lesions are named by their own figures alone.

    Raises:
        HemsegError: no slice of train names a kind.
    """
    out.mkdir(parents=True, exist_ok=True)
    if not any((data.answers[case.name][:, : len(KINDS)] == 1).any() for case in data.dataset.part("train")):
        raise HemsegError(f"{data.dataset.name}: no slice of train is labelled with a kind of hemorrhage.")
    figures: dict[str, Any] = {}
    key = samples_key(data, network, config)
    maps, crossed, fold = None, {}, {}
    if network:
        train, val = (
            slice_samples(data, split, network, config, out / f"slices_{split}.npz", key) for split in ("train", "val")
        )
        maps, crossed, fold = linear_maps(train), crossed_maps(train, config.seed), folds(train.cases, config.seed)
        auc = slice_aucs(val, maps, data, "val")
        write_table(auc, out / "slices.csv")
        figures |= {f"auc_{row['data']}_{row['answer']}": row["auc"] for row in auc}

    def inputs_by(choose: Callable[[str], Maps | None]) -> Inputs:
        """Inputs with the maps that a case is to be seen with."""

        def compute(lesions: list[np.ndarray], hu: np.ndarray, inside: np.ndarray, name: str) -> np.ndarray:
            head, mm = only_maps(choose(name), config), config.preprocessing.spacing
            return lesion_inputs(lesions, hu, inside, mm, head, _torch(network) if network else None)

        return compute

    own_fold = inputs_by(lambda name: crossed.get(fold.get(name, 0)))
    of_train = lesion_samples(data, "train", own_fold, config, out / "lesions_train.npz", key)
    of_val = lesion_samples(data, "val", inputs_by(lambda name: maps), config, out / "lesions_val.npz", key)
    head, rows = chosen_head(of_train, of_val, maps, config)
    write_table(rows, out / "lesions.csv")
    write_table(summary(rows), out / "summary.csv")
    write_confusion(rows, out / "confusion.png")
    difference = export_kinds(network, head, out)
    figures |= {"lesions": len(of_train), "unsure_below": float(head.unsure_below)}
    return figures | ({"difference_to_torch": difference} if network else {})


def chosen_head(
    of_train: list[LesionSample], of_val: list[LesionSample], maps: Maps | None, config: Config
) -> tuple[Head, list[Row]]:
    """The head fitted to the lesions of train, unsure below what val and train by folds say; and a row for each."""
    head = fitted_head(of_train, maps, view_of(config))
    crossed, val = crossed_predictions(of_train, maps, config), _answers(head, of_val)
    unseen = [*zip(of_train, crossed, strict=True), *zip(of_val, val, strict=True)]
    certain = [(s, p) for s, p in unseen if s.source not in ("painted", "phantoms") and s.allowed.sum() == 1]
    if certain:
        level = unsure_below(np.stack([p for _, p in certain]), np.stack([s.allowed for s, _ in certain]))
        head = replace(head, unsure_below=np.array(level))
    return head, lesion_rows(of_train, crossed, "train, by folds", head) + lesion_rows(of_val, val, "val", head)


def only_maps(maps: Maps | None, config: Config) -> Head:
    """A head that makes maps, if there are any, and names nothing."""
    view = view_of(config)
    weights, bias = maps if maps else (np.zeros((len(ANSWERS), 0)), np.zeros(len(ANSWERS)))
    zones, empty = len(view.zones_mm) + 1, np.zeros(0)
    return Head(
        field=np.array(view.field),
        background=np.array(view.background),
        zones_mm=np.array(view.zones_mm),
        maps=weights.reshape(len(ANSWERS), zones, weights.shape[1] // zones),
        bias=bias,
        **dict.fromkeys(("mean", "scale", "weight", "offset", "unsure_below"), empty),
    )


def _torch(network: KindNetwork) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def run(slices: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(network(torch.from_numpy(slices)).numpy())

    return run


def samples_key(data: KindData, network: KindNetwork | None, config: Config) -> str:
    """Changes with all that samples of slices and lesions are made of: scans, labels, masks, network, settings."""
    digest = hashlib.sha256()
    for case in data.dataset.cases:
        label = data.labels / f"{case.name}.npz"
        digest.update(repr((case.name, case.split, case.source, data.answers[case.name].tolist())).encode())
        digest.update(label.read_bytes() if label.exists() else b"none")
    for name, values in (network.state_dict() if network else {}).items():
        digest.update(name.encode() + values.numpy().tobytes())
    scans = mark_of(data.run / "prepare")
    settings = (data.grid, config.preprocessing, config.classifier, config.seed, COPIES, SINGLES)
    return fingerprint(digest.hexdigest(), scans, *settings)


def _kept(path: Path, key: str) -> dict[str, np.ndarray] | None:
    """The samples of a file, if they are there and were made of the same (`samples_key`)."""
    if not path.exists():
        return None
    with np.load(path) as file:
        columns = dict(file)
    if str(columns.pop("key", "")) == key:
        return columns
    console.print(f"{path}: made of other data, or with another seed; made anew", markup=False, highlight=False)
    return None


def slice_samples(
    data: KindData, split: str, network: KindNetwork, config: Config, path: Path, key: str
) -> PooledSlices:
    """What the network sees of the slices of a split.

    Args:
        data: see `KindData`.
        split: ``train`` or ``val``.
        network: the slice classifier's.
        config: field of view, seed.
        path: where they are kept; what is there is taken up.
        key: of what they are made of, `samples_key`; samples of another key are made anew.
    """
    columns = _kept(path, key)
    if columns is None:
        count = len(data.dataset.part(split))
        scans = track(data.scans(split), f"kinds of slices, {split}", count, console=console)
        columns = vars(pooled_slices(scans, data.answers, network, config, paint=True))
        np.savez_compressed(path, key=np.array(key), **columns)  # type: ignore[arg-type]
    return PooledSlices(**columns)


def lesion_samples(
    data: KindData, split: str, inputs: Inputs, config: Config, path: Path, key: str
) -> list[LesionSample]:
    """Lesions of pseudo-labels, by data set, and painted ones.

    Args:
        data: see `KindData`.
        split: ``train`` or ``val``.
        inputs: what the head gets to see of lesions.
        config: working grid, seed.
        path: where they are kept; what is there is taken up.
        key: of what they are made of, `samples_key`; samples of another key are made anew.
    """
    columns = _kept(path, key)
    if columns is None:
        made: list[LesionSample] = []
        mm, source = config.preprocessing.spacing, data.source
        count = len(data.dataset.part(split))
        for case in track(data.scans(split), f"lesions, {split}", count, console=console):
            if (label := data.labels / f"{case.name}.npz").exists():
                with np.load(label) as file:
                    pair = [(case, file["mask"] > 0)]
                made += labelled_lesions(pair, data.answers, source[case.name], mm, inputs)
        rng = np.random.default_rng([config.seed, 31])
        names = [c.name for c in data.dataset.part(split) if source[c.name] != "phantoms"]
        healthy = [n for n in names if len(data.answers[n]) == 1 and data.answers[n][0, -1] == 0]
        chosen = {n for n in names if len(data.answers[n]) > 1} | set(rng.permutation(healthy)[:SINGLES].tolist())
        scans = (case for case in data.scans(split) if case.name in chosen)
        made += painted_lesions(scans, KIND_OF, COPIES, mm, inputs, config.seed)
        columns = {name: np.array([getattr(s, name) for s in made]) for name in LesionSample.__dataclass_fields__}
        np.savez_compressed(path, key=np.array(key), **columns)  # type: ignore[arg-type]
    rows = zip(*columns.values(), strict=True)
    return [LesionSample(**dict(zip(columns, row, strict=True))) for row in rows]


def _answers(head: Head, samples: list[LesionSample]) -> np.ndarray:
    return head.probabilities(np.stack([s.inputs for s in samples])) if samples else np.zeros((0, len(KINDS)))


def crossed_predictions(samples: list[LesionSample], maps: Maps | None, config: Config) -> np.ndarray:
    """Probabilities (lesion, kind) of lesions of train, each of a head that was fitted without its scan."""
    fold = folds(np.array([s.case for s in samples]), config.seed + 1)
    result = np.zeros((len(samples), len(KINDS)))
    for number in range(FOLDS):
        others = [s for s in samples if fold[s.case] != number]
        own = [i for i, s in enumerate(samples) if fold[s.case] == number]
        if own and others:
            result[own] = _answers(fitted_head(others, maps, view_of(config)), [samples[i] for i in own])
    return result


def slice_aucs(
    slices: PooledSlices, maps: tuple[np.ndarray, np.ndarray], data: KindData, split: str
) -> list[dict[str, Any]]:
    """AUC of slices for each answer with 95 % intervals, by data set; painted slices are left out."""
    slices = slices.of(~slices.painted & ~np.isin(slices.cases, list(data.not_brain)))
    logits = slices.features @ maps[0].T + maps[1]
    source = data.source
    sources = np.array([source[name] for name in slices.cases])
    rows = []
    for name in dict.fromkeys(sources.tolist()):
        for i, answer in enumerate(ANSWERS):
            own = (sources == name) & (slices.answers[:, i] != UNKNOWN)
            truth = slices.answers[own, i]
            counts = {"slices": int(own.sum()), "positive": int(truth.sum())}
            interval = auc_with_interval("auc", truth.tolist(), logits[own, i].tolist())
            rounded = {key: round(value, 3) for key, value in interval.items()}
            rows.append({"data": name, "split": split, "answer": answer, **counts, **rounded})
    return rows


def lesion_rows(samples: list[LesionSample], probabilities: np.ndarray, split: str, head: Head) -> list[Row]:
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
