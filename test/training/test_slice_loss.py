"""The loss in which each slice counts once, and how training patches are made for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hemseg.errors import HemsegError
from training.config import Config, Optimization, Segmenter
from training.data.datasets import Prepared
from training.fitting import hardware, segmenter
from training.fitting.hardware import Hardware, choose_hardware
from training.fitting.segmenter import Patches, SegmenterTask, augment_scan, paint_scan, training_batches
from training.networks.unet import HARDEST_VOXELS, LEFT_OUT, UNLOCATED, build_unet, slice_loss

SHAPE = (1, 1, 4, 20, 20)
TINY = Segmenter(
    (4, 8), ((1, 2, 2),), 1, train_patch=(4, 16, 16), optimization=Optimization("adam", lr=0.01, batch=2, epochs=1)
)


def slices(*places: int) -> torch.Tensor:
    """Ones in some slices of a patch, else zeros."""
    result = torch.zeros(SHAPE)
    result[:, :, list(places)] = 1
    return result


def test_a_few_bright_voxels_count_where_the_slice_is_healthy() -> None:
    logits, target = torch.full(SHAPE, -6.0), torch.zeros(SHAPE)
    logits[0, 0, 1, :4, :4] = 3.0  # a falx
    falx = torch.nn.functional.softplus(torch.tensor(3.0))
    assert HARDEST_VOXELS == 16
    assert slice_loss(logits, target, slices(1)) == pytest.approx(float(falx), rel=1e-5)
    assert slice_loss(logits, target, slices(0, 1)) == pytest.approx(float(falx) / 2, rel=1e-2)
    assert slice_loss(logits, target, slices()) == 0  # nobody says that it is none


def test_a_small_bleed_counts_as_much_as_a_large_one() -> None:
    target = torch.zeros(SHAPE)
    target[0, 0, 0, 3:5, 3:5] = 1
    target[0, 0, 2, 2:18, 2:18] = 1
    logits = torch.full(SHAPE, -2.0, requires_grad=True)
    slice_loss(logits, target, slices(1, 3)).backward()
    by_slice = logits.grad[0, 0].flatten(1)
    assert by_slice[0].sum() == pytest.approx(float(by_slice[2].sum()), rel=1e-5)
    assert by_slice[0].sum() < 0 < by_slice[1].sum()
    assert (logits.grad[0, 0, 0][target[0, 0, 0] == 0] == 0).all()  # beside a bleed nothing is sure
    assert (by_slice[2] != 0).sum() == HARDEST_VOXELS  # to be found; the outline is the other loss's


def test_slices_of_which_nothing_is_known_do_not_count() -> None:
    target = torch.full(SHAPE, float(LEFT_OUT))
    logits = torch.zeros(SHAPE, requires_grad=True)
    loss = slice_loss(logits, target, slices())
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_a_bleed_of_which_nobody_knows_where_is_wanted_anywhere_in_its_slice() -> None:
    target = torch.zeros(SHAPE)
    target[0, 0, 2] = UNLOCATED
    logits = torch.full(SHAPE, -2.0)
    logits[0, 0, 2, 5, :HARDEST_VOXELS] = 1.0
    logits.requires_grad_()
    loss = slice_loss(logits, target, -slices(2))
    loss.backward()
    assert loss.item() == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(-1.0))))
    assert (logits.grad[0, 0, 2, 5, :HARDEST_VOXELS] < 0).all()
    assert (logits.grad != 0).sum() == HARDEST_VOXELS
    target[0, 0, 2, 9, 9] = 1  # something was painted into it: that is to be found
    assert slice_loss(logits.detach(), target, -slices(2)) == pytest.approx(
        float(torch.nn.functional.softplus(torch.tensor(2.0)))
    )


def scan(labels: tuple[int, ...]) -> tuple[Prepared, np.ndarray]:
    """A head with a bleed in its first positive slice; later ones have no pseudo-label."""
    rng = np.random.default_rng(0)
    hu = rng.normal(32, 3, (len(labels), 24, 24)).astype(np.float32)
    label = np.zeros(hu.shape, np.int8)
    for i, z in enumerate(np.flatnonzero(np.array(labels) == 1)):
        label[z] = 0 if i == 0 else LEFT_OUT
        label[z, 4:8, 4:8] = 1 if i == 0 else LEFT_OUT
    return Prepared("head", "train", hu, np.ones(hu.shape, bool), np.array(labels, np.int8)), label


@pytest.mark.parametrize("augment", [False, True])
def test_only_slices_that_are_labelled_0_throughout_are_healthy(augment: bool) -> None:
    case, label = scan((1, 0, 1, 0, -1))
    settings = replace(TINY, slice_loss=0.2, augment=augment, narrow=0.5 * augment, train_patch=(5, 16, 16))
    patches = Patches([case], {"head": label}, Config("test", segmenter=settings))
    for index in range(4):
        image, target = patches[(index, 0)]
        assert (len(image), len(target)) == (2, 2)
        assert target[1].amax((1, 2)).tolist() == target[1].amin((1, 2)).tolist() == [0, 1, 0, 1, 0]
        assert (target[0, 4] == LEFT_OUT).all()  # a slice without a slice label teaches nothing
    without = Patches([case], {"head": label}, Config("test", segmenter=replace(settings, slice_loss=0.0)))
    assert len(without[(0, 0)][1]) == 1


def test_slices_whose_bleed_was_not_located_say_so_until_they_are_changed() -> None:
    case, label = scan((1, 0, 1, 0))
    label[label == LEFT_OUT] = UNLOCATED
    single = replace(case, name="single", hu=case.hu[2:3], intracranial=case.intracranial[2:3], labels=case.labels[2:3])
    labels = {"head": label, "single": label[2:3]}
    settings = replace(TINY, slice_loss=0.2, unlocated=True, train_patch=(4, 24, 24), single_slices=2)
    patches = Patches([case, single], labels, Config("test", segmenter=settings))
    verdicts = patches[(0, 0)][1][1].amax((1, 2))
    assert verdicts.tolist() == [0, 1, -1, 1]
    assert (patches[(0, 1)][1][1] == -1).any()  # the single slice is among the samples, as one with a bleed
    known_alone = replace(settings, unlocated=False)
    without = Patches([case], {"head": label}, Config("test", segmenter=known_alone))
    assert without[(0, 0)][1][1].amin() == 0
    assert not len(Patches([case, single], labels, Config("test", segmenter=known_alone)).positive_singles)
    rng = np.random.default_rng(0)
    bright = augment_scan(case.hu, case.intracranial, label, replace(settings, artefacts=1.0), rng)[2]
    assert (bright[2] == LEFT_OUT).all()  # streaks may be what is brightest now
    assert (bright[0] == label[0]).all()


def test_a_distractor_is_never_taught_as_a_bleed() -> None:
    case, label = scan((1, 0, 1, 0))
    label[label == LEFT_OUT] = UNLOCATED
    place = segmenter.place_of(case.hu, case.intracranial, (5.0, 1.0, 1.0))
    changed = 0
    for seed in range(8):
        hu, _, after = paint_scan(
            case.hu, case.intracranial, label, place, replace(TINY, distractors=1.0), np.random.default_rng(seed)
        )
        for z in range(len(hu)):
            kept = (hu[z] == case.hu[z]).all()
            changed += not kept
            assert (after[z] == np.where((label[z] == UNLOCATED) & (not kept), LEFT_OUT, label[z])).all()
    assert changed


def test_samples_are_the_same_whoever_makes_them() -> None:
    case, label = scan((1, 0, 0, 0))
    cases = [replace(case, name=str(i)) for i in range(4)]
    settings = replace(TINY, slice_loss=0.2, augment=True, narrow=0.5, painted=0.5)
    patches = Patches(cases, {c.name: label for c in cases}, Config("test", segmenter=settings))
    alone, helped = (training_batches(patches, settings, 0, workers) for workers in (0, 1))
    for batches in (alone, helped):
        batches.sampler.set_epoch(3)
    for a, b in zip(alone, helped, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_compiled_network_saves_the_weights_of_a_plain_one(monkeypatch: Any) -> None:
    called = []

    def compiled(network: torch.nn.Module) -> Any:
        return lambda image: called.append(len(image)) or network(image)

    monkeypatch.setattr(segmenter.torch, "compile", compiled)
    tasks = [SegmenterTask(build_unet(TINY, 2), replace(TINY, slice_loss=0.2), 0, compiled=c) for c in (False, True)]
    assert list(tasks[0].state_dict()) == list(tasks[1].state_dict())
    batch = torch.rand(2, 2, 4, 16, 16), torch.zeros(2, 2, 4, 16, 16)
    for task in tasks:
        monkeypatch.setattr(task, "log", lambda *_, **__: None)
        task.training_step(batch, 0)
        task.validation_step((batch[0], batch[1][:, :1]), 0)
    assert called == [2]  # in training alone: whole scans have many sizes


def test_workers_and_compiler_are_chosen(monkeypatch: Any) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 16)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    assert choose_hardware("1", 1, "32-true", "auto")[0] == Hardware(workers=4)
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    assert choose_hardware("1", 1, "32-true", "auto")[0] == Hardware(workers=1)
    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    assert choose_hardware("1", 1, "32-true", "auto")[0] == Hardware(workers=0)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    monkeypatch.setattr(hardware, "cuda_devices", lambda: 2)
    for cores, processes, workers in ((16, 1, 15), (64, 1, 16), (16, 2, 7), (1, 1, 0)):
        monkeypatch.setattr(hardware, "cores", lambda n=cores: n)
        assert hardware.default_workers(processes) == workers
    monkeypatch.setattr(hardware, "cuda_devices", lambda: 0)
    with pytest.raises(HemsegError, match="--workers some: give a number from 0 on, or auto"):
        choose_hardware("1", 1, "32-true", "some")
    monkeypatch.setattr(hardware.shutil, "which", lambda name: None)
    with pytest.raises(HemsegError, match=r"--compile needs a C\+\+ compiler"):
        choose_hardware("1", 1, "32-true", compile=True)
