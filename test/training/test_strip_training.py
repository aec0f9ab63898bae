from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED

from hemseg.strip import HU_RANGE, STRIP_MM
from training.config import Optimization, Segmenter
from training.data.datasets import load_dataset
from training.data.phantom import Grid, make_phantom, write_image
from training.evaluation.stripping import (
    enclosed_below_brain,
    heads_summary,
    intracranial_reference,
    lost_brain,
    lost_summary,
    strip_predictor,
    whole_heads_table,
)
from training.fitting.hardware import Hardware
from training.fitting.segmenter import augment_scan
from training.pipeline.strip import (
    StripCase,
    StripSlices,
    augment_head,
    paired_cases,
    phantom_case,
    placement,
    train_strip,
)

GRID = Grid((14, 64, 64), (3.6, 3.6, 12.0), lower_mm=10.0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two phantoms as whole heads, and with everything outside the skull taken away, as phe-sich does it."""
    whole, bare = (tmp_path_factory.mktemp("pair") / name for name in ("heads", "bare"))
    kinds = []
    for i in range(2):
        phantom = make_phantom(70 + i, (), GRID)
        hu = phantom.volume.hu.clip(*HU_RANGE)
        inside = phantom.intracranial
        near = np.stack([inside[z] | (hu[z] >= 100) for z in range(len(hu))])
        write_image(hu, phantom.volume, whole / "images" / f"{i}.nii.gz")
        write_image(np.where(near, hu, -20), phantom.volume, bare / "images" / f"{i}.nii.gz")
        kinds += [(str(i), z, "vault" if inside[z].sum() > 60 else "blanked") for z in range(len(hu))]
    for folder in (whole, bare):
        tables = {
            "slice_labels.csv": [("case", "slice", "hemorrhage"), *((c, z, 0) for c, z, _ in kinds)],
            "split.csv": [("case", "split"), ("0", "train"), ("1", "val")],
            "slices.csv": [("case", "slice", "kept"), *kinds],
        }
        for name, rows in tables.items():
            with (folder / name).open("w", newline="") as stream:
                csv.writer(stream).writerows(rows)
    return whole, bare


def test_whole_heads_learn_from_their_stripped_copies(pair: tuple[Path, Path], tmp_path: Path) -> None:
    whole, bare = pair
    cases = paired_cases(load_dataset(whole), load_dataset(bare), bare)
    assert [c.name for c in cases] == ["bare_0", "heads_0", "bare_1", "heads_1"]
    copy, head = cases[0], cases[1]
    assert copy.hu.shape == head.hu.shape == head.target.shape == head.weight.shape
    assert np.abs(copy.target - head.target)[copy.weight & head.weight].mean() < 0.02
    assert not head.weight.all()  # blanked slices beside those with brain teach nothing
    optimization = Optimization("adamw", lr=2e-3, batch=8, epochs=1, patience=1)
    figures = train_strip(cases, tmp_path, Hardware(), optimization=optimization)
    assert figures["train_slices"] > 10
    found = strip_predictor(None, str(tmp_path / "strip.onnx"))
    volume = make_phantom(70, (), GRID).volume
    assert found(volume).shape == volume.hu.shape


def test_the_shipped_strip_on_whole_heads_by_table(pair: tuple[Path, Path]) -> None:
    whole, bare = pair
    rows = whole_heads_table(load_dataset(whole), bare, strip_predictor(None))
    assert [row["split"] for row in heads_summary(rows)] == ["train", "val"]
    assert all(0 <= row["lost_share"] < 0.1 for row in rows)
    assert all(row["of_this_enclosed_ml"] <= row["extracranial_ml"] + 1e-6 for row in rows)


def test_a_phantoms_inside_is_its_target() -> None:
    case = phantom_case(3, seed=0)
    assert case.split == "train"
    assert case.weight.all()
    ml = float(case.target.sum(dtype=np.float64)) * STRIP_MM**2 * 5 / 1000
    assert 400 < ml < 2000


def test_slices_are_functions_of_seed_epoch_and_index() -> None:
    hu = np.full((3, 60, 50), 30, np.float16)
    hu[:, 5:10] = 100
    case = StripCase("a", "train", hu, np.ones(hu.shape, np.float16), np.ones(hu.shape, bool))
    slices = StripSlices([case], seed=1)
    same, again, other = slices[4, 1], slices[4, 1], slices[5, 1]
    assert all(np.array_equal(a, b) for a, b in zip(same, again, strict=True))
    assert not np.array_equal(same[0], other[0])
    assert same[0].shape == (3, 128, 128)
    assert float(same[0].min()) >= 0
    assert float(same[0].max()) <= 1


def test_saturated_values_stay_saturated_when_heads_are_changed() -> None:
    hu = np.full((3, 40, 40), 30, np.float32)
    hu[:, :8], hu[:, -8:] = 100, -20
    for seed in range(30):
        changed = augment_head(hu, np.ones((40, 40), np.float32), np.random.default_rng(seed))
        assert changed.min() >= -20
        assert changed.max() <= 100
        assert np.median(changed[1, 12:28]) < 60


def test_a_plane_is_put_on_the_middle_of_the_canvas() -> None:
    matrix = placement((50, 60), 128, 0.0, 1.0, (0.0, 0.0), False)
    assert matrix.tolist() == [[1, 0, 34], [0, 1, 39]]
    mirrored = placement((50, 60), 128, 0.0, 1.0, (0.0, 0.0), True)
    assert (mirrored @ [0, 0, 1]).tolist() == [93, 39]


def test_what_bone_encloses_below_brain_is_known() -> None:
    plane = np.full((60, 60), -20, np.float32)
    plane[10:40, 10:40] = 100
    plane[13:37, 13:37] = 32
    nothing, brain = np.zeros(plane.shape), np.ones(plane.shape)
    assert enclosed_below_brain(plane, nothing, brain, 99.0, 1.0)[25, 25]
    assert not enclosed_below_brain(plane, nothing, nothing, 99.0, 1.0).any()
    assert not enclosed_below_brain(plane, brain, brain, 99.0, 1.0).any()
    assert intracranial_reference(plane, "vault").sum() == 24 * 24


def test_brain_that_a_mask_lacks_is_counted_by_slice() -> None:
    phantom = make_phantom(5, (), Grid((10, 96, 96), (2.4, 2.4, 12.0)))
    kept = phantom.intracranial.copy()
    z = int(kept.sum(axis=(1, 2)).argmax())
    kept[z, :, :48] = False
    rows = [{"dataset": "d", "split": "test", "case": "c"} | row for row in lost_brain(phantom.volume, kept)]
    losing = [row["slice"] for row in rows if row["lost"] > 0.3]
    assert losing == [z]
    (summary,) = lost_summary(rows)
    assert summary["scans_losing"] == 1


def test_a_scan_is_changed_as_users_have_it() -> None:
    hu = np.full((9, 20, 20), 35, np.float32)
    inside = np.zeros(hu.shape, bool)
    inside[:, 5:15, 5:15] = True
    label = np.zeros(hu.shape, np.int8)
    label[6, 8:10, 8:10] = 1
    hu[:, 0] = 100
    rng = np.random.default_rng(0)
    for _ in range(20):
        few, mask, target = augment_scan(hu, inside, label, Segmenter(few_slices=1.0), rng)
        assert 1 <= len(few) == len(mask) == len(target) <= 5
    narrow, _, _ = augment_scan(hu, inside, label, Segmenter(narrow=1.0), rng)
    assert narrow.max() <= 100
    assert narrow.min() == 35
    _, loose, _ = augment_scan(hu, inside, label, Segmenter(loose_mask=1.0), rng)
    assert (loose & ~inside).any()
    assert not (inside & ~loose).any()
    same = augment_scan(hu, inside, label, Segmenter(), rng)
    assert all(a is b for a, b in zip(same, (hu, inside, label), strict=True))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")
def test_no_real_brain_is_lost() -> None:
    strip = strip_predictor(None)
    for name in ("067", "075", "076", "080"):  # blank slices within the stack; thin bone
        case = next(c for c in load_dataset(SHARED / "ct-ich").cases if c.name == name)
        from hemseg.scan import read

        volume = read(case.image)
        assert max(row["lost"] for row in lost_brain(volume, strip(volume))) < 0.05
