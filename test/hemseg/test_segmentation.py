from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, dice, orthonormal, same_geometry

from hemseg.model import Model, load
from hemseg.preprocessing import working_image
from hemseg.scan import read
from hemseg.segmentation import postprocess, segment
from hemseg.sliding_window import sliding_window, working_probability
from hemseg.volume import Volume
from training.data.phantom import Grid, Phantom, make_phantom

CASES = sorted((ROOT / "test" / "cases").iterdir())


@pytest.mark.parametrize("scan", CASES, ids=lambda p: p.name)
def test_samples_give_the_expected_masks(scan: Path, model: Model) -> None:
    expected = ROOT / "test" / "expected" / scan.name
    result = segment(read(scan), model)
    reference = read(expected).hu
    assert result.mask.dtype == np.uint8
    assert result.mask.shape == result.volume.hu.shape
    assert set(np.unique(result.mask)) <= {0, 1}
    assert dice(result.mask, reference) >= 0.99 or not (result.mask.any() or reference.any())
    assert result.volume_ml == pytest.approx(reference.sum() * result.volume.voxel_ml, rel=0.02)
    assert same_geometry(scan, expected)


def test_samples_are_small_and_of_both_formats() -> None:
    assert sum(p.stat().st_size for p in CASES) < 3e6
    assert {p.suffix for p in CASES} == {".gz", ".mha"}


def sample(name: str) -> Volume:
    return read(ROOT / "test" / "cases" / name)


def test_lesions_add_up_and_say_where_they_are(model: Model) -> None:
    result = segment(sample("phantom-intraparenchymal.nii.gz"), model)
    assert result.lesions
    assert sum(lesion.volume_ml for lesion in result.lesions) == pytest.approx(result.volume_ml)
    assert [lesion.volume_ml for lesion in result.lesions] == sorted(
        (v.volume_ml for v in result.lesions), reverse=True
    )
    assert all(lesion.volume_ml >= model.manifest.min_lesion_ml for lesion in result.lesions)
    largest, volume = result.lesions[0], result.volume
    direction = volume.cosines
    index = (np.linalg.inv(direction) @ (np.array(largest.centroid) - volume.origin)) / volume.spacing
    assert result.mask[tuple(np.round(index[::-1]).astype(int))] == 1
    assert result.mask[largest.slices[0]].any()
    assert result.mask[largest.slices[1]].any()


def test_pieces_brighter_than_blood_are_dropped(model: Model) -> None:
    volume = sample("phantom-intraparenchymal.nii.gz")
    manifest = replace(model.manifest, min_lesion_ml=0.0, max_median_hu=100.0)
    working = working_image(volume, manifest.preprocessing)
    probability = np.zeros(working.hu.shape, np.float32)
    probability[10:13, 90:100, 90:100] = probability[10:13, 120:130, 90:100] = 1
    _, y, x = np.indices(volume.hu.shape)
    behind = y > volume.hu.shape[1] / 2
    hu = np.where(behind, np.float32(150), np.float32(60))  # one of the two pieces is as bright as a calcification,
    hu = np.where(x % 4, hu, np.float32(900))  # and both reach into bone
    rim = replace(volume, hu=hu)
    found = postprocess(rim, working, probability, manifest)
    every = postprocess(rim, working, probability, replace(manifest, max_median_hu=0.0))
    assert len(every.lesions) == 2
    assert len(found.lesions) == 1
    assert found.lesions[0].mean_hu > 100  # the median counts, not the mean
    assert found.volume_ml == pytest.approx(found.lesions[0].volume_ml)
    assert not found.mask[behind].any()


def test_full_hu_and_windowed_scans_give_the_same_mask(model: Model) -> None:
    volume = sample("phantom-intraparenchymal.nii.gz")
    windowed = replace(volume, hu=np.clip(volume.hu, -20, 100))
    assert np.array_equal(segment(volume, model).mask, segment(windowed, model).mask)


def test_the_mask_moves_with_the_patient(model: Model) -> None:
    """The same head stored in another axis order gives the same mask, stored in that order."""
    volume = sample("phantom-lobar.mha")
    mask = segment(volume, model).mask
    flipped = replace(volume, hu=volume.hu[::-1, ::-1, ::-1], direction=(-1, 0, 0, 0, -1, 0, 0, 0, -1))
    assert np.array_equal(segment(flipped, model).mask, mask[::-1, ::-1, ::-1])
    turned = Volume(
        volume.hu.transpose(2, 0, 1),
        (volume.spacing[1], volume.spacing[2], volume.spacing[0]),
        direction=(0, 0, 1, 1, 0, 0, 0, 1, 0),
    )
    assert np.array_equal(segment(turned, model).mask, mask.transpose(2, 0, 1))


def test_origin_and_a_slight_tilt_change_nothing(model: Model) -> None:
    volume = sample("phantom-lobar.mha")
    rotation = np.array(orthonormal(1)).reshape(3, 3)
    small = np.linalg.qr(np.eye(3) + 0.1 * rotation)[0]
    small *= np.sign(np.diag(small))
    moved = replace(volume, origin=(1e3, -5.0, 77.7), direction=tuple(small.ravel()))
    assert np.array_equal(segment(moved, model).mask, segment(volume, model).mask)


def test_thin_slices_give_the_same_volume(model: Model) -> None:
    kinds = ("intraparenchymal",)
    thick = segment(make_phantom(21, kinds, Grid((28, 160, 160), (1.4, 1.4, 5.0))).volume, model)
    thin = segment(make_phantom(21, kinds, Grid((112, 160, 160), (1.4, 1.4, 1.25))).volume, model)
    assert thin.mask.shape == (112, 160, 160)
    assert thin.volume_ml == pytest.approx(thick.volume_ml, rel=0.2, abs=1.0)


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 40, 50), (28, 8, 8), (1, 1, 1)])
def test_tiny_volumes_do_not_fail(model: Model, shape: tuple[int, int, int]) -> None:
    assert segment(Volume(np.full(shape, 40, np.float32)), model).mask.shape == shape


def test_nothing_outside_the_skull(model: Model) -> None:
    volume = sample("phantom-intraparenchymal.nii.gz")
    working = working_image(volume, model.manifest.preprocessing)
    assert (working_probability(working, model)[~working.intracranial] == 0).all()


class Mean:
    """Stands in for a network: a voxel's probability is the mean of its channels, whatever the patch."""

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        return patches.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("shape", [(5, 6, 7), (8, 8, 8), (9, 20, 8), (30, 17, 23)])
def test_tiles_cover_everything_and_agree(shape: tuple[int, int, int]) -> None:
    image = np.random.default_rng(0).random((2, *shape)).astype(np.float32)
    assert np.allclose(sliding_window(image, Mean(), (8, 8, 8)), image.mean(axis=0), atol=1e-6)  # type: ignore[arg-type]


def test_one_thread_or_two_the_same_bits(bleed: Phantom, model: Model) -> None:
    one, two = (segment(bleed.volume, load(device="cpu", threads=n)) for n in (1, 2))
    assert np.array_equal(one.working_probability, two.working_probability)
    assert np.array_equal(one.mask, two.mask)
