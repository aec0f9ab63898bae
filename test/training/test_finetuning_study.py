"""What fine-tuning gains and forgets, by the number of patients."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hemseg.errors import HemsegError
from training.config import Config
from training.data.datasets import Case, DataSet
from training.experiments import finetuning as study
from training.fitting.hardware import Hardware
from training.pipeline.runner import Stage

SPLITS = ("train",) * 10 + ("val",) * 2 + ("test",) * 2
MINE = DataSet(
    "mine",
    tuple(Case(f"c{i}", Path(f"c{i}"), split, (0, 1), None, (), f"p{i // 2}") for i, split in enumerate(SPLITS)),
)


def test_smaller_groups_of_patients_lie_in_larger_ones_and_val_and_test_stay() -> None:
    assert len(study.train_patients(MINE)) == 5
    before: set[str] = set()
    for size in (1, 3, 5):
        part = study.with_train_patients(MINE, size, seed=0)
        now = {case.patient for case in part.part("train")}
        assert len(now) == size
        assert before <= now
        assert len(part.part("train")) == 2 * size  # both scans of each
        assert part.part("val", "test") == MINE.part("val", "test")
        before = now
    for size in (0, 6):
        with pytest.raises(HemsegError, match="has 5 train patients"):
            study.with_train_patients(MINE, size, seed=0)


def test_rows_are_measured_once_and_what_is_forgotten_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    old = replace(MINE, name="old")
    seen: list[str] = []

    def evaluate(dataset: DataSet, predict: str, folder: Path) -> dict[str, Any]:
        seen.append(f"{predict} {dataset.name}")
        trained = "patients" in predict
        new = {"patients_found_count": "1 of 1", "healthy_median_ml": 0.1, "healthy_with_half_ml_count": "0 of 1"}
        new |= {"false_lesions_per_scan": 0.5 if trained else 0.25}
        return new | {"slice_auc": 0.9 if trained else 0.8, "dice_mean": 0.68 if trained else 0.7}

    def stages(config: Config, dataset: DataSet, run: Path, hardware: Hardware) -> dict[str, Stage]:
        return {"export": Stage("export", (), (len(dataset.part("train")),), lambda folder: {})}

    monkeypatch.setattr(DataSet, "fingerprint", "same")
    monkeypatch.setattr(study, "evaluate", evaluate)
    monkeypatch.setattr(study, "build_stages", stages)
    monkeypatch.setattr(study, "network_predictor", lambda folder: str(folder.relative_to(tmp_path)))
    start = SimpleNamespace(hashes={"unet": "a"}, folder=tmp_path / "start" / "torch")
    monkeypatch.setattr(study, "find_initial_weights", lambda name: start if name else None)
    arguments = (MINE, [], [old], [2], tmp_path / "run", tmp_path / "out", Hardware())
    for _ in range(2):  # the second time nothing is measured again
        rows = study.finetuning(Config("finetune", init="start"), *arguments)
    assert [row["patients"] for row in rows] == [0, 2, 5]
    assert len(seen) == len(set(seen)) == 6
    with (tmp_path / "out" / "table.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert [row["Dice, old"] for row in table] == ["0.7", "0.68", "0.68"]
    assert [row["false lesions a scan, old"] for row in table] == ["0.25", "0.5", "0.5"]
    assert study.dice_lost(rows, ["old"])["old"] == pytest.approx(0.02)
    assert "old: 0.020 (too much)" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "finetuning.png").stat().st_size > 5000
    with pytest.raises(HemsegError, match="give --init"):
        study.finetuning(Config("best"), *arguments)
