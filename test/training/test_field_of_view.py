"""What the slice classifier sees of a scan, and the kinds that its slices have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import COARSE

from hemseg.kinds import KINDS
from hemseg.preprocessing import Settings
from training.config import Classifier, Config
from training.data.datasets import Prepared, load_dataset, merge_datasets
from training.data.field_of_view import crop_field_of_view
from training.data.phantom import write_dataset
from training.data.slice_kinds import kinds_of_data_sets
from training.fitting.classifier import Volumes

CONFIG = Config(
    "test",
    preprocessing=Settings(in_plane_mm=2.0, level_hu=32.0),
    classifier=Classifier(image_size=(40, 32), field_mm=(80.0, 64.0), stripped=True, leveled=True),
)


def head(level: float) -> Prepared:
    hu = np.random.default_rng(0).normal(level, 2, (3, 50, 40)).astype(np.float32)
    inside = np.zeros(hu.shape, bool)
    inside[:, 10:40, 8:32] = True
    hu[~inside] = 1000
    return Prepared("head", "train", hu, inside, np.array([0, 1, -1], np.int8))


def test_scanners_that_differ_by_some_hu_look_alike() -> None:
    (bright, corner), (dark, _) = (crop_field_of_view(head(level), CONFIG) for level in (40.0, 28.0))
    assert corner == (5, 4)
    assert bright.shape == (3, 40, 32)
    assert np.abs(bright - dark).max() < 1e-3
    assert (bright[:, 0] == CONFIG.preprocessing.hu_range[0]).all()  # outside the skull
    plain = replace(CONFIG, classifier=replace(CONFIG.classifier, leveled=False))
    assert crop_field_of_view(head(40.0), plain)[0][:, 20, 16].mean() > 36


def test_kinds_are_read_for_data_sets_that_were_put_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_dataset(tmp_path / name, 8, seed=3, grid=replace(COARSE, shape=(8, 40, 40), spacing=(5.7, 5.7, 18.0)))
    both = merge_datasets([load_dataset(tmp_path / name) for name in ("one", "two")])
    kinds = kinds_of_data_sets(both)
    assert set(kinds) == {case.name for case in both.cases}
    for case in both.cases:
        named = {KINDS[k] for k in range(len(KINDS)) if (kinds[case.name][:, k] == 1).any()}
        assert named == set(case.subtypes)
    alone = kinds_of_data_sets(load_dataset(tmp_path / "one"))
    assert all(np.array_equal(rows, kinds[f"one_{name}"]) for name, rows in alone.items())


def test_slices_come_with_their_kinds_where_there_are_any() -> None:
    case = head(32.0)
    answers = {"head": np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1], [-1] * 6], np.int8)}
    slices = Volumes([case], CONFIG, answers).slices()
    assert slices.kinds is not None
    assert slices.kinds.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 0]]
    assert len(slices[0]) == 3
    other = Volumes([replace(case, name="other")], CONFIG, answers).slices()
    assert other.kinds is not None
    assert other.kinds.tolist() == [[0] * 5, [-1] * 5]  # a healthy slice has none, of a bleed the kind is unknown
    assert len(Volumes([case], CONFIG).slices()[0]) == 2
