"""Bleeds that are painted into heads: what the U-Net learns from them has to be what was painted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import ndimage

from hemseg.model import Model
from hemseg.preprocessing import Settings, working_image
from training.config import Classifier, Config, Segmenter, load_config
from training.data.datasets import Prepared, load_dataset
from training.data.painted import (
    CONTRAST_HU,
    DISTRACTORS,
    KINDS,
    UNKNOWN,
    add_bleed,
    add_distractor,
    add_noise,
    add_streaks,
    denoised,
)
from training.data.painted_place import Place, place_of
from training.data.phantom import Grid, make_phantom, write_dataset
from training.evaluation.painted_heads import make_plan, painted_heads, painted_summary, read_plan, sheet
from training.fitting import painted_slices as fitting_painted
from training.fitting.classifier import slice_kind_labels
from training.fitting.painted_slices import paint_copy, painted_slices
from training.fitting.segmenter import Patches, augment_scan, paint_scan
from training.networks.unet import LEFT_OUT

MM = (5.0, 2.0, 2.0)


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, Place]:
    """A healthy phantom on a coarse grid, HU (z, y, x), and what painting needs to know of it."""
    phantom = make_phantom(7, (), Grid((24, 104, 104), (2.0, 2.0, 5.0)), noise_hu=2.0)
    return phantom.volume.hu, place_of(phantom.volume.hu, phantom.intracranial, MM)


def paint(head: tuple[np.ndarray, Place], kind: str, seed: int = 1, **how: float) -> tuple[np.ndarray, np.ndarray]:
    hu, place = head
    return add_bleed(hu, np.zeros(hu.shape, np.int8), place, np.random.default_rng(seed), kind, **how)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bleed_is_as_bright_as_it_was_to_be_where_its_label_says(head: tuple[np.ndarray, Place], kind: str) -> None:
    hu, place = head
    painted_somewhere = 0
    for seed in range(6):
        changed, label = paint(head, kind, seed, contrast_hu=35.0)
        blood = label == 1
        assert not (blood & ~place.inside).any()
        assert np.array_equal(changed[~place.inside], hu[~place.inside])
        if blood.sum() < 20:
            continue
        painted_somewhere += 1
        # thin ones fill voxels of CSF by half, so the brightest tell
        assert place.brain + 18 < np.percentile(changed[blood], 90) < place.brain + 35 * 1.3 + 8
        far = label == 0
        assert np.abs(changed - hu)[far].mean() < 0.05 * np.abs(changed - hu)[blood].mean()
    assert painted_somewhere >= 2


def test_the_same_seed_paints_the_same(head: tuple[np.ndarray, Place]) -> None:
    first, again, other = (paint(head, "", seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_bleed_is_as_large_as_asked(head: tuple[np.ndarray, Place]) -> None:
    _, label = paint(head, "intraparenchymal", radius_mm=12.0, contrast_hu=30.0)
    assert (label == 1).sum() * np.prod(MM) / 1000 == pytest.approx(4 / 3 * np.pi * 1.2**3, rel=0.35)


def test_what_is_unknown_stays_so_around_a_bleed(head: tuple[np.ndarray, Place]) -> None:
    hu, place = head
    unknown = np.full(hu.shape, LEFT_OUT, np.int8)
    _, label = add_bleed(hu, unknown, place, np.random.default_rng(1), "intraparenchymal", radius_mm=10.0)
    assert (label == 1).any()
    assert not (label == 0).any()
    real = np.zeros(hu.shape, np.int8)
    real[12, 50:54, 50:54] = 1
    assert (add_bleed(hu, real, place, np.random.default_rng(1), "subdural")[1][real == 1] == 1).all()


def test_a_sheet_thinner_than_its_voxels_is_no_negative(head: tuple[np.ndarray, Place]) -> None:
    hu, _ = head
    labels = [paint(head, "intraparenchymal", seed, radius_mm=4.0)[1] for seed in range(6)]
    faint = [z for label in labels for z in range(len(hu)) if (label[z] == LEFT_OUT).any()]
    assert faint  # slices in which the bleed fills no voxel by half
    for label in labels:
        assert not ((label == LEFT_OUT).any(axis=(1, 2)) & (label == 1).any(axis=(1, 2))).any()


def test_blood_along_the_skull_is_seen_where_its_label_says_and_leaves_the_bone() -> None:
    """Its edge is bone and brain in one voxel; paint in its place would be a darker edge that is called blood."""
    phantom = make_phantom(7, (), Grid((8, 208, 208), (1.0, 1.0, 5.0)), noise_hu=1.0)
    wide = ndimage.binary_dilation(phantom.intracranial, np.ones((1, 3, 3), bool))  # a strip that leaves an edge
    hu = np.stack([cv2.GaussianBlur(s, (0, 0), 1.2) for s in phantom.volume.hu.astype(np.float32)])
    place, hidden = place_of(hu, wide, (5.0, 1.0, 1.0)), 0
    for kind in ("subdural", "epidural"):
        for seed in range(6):
            empty = np.zeros(hu.shape, np.int8)
            changed, label = add_bleed(hu, empty, place, np.random.default_rng(seed), kind, contrast_hu=30.0)
            if (label == 1).sum() < 50:
                continue
            assert (changed - hu)[label == 1].mean() > 0.6 * 30
            assert (changed - hu).min() > -1.0
            assert not (label[hu > place.brain + 40] == 1).any()
            hidden += int(((label == UNKNOWN) & (hu > place.brain + 40)).sum())
    assert hidden


def test_the_skulls_edge_is_left_out_by_millimeters() -> None:
    disc = np.hypot(*np.meshgrid(np.arange(-80, 80), np.arange(-80, 80))) < 60
    hu = np.where(ndimage.binary_erosion(disc, iterations=8), 32.0, 90.0)[None]
    for pixel_mm, lost in ((1.0, 3), (0.5, 6)):
        inside = place_of(hu, disc[None], (5.0, pixel_mm, pixel_mm)).inside[0]
        assert np.array_equal(inside, ndimage.binary_erosion(disc, iterations=lost))


@pytest.mark.parametrize("kind", DISTRACTORS)
def test_what_is_bright_without_being_blood_changes_the_picture(head: tuple[np.ndarray, Place], kind: str) -> None:
    hu, place = head
    changed = [add_distractor(hu, place, np.random.default_rng(seed), kind) for seed in range(6)]
    assert max(np.abs(c - hu).max() for c in changed) > 10
    assert all(c.dtype == np.float32 for c in changed)


def test_with_dura_faint_sheets_are_not_painted_and_more_distracts(head: tuple[np.ndarray, Place]) -> None:
    hu, place = head
    brightest = []
    for seed in range(12):
        empty = np.zeros(hu.shape, np.int8)
        changed, label = add_bleed(hu, empty, place, np.random.default_rng(seed), "sheet", dura=True)
        if (label == 1).sum() > 20:
            brightest.append(np.percentile((changed - place.brain)[label == 1], 90))
    assert brightest
    assert min(brightest) > 12  # drawn from 20 HU on, uneven by up to 30 %
    drawn = [add_distractor(hu, place, np.random.default_rng(seed), dura=True) for seed in range(6)]
    plain = [add_distractor(hu, place, np.random.default_rng(seed)) for seed in range(6)]
    assert any(not np.array_equal(a, b) for a, b in zip(drawn, plain, strict=True))


def test_artefacts_are_as_strong_as_asked(head: tuple[np.ndarray, Place]) -> None:
    hu = head[0]
    grain = add_noise(hu, np.random.default_rng(2), 6.0) - hu
    assert 1.5 < grain.std() < 6.5
    beams = add_streaks(hu, np.random.default_rng(2), 80.0) - hu
    assert 1 <= np.abs(beams).max(axis=(1, 2)).astype(bool).sum() <= 4
    assert np.abs(beams).max() > 5


def test_less_noise_leaves_edges_where_they_are(head: tuple[np.ndarray, Place]) -> None:
    clean, noisy = (
        make_phantom(7, (), Grid((24, 104, 104), (2.0, 2.0, 5.0)), noise_hu=n).volume.hu for n in (0.0, 4.0)
    )
    bone = clean > 300
    for seed in range(3):
        less = denoised(noisy, np.random.default_rng(seed))
        before, after = (np.abs(hu - clean)[head[1].inside].mean() for hu in (noisy, less))
        assert after < before
        assert np.abs(less - noisy)[bone].mean() < 4.0
    hu = np.asarray(noisy, np.float32)
    label, rng = np.zeros(hu.shape, np.int8), np.random.default_rng(0)
    changed, _, _ = augment_scan(hu, head[1].inside, label, Segmenter(denoised=1.0, artefacts=1.0), rng)
    assert np.abs(changed - clean)[head[1].inside].mean() < np.abs(hu - clean)[head[1].inside].mean()


def test_no_room_no_bleed() -> None:
    hu = np.zeros((3, 20, 20), np.float32)
    place = place_of(hu, np.zeros(hu.shape, bool), MM)
    for kind in KINDS:
        changed, label = add_bleed(hu, hu.astype(np.int8), place, np.random.default_rng(0), kind)
        assert not label.any()
        assert np.array_equal(changed, hu)


def prepared(seed: int, slices: int = 20) -> Prepared:
    phantom = make_phantom(seed, (), Grid((slices, 72, 72), (3.0, 3.0, 140 / slices if slices > 1 else 5.0)))
    working = working_image(phantom.volume, Settings(in_plane_mm=2.0))
    labels = np.zeros(len(working.hu), np.int8)
    return Prepared(f"case{seed}", "train", working.hu, working.intracranial, labels)


def test_samples_of_training_hold_painted_bleeds_and_single_slices() -> None:
    cases = [prepared(1), prepared(2), *(prepared(10 + i, 1) for i in range(3))]
    labels = {case.name: np.zeros(case.hu.shape, np.int8) for case in cases}
    settings = Segmenter(
        train_patch=(8, 32, 32), augment=True, painted=1.0, distractors=1.0, artefacts=0.5, single_slices=4
    )
    config = replace(Config("test"), preprocessing=Settings(in_plane_mm=2.0, edge_slices=True), segmenter=settings)
    patches = Patches(cases, labels, config)
    assert len(patches) == 2 + 4
    targets = [patches[epoch, index][1] for epoch in range(3) for index in range(6)]
    assert sum(bool((t > 0).any()) for t in targets) >= 6
    image, target = patches[0, 4]
    assert (image == image[:, :1]).all()  # one slice, repeated
    assert (target == target[:, :1]).all()
    again, _ = patches[0, 4]
    assert (image == again).all()
    fresh, _ = patches[1, 4]
    assert fresh.shape == image.shape
    assert not (fresh == image).all()


def test_healthy_slices_that_fooled_the_unet_are_drawn_more_often() -> None:
    cases = [prepared(1), *(prepared(10 + i, 1) for i in range(4))]
    labels = {case.name: np.zeros(case.hu.shape, np.int8) for case in cases}
    settings = Segmenter(train_patch=(8, 32, 32), augment=True, narrow=0.1, single_slices=4)
    config = replace(Config("test"), preprocessing=Settings(in_plane_mm=2.0, edge_slices=True), segmenter=settings)
    patches = Patches(cases, labels, config, {"case10": 0.0, "case11": 0.0, "case12": 1.0, "case13": 0.0})
    drawn = [patches._draw_scan(1, np.random.default_rng(i)) for i in range(200)]
    assert 90 < drawn.count(3) < 160  # 1.15 of 1.6
    assert set(drawn) == {1, 2, 3, 4}
    level = Patches(cases, labels, config)
    assert {level._draw_scan(1, np.random.default_rng(i)) for i in range(60)} == {1, 2, 3, 4}


def threads_in_this_process(task: object, config: Config) -> tuple[torch.Tensor, ...]:
    return torch.full((1, 1, 1), torch.get_num_threads()), torch.ones(1), torch.ones(1, 6)


def test_processes_that_paint_compute_in_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are forked: with more they would wait for threads that this process has begun, for ever."""
    monkeypatch.setattr(fitting_painted, "_slices_of_copy", threads_in_this_process)
    config = replace(Config("test"), classifier=Classifier(painted=2))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert painted_slices([prepared(1)], config, workers=1).hu.flatten().tolist() == [1, 1]
    finally:
        torch.set_num_threads(threads)


