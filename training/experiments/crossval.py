"""Cross-validation by patient: disjoint test sets of 20 %, the rest split 70/10.

    python -m training crossval --config phe_sich --data FOLDER --run RUN --folds 3 --out docs/results/crossval

Every fold is a run of its own, ``RUN/fold1`` and so on, which resumes like any other; the prepared scans are shared.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hemseg.errors import HemsegError

from ..config import Config
from ..data.datasets import DataSet
from ..evaluation.metrics import summary
from ..evaluation.tables import markdown_table, read_cases, write_table
from ..fitting.hardware import Hardware, rank
from ..pipeline.recipe import build_stages
from ..pipeline.runner import run_stage
from ..stage_names import stage_names
from .paper_results import DIFFERS, beside_paper, crossvalidation_row

TEST, VAL = 0.2, 0.1  # of all patients


def split_into_folds(dataset: DataSet, folds: int, seed: int) -> list[DataSet]:
    """The data set with the split of each fold; a patient's scans stay together.

    Raises:
        HemsegError: more folds than there are disjoint test sets of a fifth of the patients.
    """
    patients = sorted({case.patient for case in dataset.cases})
    size = round(TEST * len(patients))
    if folds < 1 or size < 1 or folds * size > len(patients):
        raise HemsegError(f"{len(patients)} patients have no {folds} disjoint test sets of a fifth of them.")
    order = [patients[i] for i in np.random.default_rng([seed, 6]).permutation(len(patients))]
    made = []
    for fold in range(folds):
        test = order[fold * size : (fold + 1) * size]
        rest = [p for p in order if p not in test]
        turned = rest[fold * size % len(rest) :] + rest[: fold * size % len(rest)]  # other patients to validate on
        val = turned[: max(1, round(VAL * len(patients)))]
        part = {p: "test" if p in test else "val" if p in val else "train" for p in patients}
        made.append(replace(dataset, cases=tuple(replace(c, split=part[c.patient]) for c in dataset.cases)))
    return made


def crossvalidate(config: Config, dataset: DataSet, run: Path, folds: int, out: Path, hardware: Hardware) -> None:
    """Run all folds; writes ``table.md``, ``table.csv`` and ``per_case.csv`` to ``out``.

    Args:
        config: the recipe.
        dataset: all patients; its own split is not used.
        run: the folder of the run, with a folder per fold.
        folds: disjoint test sets.
        out: the folder of the tables.
        hardware: what to train on.

    Raises:
        HemsegError: more folds than there are disjoint test sets.
    """
    per_case: list[dict[str, Any]] = []
    table = []
    names = stage_names()
    shared = build_stages(config, dataset, run, hardware=hardware)
    run_stage(shared[names.prepare], run, shared)
    for number, fold in enumerate(split_into_folds(dataset, folds, config.seed), start=1):
        place = run / f"fold{number}"
        place.mkdir(exist_ok=True)
        if not (place / names.prepare).exists() and rank() == 0:
            (place / names.prepare).symlink_to(Path("..") / names.prepare, target_is_directory=True)
        stages = build_stages(config, fold, place, hardware=hardware)
        run_stage(stages[names.evaluate], place, stages)
        cases = read_cases(place / names.evaluate / "per_case.csv")
        per_case += [{"fold": number, **case} for case in cases]
        table.append({"fold": str(number), **_formatted(cases)})
    table.append({"fold": "all", **_formatted(per_case)})
    if rank() > 0:
        return
    write_table(per_case, out / "per_case.csv")
    write_table(table, out / "table.csv")
    command = f"python -m training crossval --config {config.name} --data {dataset.name} --folds {folds}"
    text = f"`{command}`, seed {config.seed}. Mean ± sd per patient."
    if beside_paper(config):
        table.append(crossvalidation_row(list(table[0])))
        text += f" {DIFFERS}"
    (out / "table.md").write_text("\n".join([text, "", *markdown_table(table)]) + "\n")


def _formatted(cases: list[dict[str, Any]]) -> dict[str, str]:
    keys = ("dice", "rvd", "tpr", "hd", "surface_dice")
    metrics = summary(cases, keys)
    shown = {"patients": str(len(cases))}
    for key in keys:
        if f"{key}_mean" in metrics:
            shown[key] = f"{metrics[f'{key}_mean']:.2f} ± {metrics[f'{key}_sd']:.2f}"
        else:
            shown[key] = "-"
    return shown
