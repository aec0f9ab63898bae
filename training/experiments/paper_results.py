"""The paper's results, to stand beside ours in tables of the paper's configurations (its Tables 1 and 2).

They were measured on INSTANCE 2022 (512 x 512, five kinds of hemorrhage, expert outlines), ours on other data with
other references: they say what to expect of the method, and are no comparison.
"""

from __future__ import annotations

from ..config import Config

CROSSVALIDATION = {"dice": "0.47 ± 0.30", "rvd": "1.05 ± 1.22", "tpr": "0.48"}
ABLATION = {
    "ResNet + U-Net": {"dice": "0.14 ± 0.17", "rvd": "3.15 ± 3.69", "tpr": "0.11"},
    "ResNet-LSTM + U-Net": {"dice": "0.31 ± 0.23**", "rvd": "1.54 ± 1.37*", "tpr": "0.32*"},
    "ResNet + K-means + U-Net": {"dice": "0.18 ± 0.20", "rvd": "0.82 ± 0.54", "tpr": "0.24"},
    "ResNet-LSTM + K-means + U-Net": {"dice": "0.57 ± 0.26**", "rvd": "0.37 ± 0.32**", "tpr": "0.48*"},
}
DIFFERS = (
    "Rows and columns named *paper* are the paper's own (its Table 2: 100 scans of INSTANCE 2022, 512 x 512, expert "
    "outlines). They were measured on other scans against other references; the configuration says line by line what "
    "is scaled."
)


def beside_paper(config: Config) -> bool:
    """Whether a configuration has the paper's steps and values, so that its tables show the paper's results, too."""
    return config.name.startswith("paper")


def crossvalidation_row(keys: list[str]) -> dict[str, str]:
    """The paper's cross-validation as a row of a table with these columns."""
    known = {"fold": "paper, INSTANCE 2022", "patients": "60"} | CROSSVALIDATION
    return {key: known.get(key, "-") for key in keys}


def with_paper_columns(table: list[dict[str, str]]) -> list[dict[str, str]]:
    """An ablation's table with the paper's results as further columns."""
    none = dict.fromkeys(("dice", "rvd", "tpr"), "-")
    return [
        row | {f"paper: {key}": value.replace("*", "\\*") for key, value in ABLATION.get(row["row"], none).items()}
        for row in table
    ]
