"""Heads that are scanned twice, and the limits that come of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COARSE

from hemseg.compare.retest_limits import RetestLimits
from hemseg.errors import HemsegError
from hemseg.model import Model
from hemseg.volume import Volume
from training.data.datasets import Case
from training.data.phantom import write_image
from training.evaluation import retest
from training.evaluation.retest import rescan_head, rescan_phantom, retest_limits, summaries, write


def test_a_phantom_twice_is_the_same_head_turned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retest, "FIRST_GRID", COARSE)
    monkeypatch.setattr(retest, "SECOND_GRID", replace(COARSE, spacing=(2.2, 2.2, 9.0), shape=(16, 104, 104)))
    pair = rescan_phantom(1)
    assert pair.kind == "small"
    assert 0 < pair.degrees <= retest.MAX_DEGREES
    heads = [(volume.hu > -300).sum() * volume.voxel_ml for volume in (pair.first, pair.second)]
    assert heads[1] == pytest.approx(heads[0], rel=0.1)
    assert pair.first.direction == pair.second.direction  # it lies turned in the scanner


def test_a_ball_has_its_volume() -> None:
    plain = Volume(np.full((16, 60, 60), 30, np.float32), (1.0, 1.0, 5.0), (3.0, -7.0, 2.0))
    for ml in (0.3, 2.5):
        centre = np.array([33.3, 22.2, 40.1])
        added = retest._add_ball(plain, centre, ml, 70.0).hu - 30
        assert added.sum() / 40 * plain.voxel_ml == pytest.approx(ml, rel=0.05)
        z, y, x = (
            np.average(np.arange(n), weights=added.sum(axis=a)) for n, a in zip((16, 60, 60), ((1, 2), (0, 2), (0, 1)))
        )
        assert np.allclose(np.array([x, y, z]) * plain.spacing + plain.origin, centre, atol=0.3)


def test_a_real_head_twice_has_fresh_noise_and_keeps_its_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    hu = np.full((10, 48, 48), -20, np.float32)
    hu[1:9, 8:40, 8:40] = rng.normal(35, 6, (8, 32, 32)).round().clip(-20, 100)
    hu[1:9, 8:10, 8:40] = 100
    volume = Volume(hu, (4.0, 4.0, 12.0))
    write_image(hu, volume, tmp_path / "a.nii.gz")
    pair = rescan_head(Case("a", tmp_path / "a.nii.gz", "val", (0,) * 10, None))
    assert np.array_equal(pair.first.hu, hu)
    assert (pair.second.hu.min(), pair.second.hu.max()) == (-20, 100)
    assert (pair.second.hu == -20).mean() == pytest.approx((hu == -20).mean(), abs=0.1)
    assert pair.second.spacing[0] != volume.spacing[0]
    assert np.array_equal(
        rescan_head(Case("a", tmp_path / "a.nii.gz", "val", (0,) * 10, None)).second.hu, pair.second.hu
    )


def rows(pairs: list[tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"name": str(i), "kind": "real" if i % 2 else "small", "degrees": 3.0, "first_ml": a, "second_ml": b,
         "alone_first_ml": a, "alone_second_ml": 2 * b}
        for i, (a, b) in enumerate(pairs)
    ]  # fmt: skip


MEASURED = [(10.0, 10.5), (20.0, 19.0), (40.0, 42.0), (5.0, 5.0), (1.0, 1.2), (0.0, 0.0), (2.0, 1.9)]


def test_limits_of_agreement(model: Model) -> None:
    found = next(row for row in summaries(rows(MEASURED)) if row["size"] == ">= 3 mL")
    percent = np.array([0.5 / 10.25, -1 / 19.5, 2 / 41, 0]) * 100
    assert found["pairs"] == 4
    assert found["mean_percent"] == pytest.approx(percent.mean())
    assert found["high_percent"] == pytest.approx(percent.mean() + 1.96 * percent.std(ddof=1))
    assert found["within_target"] == 1.0
    limits = retest_limits(rows(MEASURED), model)
    assert (limits.pairs, limits.pairs_above, limits.sha256) == (7, 4, model.manifest.sha256)
    assert limits.low_ml == pytest.approx(1 / 30 - 1.96 * np.std([0.2, 0, -0.1], ddof=1), abs=0.01)
    alone = [row for row in summaries(rows(MEASURED)) if row["measured"] == "alone" and row["heads"] == "all"]
    assert alone[0]["within_target"] == 0
    with pytest.raises(HemsegError, match="too few"):
        retest_limits(rows(MEASURED[:5]), model)


def test_what_is_written(model: Model, tmp_path: Path) -> None:
    failed = {"name": "lost", "kind": "real", "degrees": 9.0}
    limits = write([*rows(MEASURED), failed], model, tmp_path / "out", tmp_path / "limits.json")
    assert RetestLimits(**json.loads((tmp_path / "limits.json").read_text())) == limits
    text = (tmp_path / "out" / "table.md").read_text()
    assert "Could not be aligned: lost." in text
    assert "nan" not in text
    assert len((tmp_path / "out" / "retest.csv").read_text().splitlines()) == 9
