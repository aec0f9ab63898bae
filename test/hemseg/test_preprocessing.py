from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import COARSE, OBLIQUE, dice
from numpy.testing import assert_allclose

from hemseg.preprocessing import Settings, equalized, intracranial_mask, network_input, working_image
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid
from training.data.phantom import Grid, Phantom, make_phantom

SETTINGS = Settings(in_plane_mm=2.0, slice_mm=9.0)


def inside(volume: Volume) -> np.ndarray:
    return working_image(volume, SETTINGS).intracranial


def brain_of(phantom: Phantom) -> np.ndarray:
    """Brain tissue by HU alone, well inside: what must survive the stripping."""
    from scipy import ndimage

    hu = working_image(phantom.volume, SETTINGS).hu
    central = np.zeros(hu.shape, bool)
    central[:, hu.shape[1] // 4 : -hu.shape[1] // 4, hu.shape[2] // 3 : -hu.shape[2] // 3] = True
    return ndimage.binary_opening((hu > 15) & (hu < 80) & central)


def test_stripping_keeps_brain_and_blood_and_drops_the_skull(bleed: Phantom) -> None:
    working = working_image(bleed.volume, SETTINGS)
    truth = working.grid.from_scan(bleed.mask.astype(np.float32)) > 0.5
    assert (truth & working.intracranial).sum() > 0.99 * truth.sum()
    assert (working.hu[working.intracranial] >= 99).mean() < 0.08  # the inner edge of the skull at 2 mm
    middle = slice(6, 13)  # slices of the vault
    assert working.intracranial[middle][brain_of(bleed)[middle]].mean() > 0.99
    litres = working.intracranial.sum() * np.prod(working.grid.spacing) / 1e6
    assert 1.0 < litres < 2.2


@pytest.mark.parametrize("kind", ["subdural", "epidural"])
def test_blood_along_the_skull_survives(kind: str) -> None:
    phantom = make_phantom(5, (kind,), COARSE)
    working = working_image(phantom.volume, SETTINGS)
    truth = working.grid.from_scan(phantom.mask.astype(np.float32)) > 0.5
    assert truth.sum() > 100
    assert (truth & working.intracranial).sum() > 0.93 * truth.sum()  # 2.4 mm pixels share their edge with bone


def test_full_hu_and_windowed_scans_give_the_same_numbers(bleed: Phantom) -> None:
    v = bleed.volume
    windowed = Volume(np.clip(v.hu, -20, 100), v.spacing, v.origin, v.direction)
    a, b = working_image(v, SETTINGS), working_image(windowed, SETTINGS)
    assert np.array_equal(a.hu, b.hu)
    assert np.array_equal(a.intracranial, b.intracranial)


def test_headrest_changes_nothing() -> None:
    a = inside(make_phantom(3, ("intraparenchymal",), COARSE, headrest=True).volume)
    b = inside(make_phantom(3, ("intraparenchymal",), COARSE, headrest=False).volume)
    assert dice(a, b) > 0.999


@pytest.mark.parametrize("padding", [-2000, -3024])
def test_padding_changes_nothing(bleed: Phantom, padding: int) -> None:
    hu = bleed.volume.hu.copy()
    y, x = np.ogrid[:96, :96]
    hu[:, (y - 48) ** 2 + (x - 48) ** 2 > 47**2] = padding
    assert dice(inside(replace(bleed.volume, hu=hu)), inside(bleed.volume)) > 0.999


def test_craniectomy_is_bridged_by_the_hull(bleed: Phantom) -> None:
    hu = bleed.volume.hu.copy()
    flap = (slice(8, 12), slice(40, 60), slice(64, 96))
    hu[flap] = np.where(hu[flap] > 300, 30, hu[flap])
    brain = brain_of(bleed)
    assert inside(replace(bleed.volume, hu=hu))[brain].mean() > 0.97


def test_metal_does_not_break_it(bleed: Phantom) -> None:
    hu = bleed.volume.hu.copy()
    hu[9, 48:51, 30:33] = 3071  # a clip
    hu[9, 47:52, 33:70:2] = -900  # its streaks
    assert dice(inside(replace(bleed.volume, hu=hu)), inside(bleed.volume)) > 0.97


def head_with_a_face() -> tuple[np.ndarray, dict[str, tuple[slice, slice, slice]]]:
    """A head (HU, clipped, 1 mm), from below: two slices of face, the skull's base with holes, the vault."""
    hu = np.full((9, 120, 120), -20, np.float32)
    y, x = np.ogrid[:120, :120]
    head = np.hypot(y - 60, x - 60)
    hu[2:, head < 50] = 100
    hu[3:, head < 45] = 35
    for z in range(3):
        canal = np.hypot(y - 90, x - 60)
        hu[z, canal < 16] = 100
        hu[z, canal < 11] = 35
        hu[z, 55:75, 80:104] = 100  # a bony box around the tip of a temporal lobe, full of blood
        hu[z, 60:70, 85:99] = 68
    hu[2, 40:50, 38:48] = 45  # a foramen above the muscle
    hu[:2, 20:60, 16:21] = hu[:2, 20:60, 99:104] = 100  # jaws
    hu[:2, 20:25, 21:99] = 100
    hu[:2, 35:60, 30:55] = 58
    parts = {"muscle": np.s_[:2, 35:60, 30:55], "pole": np.s_[:3, 62:68, 87:97], "cord": np.s_[:3, 85:95, 55:65]}
    return hu, parts


def test_muscles_below_the_base_are_left_out_and_enclosed_blood_stays() -> None:
    hu, parts = head_with_a_face()
    found = intracranial_mask(hu, Settings())
    assert found[3:, 40:80, 40:80].all()
    assert not found[parts["muscle"]].any()
    assert found[parts["pole"]].all()
    assert found[parts["cord"]].all()


def test_slices_without_skull_keep_nothing(bleed: Phantom) -> None:
    hu = np.concatenate([bleed.volume.hu, np.full((4, 96, 96), -1000, np.float32)])
    assert not inside(replace(bleed.volume, hu=hu))[-4:].any()


def test_stripped_scan_keeps_its_brain(bleed: Phantom) -> None:
    brain = inside(bleed.volume)
    hu = np.where(brain, np.minimum(working_image(bleed.volume, SETTINGS).hu, 80), -1000)
    spacing = (SETTINGS.in_plane_mm, SETTINGS.in_plane_mm, bleed.volume.spacing[2])
    assert dice(inside(Volume(hu.astype(np.float32), spacing)), brain) > 0.9


@pytest.mark.parametrize("value", [-1000.0, 0.0, 40.0, 3000.0])
def test_constant_volumes_do_not_fail(value: float) -> None:
    assert inside(Volume(np.full((5, 40, 40), value, np.float32), (2, 2, 9))).shape == (5, 40, 40)


def test_one_slice(bleed: Phantom) -> None:
    one = replace(bleed.volume, hu=bleed.volume.hu[9:10])
    assert inside(one).sum() > 0.8 * inside(bleed.volume)[9].sum()


def test_tilted_gantry() -> None:
    phantom = make_phantom(3, ("intraparenchymal",), Grid((16, 96, 96), (2.4, 2.4, 9.0), OBLIQUE))
    working = working_image(phantom.volume, SETTINGS)
    truth = working.grid.from_scan(phantom.volume.in_lps()[0] * 0 + phantom.mask) > 0.5
    assert (truth & working.intracranial).sum() > 0.99 * truth.sum()


# --- the working grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mm", "slab"), [(0.6, 8), (1.25, 4), (2.5, 2), (3.0, 2), (4.0, 1), (5.0, 1), (8.0, 1)])
def test_thin_slices_are_averaged_and_thick_ones_kept(mm: float, slab: int) -> None:
    grid = WorkingGrid.of((41, 20, 20), (mm, 1, 1), Settings().spacing)
    assert grid.slab == slab
    assert grid.shape[0] == -(-41 // slab)
    hu = np.repeat(np.arange(41, dtype=np.float32), 400).reshape(41, 20, 20)
    assert np.allclose(grid.from_scan(hu)[0], np.arange(slab).mean())
    assert np.allclose(grid.from_scan(hu)[-1], np.arange(41)[slab * (grid.shape[0] - 1) :].mean())


def test_there_and_back_is_a_smooth_image_again() -> None:
    z, y, x = np.meshgrid(np.arange(40), np.arange(90), np.arange(100), indexing="ij")
    hu = (np.sin(z / 8) + np.sin(y / 15) + np.cos(x / 15)).astype(np.float32)
    grid = WorkingGrid.of(hu.shape, (1.25, 0.45, 0.45), Settings().spacing)
    back = grid.to_scan(grid.from_scan(hu), slice(None), slice(None))
    assert back.shape == hu.shape
    assert np.abs(back - hu)[6:-6, 4:-4, 4:-4].max() < 0.1


@pytest.mark.parametrize(
    ("n_in", "mm_in", "n_out", "mm_out"), [(512, 0.45, 230, 1.0), (60, 2.0, 120, 1.0), (5, 1.0, 1, 5.0)]
)
def test_resampling_is_the_product_with_a_matrix_of_tents(n_in: int, mm_in: float, n_out: int, mm_out: float) -> None:
    values = np.random.default_rng(0).random((3, n_in)).astype(np.float32)
    at_in, at_out = (np.arange(n_in) + 0.5) * mm_in, (np.arange(n_out) + 0.5) * mm_out
    at_out = np.clip(at_out + (n_in * mm_in - n_out * mm_out) / 2, at_in[0], at_in[-1])
    tents = np.maximum(0, 1 - np.abs(at_out[:, None] - at_in) / max(mm_in, mm_out))
    expected = values @ (tents / tents.sum(axis=1, keepdims=True)).T
    grid = WorkingGrid((1, n_in, 3), (1.0, mm_in, mm_out), (1.0, mm_out, mm_out), 1)
    assert grid.shape == (1, n_out, 3)
    assert_allclose(grid.from_scan(values.T[None])[0].T, expected, atol=1e-6)


def test_part_of_the_scan_is_a_part_of_the_whole() -> None:
    grid = WorkingGrid.of((10, 64, 80), (5.0, 0.5, 0.5), Settings().spacing)
    working = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    whole = grid.to_scan(working, slice(None), slice(None))
    assert np.allclose(grid.to_scan(working, slice(8, 30), slice(5, 60)), whole[:, 8:30, 5:60], atol=1e-6)


# --- the network's input ----------------------------------------------------------------------------------------------


def test_equalisation_spreads_the_histogram_inside_the_mask() -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(35, 6, (6, 50, 50)).astype(np.float32)
    mask = np.zeros(hu.shape, bool)
    mask[1:5, 5:45, 5:45] = True
    result = equalized(hu, mask, SETTINGS)
    assert (result[~mask] == 0).all()
    assert abs(result[mask].mean() - 0.5) < 0.05
    assert np.corrcoef(np.argsort(np.argsort(hu[mask])), result[mask])[0, 1] > 0.99


def test_network_input_is_zero_outside(bleed: Phantom) -> None:
    working = working_image(bleed.volume, SETTINGS)
    image = network_input(working.hu, working.intracranial, SETTINGS)
    assert image.shape == (2, *working.hu.shape)
    assert image.dtype == np.float32
    assert (image[:, ~working.intracranial] == 0).all()
    assert image.min() >= 0
    assert image.max() <= 1


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="hu_range"):
        Settings(bone_floor_hu=120.0)
    with pytest.raises(ValueError, match="unknown channels"):
        Settings(channels=("hu", "sobel"))


def test_noise_alone_has_an_inside_without_an_error() -> None:
    rng = np.random.default_rng(0)
    assert intracranial_mask(rng.uniform(-20, 100, (5, 60, 60)).astype(np.float32), SETTINGS).dtype == bool
