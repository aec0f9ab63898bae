"""The confusion matrix of kinds, one panel per data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hemseg.kinds import KINDS, UNSURE

from .kinds import confusion

SHORT = ("IPH", "IVH", "SAH", "SDH", "EDH", UNSURE)


def write_confusion(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the plot: counts, coloured by their share of the row (the true kind)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys((row["data"], row["split"]) for row in rows))
    tables = {group: confusion([r for r in rows if (r["data"], r["split"]) == group]) for group in groups}
    tables = {group: table for group, table in tables.items() if table.sum()}
    if not tables:
        return
    figure, axes = plt.subplots(1, len(tables), figsize=(2.9 * len(tables), 3.0), squeeze=False)
    for axis, ((data, split), table) in zip(axes[0], tables.items(), strict=True):
        share = table / np.maximum(1, table.sum(axis=1, keepdims=True))
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.argwhere(table):
            axis.text(j, i, str(table[i, j]), ha="center", va="center", color="w" if share[i, j] > 0.6 else "k")
        axis.set_xticks(range(len(SHORT)), SHORT, rotation=60)
        axis.set_yticks(range(len(KINDS)), SHORT[: len(KINDS)])
        axis.set_title(f"{data} {split}".strip(), fontsize=9)
    axes[0, 0].set_ylabel("truth")
    axes[0, len(tables) // 2].set_xlabel("called")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
