"""The paper's ablation (Table 2), with full supervision above it and a threshold without learning below.

    python -m training ablate --config phe_sich --data FOLDER --run RUN --out docs/results/ablation

Stages that rows share are run once. Stars mark metrics that are significantly better than in the row before
(two-tailed paired t-test, * p < 0.05, ** p < 0.001), as the paper has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ..config import Config
from ..console import console
from ..data.datasets import DataSet
from ..evaluation.evaluate import METRICS_VERSION, evaluate, threshold_predictor
from ..evaluation.tables import markdown_table, read_cases, write_table
from ..fitting.hardware import Hardware, rank
from ..pipeline.recipe import build_stages
from ..pipeline.runner import Stage, run_stage
from ..pipeline.train_masks import describe_mask_supervision, train_cases_with_masks
from ..stage_names import THRESHOLD_BASELINE, Variant, stage_names
from .paper_results import DIFFERS, beside_paper, with_paper_columns

ROWS: dict[str, Variant | None] = {
    "threshold without learning": None,
    "ResNet + U-Net": Variant(lstm=False, kmeans=False),
    "ResNet-LSTM + U-Net": Variant(kmeans=False),
    "ResNet + K-means + U-Net": Variant(lstm=False),
    "ResNet-LSTM + K-means + U-Net": Variant(),
    "fully supervised U-Net": Variant(reference=True),
}
METRICS = {"dice": 1, "rvd": -1, "tpr": 1, "hd": -1, "surface_dice": 1}  # and whether more is better


def rows_of(dataset: DataSet, masks: bool = False) -> dict[str, Variant | None]:
    """The rows of the table; with ``masks`` one more, whose name says of how many train cases masks were used."""
    rows = dict(ROWS)
    if masks:
        upper = rows.popitem()
        rows[f"the same + {describe_mask_supervision(train_cases_with_masks(dataset), dataset)}"] = Variant(masks=True)
        rows |= [upper]
    return rows


def ablate(
    config: Config, dataset: DataSet, run: Path, out: Path, hardware: Hardware | None = None, masks: bool = False
) -> None:
    """Run all rows and write ``table.md``, ``table.csv``, ``per_case.csv`` and ``dice.png`` to ``out``.

    Args:
        masks: add a row that is trained on the masks of train cases where there are some.
    """
    table, per_case = [], []
    before: list[dict[str, Any]] | None = None
    for name, variant in rows_of(dataset.without(config.without.segment), masks).items():
        stage, stages = _row(config, dataset, run, variant, hardware)
        metrics = run_stage(stage, run, stages)
        cases = read_cases(run / stage.name / "per_case.csv")
        table.append({"row": name, **_formatted(metrics, cases, before)})
        per_case += [{"row": name, **case} for case in cases]
        before = cases
        if rank() == 0:
            console.print(f"[bold]{name}[/bold]: Dice {metrics['dice_mean']:.3f}")
    if rank() > 0:
        return
    write_table(table, out / "table.csv")
    write_table(per_case, out / "per_case.csv")
    header = [
        f"`python -m training ablate --config {config.name} --data {dataset.name}`, test split of {dataset.name}, "
        f"{len(dataset.part('test'))} patients, seed {config.seed}. Mean ± sd per patient; * p < 0.05, ** p < 0.001 "
        "better than the row before (two-tailed paired t-test). HD: infinite ones (empty masks) are counted, "
        "the mean is over the others.",
        "",
    ]
    if beside_paper(config):
        table = with_paper_columns(table)
        header = [DIFFERS, "", *header]
    (out / "table.md").write_text("\n".join([*header, *markdown_table(table)]) + "\n")
    _plot(per_case, out / "dice.png")


def control(
    config: Config, dataset: DataSet, run: Path, hardware: Hardware | None = None
) -> dict[str, dict[str, float]]:
    """Mean Dice of the recipe, of the same with permuted slice labels (`data.permuted`), and of the threshold.

    Returns:
        By row and data set.
    """
    rows = {
        "slice labels": Variant(),
        "permuted slice labels": Variant(permuted=True),
        "threshold without learning": None,
    }
    result = {}
    for name, variant in rows.items():
        stage, stages = _row(config, dataset, run, variant, hardware)
        metrics = run_stage(stage, run, stages)
        means = {key.removesuffix("dice_mean").strip(): value for key, value in metrics.items() if "dice_mean" in key}
        result[name] = {source: float(value) for source, value in means.items() if "surface" not in source}
    return result


def _row(
    config: Config, dataset: DataSet, run: Path, variant: Variant | None, hardware: Hardware | None
) -> tuple[Stage, dict[str, Stage]]:
    if variant is not None:
        stages = build_stages(config, dataset, run, variant, hardware)
        return stages[stage_names(variant).evaluate], stages
    stage = Stage(
        THRESHOLD_BASELINE,
        (),
        (config.preprocessing, dataset.fingerprint, dataset.splits, METRICS_VERSION),
        lambda folder: evaluate(dataset, threshold_predictor(config.preprocessing), folder),
    )
    return stage, {stage.name: stage}


def _formatted(
    metrics: dict[str, Any], cases: list[dict[str, Any]], before: list[dict[str, Any]] | None
) -> dict[str, str]:
    shown = {}
    for key, sign in METRICS.items():
        stars = significance(cases, before, key, sign) if before else ""
        mean, spread = metrics.get(f"{key}_mean", float("nan")), metrics.get(f"{key}_sd", float("nan"))
        extra = f" ({metrics['hd_infinite']} inf)" if key == "hd" and metrics["hd_infinite"] else ""
        shown[key] = f"{mean:.2f} ± {spread:.2f}{stars}{extra}"
    shown["dice median"] = f"{metrics['dice_median']:.2f}"
    shown["lesions found"] = f"{metrics['lesions_found']:.2f} of {metrics['lesions']}"
    shown["false lesions a scan"] = f"{metrics['false_lesions_per_scan']:.2f}"
    shown["slice AUC"] = f"{metrics['slice_auc']:.3f}"
    return shown


def significance(cases: list[dict[str, Any]], before: list[dict[str, Any]], key: str, sign: int) -> str:
    """Stars of a two-tailed paired t-test against the row before, only where this row is the better one."""
    a, b = (np.array([case[key] for case in rows]) for rows in (cases, before))
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 2 or np.allclose(a[known], b[known]):
        return ""
    test = stats.ttest_rel(a[known], b[known])
    if test.pvalue >= 0.05 or sign * (a[known].mean() - b[known].mean()) <= 0:
        return ""
    return "\\*\\*" if test.pvalue < 0.001 else "\\*"


def _plot(per_case: list[dict[str, Any]], path: Path) -> None:
    """Dice of every patient, a column a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(case["row"] for case in per_case))
    figure, axes = plt.subplots(figsize=(9, 4.5))
    values = [[case["dice"] for case in per_case if case["row"] == name] for name in names]
    axes.boxplot(values, showmeans=True)
    for i, column in enumerate(values, start=1):
        jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(column))
        axes.plot(i + jitter, column, ".", color="tab:red", alpha=0.5)
    axes.set_xticks(range(1, len(names) + 1), [name.replace(" + ", "\n+ ") for name in names], fontsize=8)
    axes.set_ylabel("Dice per patient")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
