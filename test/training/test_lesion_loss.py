"""The loss in which each lesion of each slice counts once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from training.config import Config, Segmenter, SelfTraining
from training.data.datasets import Prepared
from training.fitting.segmenter import MIN_LESION_PIXELS, Patches, SegmenterTask, lesion_shares
from training.networks.unet import LEFT_OUT, build_unet, lesion_loss
from training.rounds import round_config

SETTINGS = Segmenter((4, 8), ((1, 2, 2),), 1, train_patch=(2, 16, 16), lesion_loss=0.2)


def label() -> np.ndarray:
    """Two slices: a large bleed and a rim in the first, the large one alone in the second, and a speck."""
    result = np.zeros((2, 24, 24), np.int8)
    result[:, 2:12, 2:12] = 1
    result[0, 20, 2:22] = 1
    result[1, 20, 20] = 1
    result[1, 22:] = LEFT_OUT
    return result


def test_each_lesion_of_a_slice_has_one_share_in_all() -> None:
    shares = lesion_shares(label())
    assert shares[0, 2:12, 2:12].sum() == pytest.approx(1)
    assert shares[0, 20].sum() == pytest.approx(1)
    assert shares[1, 2:12, 2:12].sum() == pytest.approx(1)  # though it touches that of the slice below
    assert shares[1, 20, 20] == pytest.approx(1 / MIN_LESION_PIXELS)
    assert (shares[label() <= 0] == 0).all()
    assert (lesion_shares(np.zeros((2, 4, 4), np.int8)) == 0).all()


def test_a_rim_counts_as_much_as_the_large_bleed_beside_it() -> None:
    target, shares = (torch.from_numpy(a[None, None].astype(np.float32)) for a in (label(), lesion_shares(label())))
    logits = torch.full(target.shape, -2.0, requires_grad=True)
    loss = lesion_loss(logits, target, shares)
    loss.backward()
    assert loss.item() == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(2.0))), rel=1e-5)
    pull = logits.grad[0, 0]
    assert pull[0, 20].sum().item() == pytest.approx(pull[0, 2:12].sum().item(), rel=1e-4)
    assert (pull[target[0, 0] != 1] == 0).all()  # what is around a lesion is left to the other losses
    assert lesion_loss(logits, torch.zeros_like(target), shares) == 0


@pytest.mark.parametrize("slice_loss", [0.0, 0.2])
def test_patches_bring_the_shares_last(slice_loss: float) -> None:
    case = Prepared("head", "train", np.full((2, 24, 24), 32, np.float32), np.ones((2, 24, 24), bool), np.ones(2))
    settings = replace(SETTINGS, slice_loss=slice_loss)
    patches = Patches([case], {"head": label()}, Config("test", segmenter=settings))
    _, target = patches[(0, 0)]
    assert len(target) == 2 + bool(slice_loss)
    assert ((target[-1] > 0) == (target[0] > 0)).all()


def test_a_step_adds_the_loss_by_its_weight(monkeypatch: Any) -> None:
    torch.manual_seed(0)
    network = build_unet(SETTINGS, 2)
    batch = torch.rand(1, 2, 2, 16, 16), torch.zeros(1, 2, 2, 16, 16)
    batch[1][0, 0, 0, 3:6, 3:6] = 1
    batch[1][0, 1, 0, 3:6, 3:6] = 1 / 9
    found: dict[Any, float] = {}

    def log(name: str, value: Any, **_: Any) -> None:
        found[name] = float(torch.as_tensor(value).detach())

    for weight in (0.5, 1.0):
        task = SegmenterTask(network, replace(SETTINGS, lesion_loss=weight), 0)
        monkeypatch.setattr(task, "log", log)
        task.training_step(batch, 0)
        found[weight] = found["train_loss"]
    assert found[1.0] - found[0.5] == pytest.approx(0.5 * found["train_lesion_loss"], rel=1e-4)


def test_a_later_round_may_ask_for_it_and_for_more_paint() -> None:
    base = Config("test", segmenter=replace(SETTINGS, lesion_loss=0.0, painted=0.5))
    same = round_config(base, 1).segmenter
    assert (same.lesion_loss, same.painted) == (0.0, 0.5)
    other = round_config(replace(base, self_training=SelfTraining(lesion_loss=0.2, painted=0.8)), 1).segmenter
    assert (other.lesion_loss, other.painted) == (0.2, 0.8)
