from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import COARSE, OBLIQUE, ROOT
from scipy import ndimage

from hemseg.scan import read
from training.data.anatomy import Options
from training.data.head_space import IDENTITY
from training.data.phantom import KINDS, Grid, Phantom, cases, make_phantom, protocol, write_dataset
from training.evaluation.samples import CASES

WHOLE = Grid((18, 80, 80), (3.0, 3.0, 10.0), lower_mm=20)  # from the vertex to the neck


def millilitres(mask: np.ndarray, phantom: Phantom) -> float:
    return float(mask.sum()) * phantom.volume.voxel_ml


def test_a_phantom_is_a_function_of_its_seed() -> None:
    a, b, c = (make_phantom(seed, ("subdural",), COARSE) for seed in (1, 1, 2))
    assert np.array_equal(a.volume.hu, b.volume.hu)
    assert np.array_equal(a.mask, b.mask)
    assert not np.array_equal(a.mask, c.mask)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_hemorrhage_shows_where_the_truth_says(kind: str) -> None:
    sick, healthy = make_phantom(4, (kind,), COARSE), make_phantom(4, (), COARSE)
    truth = sick.mask.astype(bool)
    assert 0.5 < millilitres(truth, sick) < 150
    assert np.array_equal(sick.intracranial, healthy.intracranial)
    assert not (truth & ~ndimage.binary_dilation(sick.intracranial)).any()
    blood = sick.volume.hu[truth]
    assert 42 < np.median(blood) < 80
    assert np.median(blood) > np.median(healthy.volume.hu[truth]) + 10
    assert not healthy.mask.any()
    assert list(sick.truth) == [kind]


def test_the_head_has_its_parts_in_full_hu() -> None:
    hu = make_phantom(8, (), Grid((28, 128, 128), (1.8, 1.8, 5.0))).volume.hu
    assert hu.min() == -1000
    assert ((hu > -110) & (hu < -75)).mean() > 0.005  # fat
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


@pytest.mark.parametrize("seed", range(5))
def test_the_cranial_cavity_of_an_adult(seed: int) -> None:
    phantom = make_phantom(seed, (), WHOLE, noise_hu=0)
    inside, hu = phantom.intracranial, phantom.volume.hu
    assert 1100 < millilitres(inside, phantom) < 1700
    core = ndimage.binary_erosion(inside, np.ones((1, 3, 3)))
    assert 27 < np.median(hu[core]) < 38
    assert (hu[core] < -5).mean() < 0.001  # no sinus, no orbit; some air cells of the petrous bone in part
    _, pieces = ndimage.label(inside, np.ones((3, 3, 3)))
    assert pieces == 1
    areas = inside.sum(axis=(1, 2))
    assert not areas[:3].any()  # jaw and neck
    assert not areas[-1]
    below = np.flatnonzero(areas)[0]
    assert areas[below : below + 2].max() < 0.5 * areas.max()  # the posterior fossa narrows to the foramen magnum


def test_muscles_lie_against_the_base_of_the_skull() -> None:
    phantom, bare = (make_phantom(2, (), WHOLE, False, 0, Options(face=face)) for face in (True, False))
    assert np.array_equal(phantom.intracranial, bare.intracranial)
    soft = (phantom.volume.hu > 52) & (phantom.volume.hu < 68) & ~phantom.intracranial
    assert millilitres(soft, phantom) > 100
    near = ndimage.binary_dilation(phantom.volume.hu > 300, np.ones((3, 3, 3)), iterations=2)
    assert millilitres(soft & near, phantom) > 50
    low = slice(0, int(np.flatnonzero(phantom.intracranial.any(axis=(1, 2)))[0]) + 6)
    assert (phantom.volume.hu[low] < -500)[:, 20:60, 25:55].any()  # nose, sinuses, pharynx
    without = (bare.volume.hu > 52) & (bare.volume.hu < 68) & ~bare.intracranial
    assert soft[low].sum() > 5 * without[low].sum()
    assert (phantom.volume.hu > 1300).any()  # teeth


