from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import COARSE, OBLIQUE, ROOT

from hemseg.volume import read
from training.phantom import IDENTITY, KINDS, Grid, cases, make_phantom, write_dataset
from training.samples import CASES


def test_a_phantom_is_a_function_of_its_seed() -> None:
    a, b, c = (make_phantom(seed, ("subdural",), COARSE) for seed in (1, 1, 2))
    assert np.array_equal(a.volume.hu, b.volume.hu)
    assert np.array_equal(a.mask, b.mask)
    assert not np.array_equal(a.mask, c.mask)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hemorrhage_shows_where_the_truth_says(kind: str) -> None:
    sick, healthy = make_phantom(4, (kind,), COARSE), make_phantom(4, (), COARSE)
    truth = sick.mask.astype(bool)
    millilitres = truth.sum() * sick.volume.voxel_ml
    assert 0.5 < millilitres < 150
    blood = sick.volume.hu[truth]
    assert 42 < np.median(blood) < 80
    assert np.median(blood) > np.median(healthy.volume.hu[truth]) + 10
    assert not healthy.mask.any()
    assert list(sick.truth) == [kind]


def test_the_head_has_its_parts_in_full_hu() -> None:
    hu = make_phantom(8, (), Grid((28, 128, 128), (1.8, 1.8, 5.0))).volume.hu
    assert hu.min() == -1000
    assert hu.max() > 1000  # cortical bone
    assert hu.max() <= 3071
    middle = hu[14, 34:94, 44:84]
    for low, high in ((2, 16), (24, 33), (34, 42)):  # CSF, white matter, gray matter
        assert ((middle > low) & (middle < high)).mean() > 0.005
    assert np.array_equal(hu, np.round(hu))


def test_calcifications_and_headrest() -> None:
    calcified = [make_phantom(seed, (), COARSE).volume.hu for seed in range(6)]
    assert any((hu[5:11, 44:70, 30:66] > 90).any() for hu in calcified)
    with_rest, without = (make_phantom(3, (), COARSE, headrest=h).volume.hu for h in (True, False))
    different = with_rest != without
    assert different.any()
    assert np.flatnonzero(different.any(axis=(0, 2))).min() > 48  # behind the head only


def test_noise_is_correlated_and_as_large_as_asked() -> None:
    quiet, loud = (make_phantom(3, (), COARSE, noise_hu=n).volume.hu for n in (0.0, 6.0))
    noise = (loud - quiet)[8, 38:58, 38:58]
    assert 4 < noise.std() < 8
    assert np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1] > 0.3


def test_partial_volume_of_thick_slices() -> None:
    grid = Grid((28, 128, 128), (1.8, 1.8, 5.0))
    phantom = make_phantom(3, ("intraparenchymal",), grid, noise_hu=0)
    some = phantom.volume.hu[phantom.mask.astype(bool)]
    assert ((some > 40) & (some < some.max() - 8)).any()  # blood that fills a voxel only in part


@pytest.mark.parametrize(
    "grid",
    [
        COARSE,
        Grid((60, 80, 80), (2.9, 2.9, 2.4)),
        Grid((16, 96, 96), (2.4, 2.4, 9.0), OBLIQUE),
        Grid((5, 64, 80), (3, 2.5, 9)),
    ],
)
def test_grids(grid: Grid) -> None:
    phantom = make_phantom(3, ("intraparenchymal",), grid)
    assert phantom.volume.hu.shape == phantom.mask.shape == grid.shape
    assert phantom.volume.spacing == grid.spacing
    assert phantom.volume.direction == grid.direction


def test_the_same_head_on_two_grids_holds_the_same_blood() -> None:
    a = make_phantom(3, ("intraparenchymal",), Grid((30, 110, 110), (2.1, 2.1, 5.0)))
    b = make_phantom(3, ("intraparenchymal",), Grid((60, 110, 110), (2.1, 2.1, 2.5), IDENTITY))
    assert a.mask.sum() * a.volume.voxel_ml == pytest.approx(b.mask.sum() * b.volume.voxel_ml, rel=0.1)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown kinds"):
        make_phantom(0, ("stroke",), COARSE)


def test_a_data_set_of_phantoms(tmp_path: Path) -> None:
    write_dataset(tmp_path, 6, seed=1, grid=Grid((6, 40, 40), (6, 6, 20)))
    images = sorted(p.name for p in (tmp_path / "images").iterdir())
    assert images == sorted(p.name for p in (tmp_path / "masks").iterdir())
    rows = list(csv.DictReader((tmp_path / "slice_labels.csv").open()))
    assert len(rows) == 6 * 6
    for name in images:
        mask = read(tmp_path / "masks" / name).hu
        labels = [int(r["hemorrhage"]) for r in rows if r["case"] == name.split(".")[0]]
        assert labels == mask.any(axis=(1, 2)).astype(int).tolist()
    assert any(not kinds for _, _, kinds in cases(6, 1))


def test_the_samples_are_what_their_command_makes() -> None:
    name = "phantom-healthy.nii.gz"
    seed, kinds, grid = CASES[name]
    assert np.array_equal(read(ROOT / "test" / "cases" / name).hu, make_phantom(seed, kinds, grid).volume.hu)
    assert {p.name for p in (ROOT / "test" / "cases").iterdir()} == set(CASES)
    assert {p.name for p in (ROOT / "test" / "expected").iterdir()} == set(CASES)
    assert {p.name for p in (ROOT / "test" / "truth").iterdir()} == {f"{n.split('.')[0]}.nii.gz" for n in CASES}
