"""The paper's figures beside ours, and what of the paper `paper_cpu` keeps."""

from __future__ import annotations

from dataclasses import replace

from training.config import load_config
from training.evaluation.tables import markdown_table
from training.experiments.ablation import ROWS
from training.experiments.paper_results import ABLATION, beside_paper, crossvalidation_row, with_paper_columns


def test_tables_of_the_papers_configurations_show_its_figures() -> None:
    assert set(ABLATION) < set(ROWS)
    table = with_paper_columns([{"row": name, "dice": "0.5"} for name in ROWS])
    assert len({line.count(" | ") for line in markdown_table(table)} - {0}) == 1
    assert {row["row"]: row["paper: dice"] for row in table}["ResNet + U-Net"] == "0.14 ± 0.17"
    assert crossvalidation_row(["fold", "patients", "dice", "hd"])["dice"] == "0.47 ± 0.30"
    assert [beside_paper(load_config(name)) for name in ("paper", "paper_cpu", "best")] == [True, True, False]


def test_what_is_scaled_on_two_cores_is_resolution_backbone_and_epochs_alone() -> None:
    paper, cpu = load_config("paper"), load_config("paper_cpu")
    assert (cpu.cam, cpu.pseudolabels, cpu.self_training) == (paper.cam, paper.pseudolabels, paper.self_training)
    assert (cpu.classifier.stripped, cpu.classifier.augment, cpu.classifier.field_mm) == (
        paper.classifier.stripped,
        paper.classifier.augment,
        paper.classifier.field_mm,
    )
    for ours, theirs, by, scaled in (
        (cpu.classifier.optimization, paper.classifier.optimization, 10, True),
        (cpu.sequence.optimization, paper.sequence.optimization, 10, True),
        (cpu.segmenter.optimization, paper.segmenter.optimization, 4, False),  # Adam's rate is no length of a step
    ):
        assert ours.epochs * by == theirs.epochs
        lr = theirs.lr * by if scaled else theirs.lr
        like = replace(theirs, lr=lr, epochs=ours.epochs, patience=ours.patience, micro_batch=ours.micro_batch)
        assert ours == like
    cells = [c.classifier.image_size[0] / c.classifier.output_stride for c in (cpu, paper)]
    assert cells == [16, 16]
    assert cpu.preprocessing.channels == paper.preprocessing.channels
    assert cpu.preprocessing.skull_percentile == paper.preprocessing.skull_percentile
