"""What fine-tuning gains on new scans, and what it forgets of the old ones, by the number of patients to learn from.

    python -m training finetuning --config finetune --init PRETRAINED --data MINE --old A --old B \
        --patients 10 --patients 30 --run RUN --out docs/results/finetuning

PRETRAINED must not have seen MINE: leave ``--data MINE`` away when it is trained. Row 0 is PRETRAINED itself; each
other row is a run of its own below RUN, which goes on where it was stopped. Smaller groups of patients are parts of
the larger ones. All is measured on the test split of MINE and of the old data sets.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hemseg.errors import HemsegError

from ..config import Config
from ..data.datasets import DataSet, merge_datasets
from ..evaluation.evaluate import METRICS_VERSION, evaluate, network_predictor
from ..evaluation.tables import markdown_table, write_table
from ..fitting.hardware import Hardware, rank
from ..pipeline.initial_weights import find_initial_weights
from ..pipeline.recipe import build_stages
from ..pipeline.runner import Stage, run_stage

MAX_DICE_LOSS = 0.01  # on an old data set


def finetuning(
    config: Config,
    new_data: DataSet,
    extra: list[DataSet],
    old_data: list[DataSet],
    patients: list[int],
    run: Path,
    out: Path,
    hardware: Hardware,
) -> list[dict[str, Any]]:
    """Fine-tune on groups of patients and measure; writes ``table.md``, ``table.csv`` and ``finetuning.png``.

    Args:
        config: its ``init`` names the weights that have not seen ``new_data``.
        new_data: the new scans.
        extra: data sets that every run learns from, too (phantoms).
        old_data: data sets that the initial weights learned from.
        patients: sizes of the groups; all of the train split come last in any case.

    Raises:
        HemsegError: no initial weights, no train or test patients, or a group larger than the train split.
    """
    initial = find_initial_weights(config.init)
    if initial is None:
        raise HemsegError("finetuning: give --init, the weights to start from, which have not seen these scans.")
    groups = [*sorted(patients), len(train_patients(new_data))]
    measured = [new_data, *old_data]
    before = Stage(
        "before", (), (*_fingerprints(measured), *initial.hashes.values()), _measure(measured, initial.folder.parent)
    )
    rows = [{"patients": 0} | _metrics_row(run_stage(before, run, {"before": before}), new_data, old_data)]
    for size in dict.fromkeys(groups):
        place = run / f"patients{size}"
        place.mkdir(parents=True, exist_ok=True)
        stages = build_stages(
            config, merge_datasets([with_train_patients(new_data, size, config.seed), *extra]), place, hardware=hardware
        )
        after = Stage("after", ("export",), _fingerprints(measured), _measure(measured, place / "export"))
        rows.append(
            {"patients": size} | _metrics_row(run_stage(after, place, stages | {"after": after}), new_data, old_data)
        )
    if rank() == 0:
        _write(rows, config, new_data, out)
    return rows


def train_patients(dataset: DataSet) -> list[str]:
    """The patients of the train split, sorted."""
    return sorted({case.patient for case in dataset.part("train")})


def with_train_patients(dataset: DataSet, size: int, seed: int) -> DataSet:
    """The data set with so many of its train patients, and all of val and test; smaller groups lie in larger ones.

    Raises:
        HemsegError: there are not so many.
    """
    known = train_patients(dataset)
    if not 1 <= size <= len(known):
        raise HemsegError(f"{dataset.name}: has {len(known)} train patients, not {size}.")
    kept = {known[i] for i in np.random.default_rng([seed, 27]).permutation(len(known))[:size]}
    return replace(dataset, cases=tuple(c for c in dataset.cases if c.split != "train" or c.patient in kept))


def _fingerprints(datasets: list[DataSet]) -> tuple[Any, ...]:
    return METRICS_VERSION, *((d.fingerprint, d.splits) for d in datasets)


def _measure(datasets: list[DataSet], weights: Path) -> Any:
    def work(folder: Path) -> dict[str, Any]:
        predict = network_predictor(weights)
        return {dataset.name: evaluate(dataset, predict, folder / dataset.name) for dataset in datasets}

    return work


def _metrics_row(measured: dict[str, dict[str, Any]], new_data: DataSet, old_data: list[DataSet]) -> dict[str, Any]:
    """The row of a table: found and false on the new scans, Dice and false lesions on those that have masks."""
    new = measured[new_data.name]
    row = {
        "found": new.get("patients_found_count", "-"),
        "false mL, median": new.get("healthy_median_ml", float("nan")),
        "healthy with 0.5 mL": new.get("healthy_with_half_ml_count", "-"),
        "slice AUC": new["slice_auc"],
    }
    for dataset in (new_data, *old_data):
        if "dice_mean" in measured[dataset.name]:
            row[f"Dice, {dataset.name}"] = measured[dataset.name]["dice_mean"]
            row[f"false lesions a scan, {dataset.name}"] = measured[dataset.name]["false_lesions_per_scan"]
    return row


def dice_lost(rows: list[dict[str, Any]], old_data: list[str]) -> dict[str, float]:
    """The most Dice that any row loses against the first one, by old data set; negative where all rows gain."""
    return {
        name: max(rows[0][f"Dice, {name}"] - row[f"Dice, {name}"] for row in rows[1:])
        for name in old_data
        if f"Dice, {name}" in rows[0]
    }


def _write(rows: list[dict[str, Any]], config: Config, new_data: DataSet, out: Path) -> None:
    write_table(rows, out / "table.csv")
    lost = dice_lost(rows, [key.removeprefix("Dice, ") for key in rows[0] if key.startswith("Dice, ")])
    verdicts = [f"{name}: {max(0, v):.3f}{'' if v <= MAX_DICE_LOSS else ' (too much)'}" for name, v in lost.items()]
    shown = [{k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows]
    text = [
        f"`python -m training finetuning --config {config.name} --data {new_data.name}`, test splits, "
        f"seed {config.seed}. "
        f"Row 0: the weights that training started from. Dice lost at most against it: {', '.join(verdicts) or '-'}.",
        "",
        *markdown_table(shown),
        "",
    ]
    (out / "table.md").write_text("\n".join(text))
    _plot(rows, out / "finetuning.png")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Figures over the number of patients: slices on the left, Dice and false mL on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    count = [row["patients"] for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    axes[0].plot(count, [row["slice AUC"] for row in rows], marker="o", label="slice AUC")
    for key in (key for key in rows[0] if key.startswith("Dice, ")):
        axes[0].plot(count, [row[key] for row in rows], marker="o", label=key)
    axes[0].legend(fontsize=8)
    axes[1].plot(count, [row["false mL, median"] for row in rows], marker="o", color="tab:red")
    axes[1].set_ylabel("false mL in healthy patients, median")
    for axis in axes:
        axis.set_xlabel("patients to learn from")
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