def test_the_classifier_sees_painted_slices_as_positive() -> None:
    cases = [prepared(1), prepared(2), prepared(10, 1)]
    config = replace(
        Config("test"),
        preprocessing=Settings(in_plane_mm=2.0),
        classifier=Classifier(image_size=(40, 32), field_mm=(200.0, 160.0), painted=2),
    )
    answers = {case.name: np.zeros((len(case.hu), 6), np.int8) for case in cases}
    slices = painted_slices(cases, config, answers)
    helped = painted_slices(cases, config, answers, workers=2)
    for name in ("hu", "labels", "kinds"):
        assert torch.equal(getattr(slices, name), getattr(helped, name))
    assert slices.kinds is not None
    painted = slices.labels == 1
    assert (slices.kinds[painted].amax(1) == 1).all()  # what was painted has a kind
    assert (slices.kinds[~painted] == 0).all()
    assert painted_slices(cases, config).kinds is None
    assert slices.hu.shape[1:] == (40, 32)
    assert slices.labels.sum() >= 3  # the cases themselves are all negative
    changed, known, kinds = paint_copy(cases[0], slice_kind_labels(cases[0], {}), config, np.random.default_rng(3))
    assert known.any()
    assert (changed.hu != cases[0].hu)[known].any(axis=(1, 2)).all()  # what was not painted is not shown twice
    assert np.array_equal(changed.intracranial, cases[0].intracranial)
    unknown = replace(cases[0], labels=np.full_like(cases[0].labels, -1))
    changed, known, kinds = paint_copy(unknown, slice_kind_labels(unknown, {}), config, np.random.default_rng(3))
    assert set(np.unique(kinds[known])) == {-1, 1}  # of what the scan itself holds nothing is known
    assert (changed.labels[known] == 1).all()


