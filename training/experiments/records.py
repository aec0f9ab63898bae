"""All experiments in one table, made from small committed files.

    python -m training record best --run runs/best --recipe "components, both data sets, phantoms" --order 4
    python -m training experiments

``record`` writes ``docs/results/runs/<id>.json``: recipe, hash of the configuration, seed, minutes, Dice of the
pseudo-labels on val, metrics and Dice per patient on test. ``experiments`` makes ``docs/results/experiments.md``.
Of the first runs the printed row is all that was kept: their files have ``row``, as it stands in the table.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from hemseg.errors import HemsegError

from ..evaluation.tables import markdown_table, read_cases

RUNS = Path("docs/results/runs")
TABLE = Path("docs/results/experiments.md")
KEPT = (
    "cases",
    "outlined",
    "dice_mean",
    "dice_sd",
    "dice_median",
    "rvd_mean",
    "rvd_median",
    "tpr_mean",
    "lesions",
    "lesions_found",
    "false_lesions_per_scan",
    "slice_auc",
    "classifier_slice_auc",
    "patients_found",
    "patients_found_count",
    "healthy_median_ml",
    "healthy_with_half_ml",
    "healthy_with_half_ml_count",
)


def gather(evaluation: Path) -> dict[str, Any]:
    """Figures and per-patient Dice of an evaluation's folder, by data set.

    Raises:
        HemsegError: there is no evaluation.
    """
    found = sorted(evaluation.glob("**/summary.json"))
    if not found:
        raise HemsegError(f"{evaluation}: holds no evaluation; run `python -m training evaluate` first.")
    result = {}
    for path in found:
        metrics = json.loads(path.read_text())
        name = metrics["dataset"]
        rows = read_cases(path.parent / "per_case.csv")
        dice = {row["case"].removeprefix(f"{name}_"): row["dice"] for row in rows if "dice" in row}
        result[name] = {
            "split": metrics["split"],
            "figures": {k: metrics[k] for k in KEPT if k in metrics},
            "dice": dice,
        }
    return result


def table(runs: Path = RUNS) -> list[dict[str, str]]:
    """A row for each recorded experiment, in their order."""
    records = [json.loads(path.read_text()) for path in runs.glob("*.json")]
    records.sort(key=lambda record: (record["order"], record["id"]))
    rows: list[dict[str, str]] = []
    before: dict[str, Any] = {}
    for record in records:
        if "row" in record:
            rows.append(record["row"])
            before = {}
            continue
        phe, ct = (record["test"].get(name, {"figures": {}, "dice": {}}) for name in ("phe-sich", "ct-ich"))
        a, b = phe["figures"], ct["figures"]
        labels = record.get("label_dice_val", {})
        rows.append(
            {
                "id": record["id"],
                "recipe": record["recipe"],
                "supervision": record.get("supervision", "slice labels"),
                "selection": record.get("selection", "") or "-",
                "pseudo-label Dice, val": _number(labels.get("phe-sich")),
                "Dice, phe-sich test": f"{_number(a.get('dice_mean'))} ± {_number(a.get('dice_sd'))}",
                "p against the row before": _against(phe["dice"], before),
                "RVD median": _number(a.get("rvd_median")),
                "TPR": _number(a.get("tpr_mean")),
                "lesions found": _number(a.get("lesions_found")),
                "false lesions a scan": _number(a.get("false_lesions_per_scan")),
                "slice AUC phe / ct": f"{_number(a.get('slice_auc'), 3)} / {_number(b.get('slice_auc'), 3)}",
                "ct-ich found": str(b.get("patients_found_count", "-")),
                "ct-ich healthy ≥ 0.5 mL": str(b.get("healthy_with_half_ml_count", "-")),
                "minutes": _number(record.get("minutes"), 0),
            }
        )
        before = phe["dice"]
    return rows


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _against(dice: dict[str, float], before: dict[str, float]) -> str:
    common = [name for name in dice if name in before]
    a, b = np.array([dice[name] for name in common]), np.array([before[name] for name in common])
    if len(common) < 3 or np.allclose(a, b):
        return "-"
    return f"{stats.ttest_rel(a, b).pvalue:.2g} ({np.mean(a - b):+.3f})"


def write_experiments(runs: Path = RUNS, target: Path = TABLE) -> None:
    """Write the table as Markdown.

    Raises:
        HemsegError: nothing was recorded.
    """
    rows = table(runs)
    if not rows:
        raise HemsegError(f"{runs}: holds no recorded experiment.")
    text = [
        "# Experiments",
        "",
        "Made by `python -m training experiments` from `docs/results/runs/*.json`. Test splits: phe-sich 20 patients;",
        "ct-ich as the row's record says. p: two-tailed paired t-test on Dice, with the difference of the means.",
        "Rows `best...` are of an earlier `best.yaml`, not of the weights that ship (weights/MODEL_CARD.md).",
        "Column `selection`: what val reference masks or phantom masks were used for; `-` is nothing.",
        "",
        *markdown_table(rows),
        "",
    ]
    target.write_text("\n".join(text))
