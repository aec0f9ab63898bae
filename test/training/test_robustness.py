from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import COARSE

from hemseg.model import Model
from hemseg.volume import Volume
from training.data.datasets import load_dataset
from training.data.phantom import Grid, make_phantom, write_dataset
from training.evaluation.operating_point import SLICES, operating_points, points, write_froc
from training.evaluation.robustness import allowed_space, change_summary, changed_scans, few_slices, few_summary
from training.evaluation.scan_changes import (
    CHANGES,
    cut_slices,
    hu_shift,
    in_plane_blur,
    jpeg_round_trip,
    quarter_turn,
    streak_artefact,
    white_noise,
    window_change,
)


def test_changes_change_what_they_say() -> None:
    hu = np.array([-20.0, 0.0, 35.0, 100.0], np.float32).reshape(1, 2, 2)
    volume = Volume(hu)
    assert window_change(0, 80).apply(volume).hu.ravel().tolist() == [0, 0, 35, 80]
    assert hu_shift(5).apply(volume).hu.ravel().tolist() == [-20, 5, 40, 100]
    turned = quarter_turn(1)
    assert np.array_equal(turned.apply(volume).hu, turned.carry(hu))
    assert turned.carry(hu)[0].tolist() == [[0, 100], [-20, 35]]
    assert len({(c.kind, c.name) for c in CHANGES}) == len(CHANGES)


def test_artefacts_are_as_strong_as_they_say() -> None:
    volume = make_phantom(1, (), Grid((6, 64, 64), (3.4, 3.4, 20.0))).volume
    volume = window_change(-20, 100).apply(volume)
    for change, least, most in (
        (in_plane_blur(1.5), 1.0, 30.0),
        (white_noise(5.0), 1.5, 5.5),
        (jpeg_round_trip(20), 0.5, 12.0),
        (jpeg_round_trip(95), 0.05, 2.0),
        (streak_artefact(100.0), 0.5, 60.0),
    ):
        changed = change.apply(volume).hu
        assert changed.shape == volume.hu.shape
        assert changed.dtype == np.float32
        assert volume.hu.min() - 0.5 <= changed.min() <= changed.max() <= volume.hu.max() + 0.5
        assert least < float(np.sqrt(((changed - volume.hu) ** 2).mean())) < most, change.name


def test_cut_slices_lie_where_they_lay() -> None:
    volume = make_phantom(1, (), Grid((8, 32, 32), (6.0, 6.0, 15.0))).volume
    part = cut_slices(volume, slice(3, 5))
    assert part.hu.shape == (2, 32, 32)
    assert part.origin[2] == pytest.approx(volume.origin[2] + 3 * 15.0)


def test_blood_may_lie_inside_the_skull_and_nowhere_else() -> None:
    bare = np.full((7, 40, 40), -20.0, np.float32)
    bare[5:, 10:30, 10:30] = 100
    bare[5:, 13:27, 13:27] = 30
    allowed = allowed_space(bare, ["blanked"] * 5 + ["vault"] * 2, (7, 20, 20), 2.0)
    assert not allowed[:3].any()  # far from the brain
    assert allowed[3:5].all()  # it may reach there
    assert allowed[5, 10, 10]
    assert not allowed[5, 2, 2]


def test_tables_of_changed_and_cut_scans(model: Model, tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, seed=3, grid=COARSE, split=(0.0, 0.0))
    dataset = load_dataset(tmp_path)
    changes = (window_change(-20, 100), hu_shift(5))
    rows = changed_scans(dataset, "test", model, changes=changes)
    assert len(rows) == 2
    first, second = change_summary(rows, set())
    assert first["scans"] == second["scans"] == 1
    assert first["volume_change_most"] == 0
    assert second["volume_change_most"] < 0.5
    few = few_summary(few_slices(dataset, "test", model))
    assert [row["slices"] for row in few] == [1, 2, 3, 5, 8]
    assert all(0 <= row["dice_to_whole"] <= 1 for row in few)


def test_no_more_slices_are_cut_than_a_scan_has(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, 1, seed=3, grid=Grid((5, 32, 32), (7.2, 7.2, 28.0)), split=(0.0, 0.0))
    seen: list[Volume] = []

    def nothing(volume: Volume, model: Model) -> SimpleNamespace:
        seen.append(volume)
        return SimpleNamespace(mask=np.zeros(volume.hu.shape, np.uint8))

    monkeypatch.setattr("training.evaluation.robustness.check_and_segment", nothing)
    rows = few_slices(load_dataset(tmp_path), "test", model)
    assert [row["slices"] for row in rows] == [1, 2, 3, 5]
    assert [len(volume.hu) for volume in seen] == [5, 1, 2, 3, 5]
    assert seen[-1].origin == seen[0].origin
    last = few_summary(rows)[-1]
    assert (last["slices"], last["scans"], last["found_of_large"]) == (8, 0, "0 of 0")
    assert np.isnan(last["dice"])


def test_operating_points_on_val(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path, 2, seed=3, grid=COARSE, split=(0.0, 1.0))
    fixed = {"threshold": 0.3, "min_lesion_ml": 0.1, "min_slice_probability": 0.0}
    few = [fixed | {"min_peak": p} for p in (0.6, 1.01)]
    monkeypatch.setattr("training.evaluation.operating_point.points", lambda classifier: list(few))
    rows = operating_points(load_dataset(tmp_path), model)
    assert [row["min_peak"] for row in rows[:2]] == [0.6, 1.01]
    assert len(rows) == 2 + 1 + len(model.manifest.operating_points)  # the weights' own points come after
    assert rows[0]["ill"] + rows[0]["healthy"] == 2
    assert rows[0]["found"] >= 1
    assert rows[1]["found"] == 0  # no peak is that high
    write_froc(rows, model.manifest, tmp_path / "froc.png")
    assert (tmp_path / "froc.png").stat().st_size > 5000
    assert all(point["min_peak"] > point["threshold"] for point in points())
    assert len(points(classifier=True)) == len(SLICES) * len(points())