def test_skulls_of_children() -> None:
    adult, child, infant = (make_phantom(2, (), WHOLE, options=Options(skull=s)) for s in ("adult", "child", "infant"))
    volumes = [millilitres(p.intracranial, p) for p in (adult, child, infant)]
    assert volumes[0] > volumes[1] > volumes[2] > 350
    assert volumes[2] < 850
    fine = Grid((2, 230, 230), (0.9, 0.9, 5.0), lower_mm=-35)
    planes = [make_phantom(2, (), fine, options=Options(skull=s)).volume.hu[1] for s in ("adult", "child", "infant")]
    bone = [np.median(plane[plane > 100]) for plane in planes]
    assert bone[0] > 600
    assert 150 < bone[1] < 450
    assert 100 < bone[2] < 300
    pieces = [ndimage.label(plane > 100)[1] for plane in planes]
    assert pieces[:2] == [1, 1]
    assert pieces[2] > 3  # frontal, parietal and occipital bones, apart


def test_craniectomy() -> None:
    whole, open_ = (make_phantom(2, (), WHOLE, options=Options(craniectomy=c)) for c in (False, True))
    assert np.array_equal(whole.intracranial, open_.intracranial)
    missing = (whole.volume.hu > 300) & (open_.volume.hu < 100)
    left, right = missing[:, :, 40:].sum(), missing[:, :, :40].sum()
    assert max(left, right) > 20 * min(left, right)
    assert 40 < millilitres(missing, whole) < 250


@pytest.mark.parametrize("options", [Options(roll=90), Options(roll=-30), Options(tilt=25), Options(tilt=-20)])
def test_turned_heads_hold_the_same_blood(options: Options) -> None:
    grid = Grid((28, 80, 80), (3.0, 3.0, 7.0), lower_mm=10)
    straight, turned = (make_phantom(3, ("intraparenchymal",), grid, options=o) for o in (None, options))
    assert not np.array_equal(straight.mask, turned.mask)
    assert millilitres(turned.mask, turned) == pytest.approx(millilitres(straight.mask, straight), rel=0.1)
    assert millilitres(turned.intracranial, turned) == pytest.approx(
        millilitres(straight.intracranial, straight), rel=0.04
    )


def test_a_second_head_beside() -> None:
    grid = Grid((12, 80, 150), (3.0, 3.0, 14.0), left_mm=90, lower_mm=10)
    one, two = (make_phantom(2, (), grid, options=Options(second_head=s)) for s in (False, True))
    assert np.array_equal(one.intracranial, two.intracranial)
    added = (two.volume.hu > -200) & (one.volume.hu < -900)
    assert np.array_equal(one.volume.hu[:, :, :60], two.volume.hu[:, :, :60])
    assert 1500 < millilitres(added, two) < 4500


def test_unknown_skulls_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown skull"):
        Options(skull="dog")


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


def test_scanners_differ_in_pixels_and_noise(tmp_path: Path) -> None:
    grid = Grid((2, 32, 40), (6.0, 6.0, 5.0))
    drawn = [protocol(seed, grid) for seed in range(40)]
    assert drawn == [protocol(seed, grid) for seed in range(40)]
    for other, noise_hu in drawn:
        assert 0.5 <= noise_hu <= 5.0
        assert other.shape[0] * other.spacing[2] == 10
        assert other.shape[1] * other.spacing[1] == pytest.approx(192, abs=other.spacing[1])
        assert other.shape[2] * other.spacing[0] == pytest.approx(240, abs=other.spacing[0])
    assert {0.5, 1.0, 1.25} <= {other.spacing[0] for other, _ in drawn}
    write_dataset(tmp_path, 3, seed=1, grid=grid, varied=True)
    expected = [protocol(seed, grid)[0] for _, seed, _ in cases(3, 1)]
    assert [read(p).spacing for p in sorted((tmp_path / "images").iterdir())] == [g.spacing for g in expected]


def test_the_samples_are_what_their_command_makes() -> None:
    name = "phantom-healthy.nii.gz"
    seed, kinds, grid = CASES[name]
    assert np.array_equal(read(ROOT / "test" / "cases" / name).hu, make_phantom(seed, kinds, grid).volume.hu)
    assert {p.name for p in (ROOT / "test" / "cases").iterdir()} == set(CASES)
    assert {p.name for p in (ROOT / "test" / "expected").iterdir()} == set(CASES)
    assert {p.name for p in (ROOT / "test" / "truth").iterdir()} == {f"{n.split('.')[0]}.nii.gz" for n in CASES}
