"""Loss and other metrics of a training stage over its epochs, as a table and as a picture."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning as L

from hemseg.errors import HemsegError
from hemseg.io.files import atomic_write

from .hardware import rank


class History(L.Callback):
    """Writes a row of metrics after each epoch; a run that goes on keeps the rows of the epochs before."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # after the validation
        if rank() > 0:
            return
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        rows = [row for row in read_rows(self.path) if int(row["epoch"]) < trainer.current_epoch]
        rows.append({"epoch": str(trainer.current_epoch), **{k: f"{v:.6g}" for k, v in metrics.items()}})
        names = list(dict.fromkeys(name for row in rows for name in row))
        with atomic_write(self.path) as partial, partial.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=names)
            writer.writeheader()
            writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a ``metrics.csv``; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def read_metrics(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metrics of a stage's ``metrics.csv``: name -> (epoch, value), the last value of each epoch.

    Raises:
        HemsegError: the stage has not logged anything.
    """
    path = folder / "metrics.csv"
    values: dict[str, dict[int, float]] = {}
    for row in read_rows(path):
        for key, value in row.items():
            if value and key != "epoch":
                values.setdefault(key, {})[int(row["epoch"])] = float(value)
    if not values:
        raise HemsegError(f"{path}: there is no such file; the stage has not been trained.")
    return {key: sorted(by_epoch.items()) for key, by_epoch in values.items()}


def write_curves(folder: Path) -> None:
    """Draw ``curves.png`` beside ``metrics.csv``: losses on the left, scores in 0..1 on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5))
    for name, points in read_metrics(folder).items():
        axes[int("loss" not in name)].plot(*zip(*points), marker=".", label=name)
    for axis, title in zip(axes, ("loss", "score on validation")):
        axis.set_xlabel("epoch")
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    axes[1].set_ylim(0, 1)
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=110)
    plt.close(figure)
