"""The check of a GPU, tried on the CPU: it must agree with itself, and must notice where it would not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks import gpu_check


def test_the_check_runs_without_a_gpu(tmp_path: Path) -> None:
    code = gpu_check.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")])
    result = json.loads((tmp_path / "gpu.json").read_text())
    rows = {(row["stage"], row["precision"]): row for row in result["stages"]}
    assert {stage for stage, _ in rows} == {"classify", "sequence", "segment"}
    assert {precision for _, precision in rows} == {"32-true", "bf16-mixed"}
    assert code == 0
    assert result["within_tolerances"]
    for (_, precision), row in rows.items():
        assert row["steps_per_second"] > 0
        assert row["memory_gb"] > 0
        if precision == "32-true":  # the CPU against itself
            assert row["loss_difference_to_cpu"] < 1e-6
            assert row["gradient_difference_to_cpu"] < 1e-6
        else:
            assert 0 < row["gradient_difference_to_cpu"] < 0.1


@pytest.mark.parametrize(
    ("loss", "gradient", "good"), [(0.0, 0.0, True), (2e-3, 0.0, False), (0.0, 2e-3, False), (float("nan"), 0.0, False)]
)
def test_what_differs_is_noticed(loss: float, gradient: float, good: bool) -> None:
    assert gpu_check.Comparison(loss, gradient).within((1e-3, 1e-3)) is good


def test_loss_and_gradients_are_compared_by_hand() -> None:
    found = gpu_check.compare((2.2, np.array([1.0, 1.0])), (2.0, np.array([1.0, 0.0])))
    assert found.loss == pytest.approx(0.1)
    assert found.gradient == pytest.approx(1 - 2**-0.5)
    assert not gpu_check.compare((1.0, np.zeros(2)), (1.0, np.ones(2))).within((1.0, 2.0))


def test_the_tolerance_is_what_the_cpu_is_from_itself() -> None:
    """A network that amplifies rounding may differ more than one that does not."""

    class Steep(torch.nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
            self.factor = factor

        def on_train_epoch_start(self) -> None:
            """Nothing to do."""

        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            return (self.factor * batch[0] * self.weight).sin().sum()

    def tolerance(factor: float) -> float:
        batches = [(torch.tensor([1.1, 0.3]), torch.zeros(1))]
        return gpu_check.compute_reference(lambda: (Steep(factor), batches)).tolerances["32-true"][1]  # type: ignore[arg-type]

    assert tolerance(1.0) == gpu_check.TOLERANCES["32-true"][1]
    assert tolerance(1e8) > gpu_check.TOLERANCES["32-true"][1]


def test_the_cpu_is_named_where_a_gpu_is_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    assert gpu_check.device_name(torch.device("cuda")) == "Some GPU"
    assert gpu_check.device_name(torch.device("cpu")).startswith("CPU (")
    assert "Some GPU" not in gpu_check.device_name(torch.device("cpu"))


def test_without_a_gpu_it_says_so(capsys: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu_check.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