def test_paint_is_as_frequent_as_configured(head: tuple[np.ndarray, Place]) -> None:
    hu, place = head
    empty = np.zeros(hu.shape, np.int8)
    for share, least, most in ((0.0, 0, 0), (1.0, 8, 12)):
        settings = Segmenter(painted=share)
        found = [
            bool((paint_scan(hu, place.inside, empty, place, settings, np.random.default_rng(i))[2] > 0).any())
            for i in range(12)
        ]
        assert least <= sum(found) <= most


def test_the_recipe_paints_what_a_table_of_contrasts_asks() -> None:
    best = load_config("best").segmenter
    assert best.painted > 0
    assert CONTRAST_HU[0] <= 12 <= 45 <= CONTRAST_HU[1]


def test_the_plan_of_painted_bleeds_is_the_one_that_was_committed() -> None:
    assert read_plan() == make_plan()


def test_painted_heads_are_measured(model: Model, tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, seed=3, grid=Grid((20, 96, 96), (2.4, 2.4, 7.0)), split=(0.0, 0.0))
    plan = [replace(p, contrast_hu=45.0, radius_mm=16.0) for p in make_plan(1) if p.kind == "intraparenchymal"][:2]
    rows = painted_heads(load_dataset(tmp_path), "test", model, plan)
    assert len(rows) == 2
    assert all(row["ml"] > 2 for row in rows)
    assert any(row["found"] for row in rows)
    table = {row["bleeds"]: row for row in painted_summary(rows)}
    assert table["2..inf mL"]["number"] == table["intraparenchymal"]["number"] == 2
    assert table["subdural"]["number"] == 0


def test_a_sheet_shows_each_kind() -> None:
    picture = sheet(iter([prepared(1)]), (5.0, 2.0, 2.0), columns=2)
    assert picture.shape == (180 * (len(KINDS) + len(DISTRACTORS)), 300, 3)
    red = (picture[..., 2] > picture[..., 0]).reshape(len(KINDS) + len(DISTRACTORS), 180, 300)
    assert red[: len(KINDS), :, 150:].any(axis=(1, 2)).sum() >= len(KINDS) - 2
    assert not red[:, :, :150].any()
