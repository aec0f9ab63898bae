"""The U-Net with a pretrained encoder: what it sees, what it learns from, and how single slices fill its patches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import Tensor

from hemseg.errors import HemsegError
from hemseg.manifest import Manifest
from hemseg.preprocessing import Settings
from training.config import Config, Encoder, Optimization, Segmenter, SelfTraining
from training.data.datasets import DataSet, Prepared
from training.export.bundle import bundle_network
from training.export.to_onnx import export_model, network_settings, rounded, write_states
from training.fitting.hardware import Hardware
from training.fitting.segmenter import Patches, SegmenterTask, target_channels, train_segmenter, training_batches
from training.fitting.timed_steps import timed_steps
from training.fitting.trainer import save_network
from training.networks import pretrained_unet
from training.networks.efficientnet_lite import PYRAMID, EfficientNetLite, imagenet_weights
from training.networks.pretrained_unet import SLICES_AT_ONCE, PretrainedUNet, Up
from training.networks.unet import LEFT_OUT, build_unet, multiples, slice_head_loss, to_fast_memory_format
from training.pipeline import steps
from training.pipeline.context import Context
from training.pipeline.initial_weights import load_initial
from training.pipeline.recipe import build_stages
from training.rounds import first_round_of_network, round_config, starts_new_network
from training.stage_names import NETWORK

LITE = Encoder("efficientnet_lite0", frozen_stages=1, slice_head=0.3)
OWN = Segmenter(
    encoder=LITE,
    slice_loss=0.3,
    train_patch=(4, 32, 32),
    patch=(4, 64, 32),
    optimization=Optimization("adamw", lr=1e-3, batch=2, epochs=1),
)


@pytest.fixture(scope="module")
def network() -> PretrainedUNet:
    torch.manual_seed(0)
    made = build_unet(OWN, 2)
    assert isinstance(made, PretrainedUNet)
    made.encoder.load_state_dict(imagenet_weights())
    return made.eval()


def head(name: str, slices: int, bleeding: tuple[int, ...] = ()) -> tuple[Prepared, np.ndarray]:
    """A head whose slices differ, with a bright square in some of them, and its label."""
    rng = np.random.default_rng(len(name))
    hu = rng.normal(32, 4, (slices, 40, 40)).astype(np.float32)
    label = np.zeros(hu.shape, np.int8)
    for z in bleeding:
        hu[z, 10:20, 10:20], label[z, 10:20, 10:20] = 65, 1
    return Prepared(name, "train", hu, np.ones(hu.shape, bool), label.any(axis=(1, 2)).astype(np.int8)), label


# --- the network ------------------------------------------------------------------------------------------------------


def test_slices_beside_are_joined_as_maps_side_by_side_would_be() -> None:
    torch.manual_seed(0)
    up, x = Up(8, 8, 4, True), torch.randn(2 * 3, 4, 5, 6)
    a, b = x.reshape(2, 3, 4, 5, 6)
    with torch.no_grad():
        for apart, second in ((None, (b[[0, 0, 1]], b, b[[1, 2, 2]])), (torch.tensor([False, True]), (b, b, b))):
            expected = [up.slices(torch.cat(own, 1)) for own in ((a[[0, 0, 1]], a, a[[1, 2, 2]]), second)]
            assert torch.allclose(up.join_neighbors(x, 2, apart), torch.cat(expected), atol=1e-6)


def test_the_encoder_gives_the_last_maps_of_each_size() -> None:
    encoder = EfficientNetLite().eval()
    fine = encoder.fine_maps(torch.zeros(1, 3, 64, 96))
    coarse, features = encoder.coarse_maps(fine[-1])
    maps = [*fine, *coarse]
    assert [m.shape[1] for m in maps] == list(PYRAMID)
    assert [tuple(m.shape[2:]) for m in maps] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(features.shape) == (1, 1280, 2, 3)


@torch.no_grad()
def test_stacks_of_any_height_begin_at_the_first_logit(network: PretrainedUNet) -> None:
    fresh = build_unet(OWN, 2).eval()
    for slices in (1, 5):
        logits, of_slices = fresh.voxel_and_slice_logits(torch.rand(2, 2, slices, 64, 32))  # type: ignore[operator]
        assert tuple(logits.shape) == (2, 1, slices, 64, 32)
        assert tuple(of_slices.shape) == (2, slices)
        assert logits.mean() == pytest.approx(-4, abs=0.5)


@torch.no_grad()
def test_slices_beside_count_unless_they_lie_apart(network: PretrainedUNet) -> None:
    image = torch.rand(1, 2, 4, 64, 32)
    other = image.clone()
    other[:, :, 2] = torch.rand(1, 2, 64, 32)
    alone, beside = torch.tensor([True]), torch.tensor([False])
    for apart, changed in ((alone, {2}), (beside, {0, 1, 2, 3}), (None, {0, 1, 2, 3})):
        before, after = (network.voxel_and_slice_logits(x, apart)[0] for x in (image, other))
        assert {z for z in range(4) if not torch.equal(before[0, 0, z], after[0, 0, z])} == changed
    single = torch.cat([network(image[:, :, z : z + 1]) for z in range(4)], 2)
    assert torch.allclose(
        single, network.voxel_and_slice_logits(image, alone)[0], atol=1e-5
    )  # as where a scan has one slice
    assert torch.allclose(network.voxel_and_slice_logits(image, beside)[0], network(image), atol=1e-5)


@torch.no_grad()
def test_it_shows_the_encoder_three_windows_of_hu(network: PretrainedUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        network.encoder, "fine_maps", lambda x: seen.append(x) or EfficientNetLite().eval().fine_maps(x)
    )
    image = torch.full((1, 2, 1, 32, 32), (50 + 20) / 120)  # 50 HU of -20..100
    image[:, 1] = 0.9  # the equalized channel is not the encoder's
    network(image)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([50 / 80 * 2 - 1, 70 / 120 * 2 - 1, 10 / 60 * 2 - 1])


@torch.no_grad()
def test_it_looks_at_a_few_slices_at_a_time_and_says_the_same(
    network: PretrainedUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.rand(2, 2, 2 * SLICES_AT_ONCE + 3, 32, 32)
    some = []
    own = network.encoder.fine_maps
    monkeypatch.setattr(network.encoder, "fine_maps", lambda x: some.append(len(x)) or own(x))
    in_parts = network.voxel_and_slice_logits(image)
    assert some == [2 * SLICES_AT_ONCE, 2 * SLICES_AT_ONCE, 2 * 3]
    monkeypatch.setattr(pretrained_unet, "SLICES_AT_ONCE", 99)
    at_once = network.voxel_and_slice_logits(image)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(in_parts, at_once, strict=True))


def test_what_is_kept_for_training_holds_the_numbers_of_the_onnx_file(network: PretrainedUNet, tmp_path: Path) -> None:
    config, leaving = Config("test", segmenter=OWN), rounded(network)
    write_states({"unet": leaving}, config, tmp_path)
    assert (tmp_path / "unet.safetensors").stat().st_size < 8e6
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1  # whoever may read the settings may read the arrays
    again = build_unet(OWN, 2)
    load_initial(again, tmp_path / "unet.safetensors")
    image = torch.rand(1, 2, 4, 64, 32)
    with torch.no_grad():
        expected = leaving(image)
        assert torch.equal(again.eval()(image), expected)
        assert torch.allclose(network(image).sigmoid(), expected.sigmoid(), atol=1e-2)
    assert next(again.parameters()).dtype == torch.float32


def test_it_leaves_as_onnx_and_as_a_bundle(network: PretrainedUNet, tmp_path: Path) -> None:
    config = Config("test", segmenter=OWN)
    assert export_model(network, config, tmp_path, {})["difference_to_torch"] < 1e-4
    assert str(ROOT).encode() not in (tmp_path / "hemseg.onnx").read_bytes()
    assert network_settings(config)["segmenter"]["encoder"] == "efficientnet_lite0"
    save_network(network, tmp_path / "model.pt")
    bundled = bundle_network([16, 32], [[1, 2, 2]], 1, 2, str(tmp_path / "model.pt"), "efficientnet_lite0")
    image = torch.rand(1, 2, 4, 64, 32)
    with torch.no_grad():
        assert torch.allclose(bundled(image), network(image).sigmoid(), atol=1e-6)


# --- how it learns ----------------------------------------------------------------------------------------------------


def test_single_slices_fill_a_patch_together() -> None:
    scans = [head("volume", 6, (2, 3)), *(head("single" + "x" * n, 1, (0,) * (n % 2)) for n in range(6))]
    cases, labels = [case for case, _ in scans], {case.name: label for case, label in scans}
    settings = replace(OWN, single_slices=6)
    patches = Patches(cases, labels, Config("test", segmenter=settings))
    assert len(patches) == 1 + 2  # six slices in patches of four
    channels = target_channels(settings)
    assert channels == {"label": 0, "verdict": 1, "apart": 2}
    image, target = patches[(0, 0)]
    assert not target[channels["apart"]].any()
    images = []
    for index in (1, 2):
        image, target = patches[(0, index)]
        assert tuple(image.shape) == (2, 4, 32, 32)
        assert (target[channels["apart"]] == 1).all()
        images += list(image[0])
        bleeding = target[0].flatten(1).amax(1) > 0
        assert (target[channels["verdict"]].flatten(1).amax(1) == (~bleeding).float()).all()
    assert len({tuple(x.flatten()[:5].tolist()) for x in images}) > 2  # not one that is repeated
    plain = Patches(cases, labels, Config("test", segmenter=replace(settings, encoder=Encoder())))
    assert len(plain) == 1 + 6
    image, target = plain[(0, 1)]
    assert len(target) == 2
    assert torch.equal(image[:, 0], image[:, 3])


def test_what_the_encoder_says_of_a_slice_counts_where_its_label_is_known() -> None:
    target, verdict = torch.zeros(1, 1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8)
    target[0, 0, 0, 2:4, 2:4] = 1
    verdict[0, 0, 1] = 1
    target[0, 0, 2] = LEFT_OUT
    right = slice_head_loss(torch.tensor([[9.0, -9.0, 9.0]]), target, verdict)
    wrong = slice_head_loss(torch.tensor([[-9.0, -9.0, -9.0]]), target, verdict)
    assert right < 1e-3
    assert wrong == pytest.approx(4.5, rel=1e-3)
    nothing = torch.full_like(target, LEFT_OUT)
    assert slice_head_loss(torch.ones(1, 3), nothing, torch.zeros_like(verdict)) == 0
    verdict[0, 0, 2] = -1  # a bleed of which nobody knows where
    assert slice_head_loss(torch.tensor([[9.0, -9.0, 9.0]]), target, verdict) < 1e-3
    assert slice_head_loss(torch.tensor([[9.0, -9.0, -9.0]]), target, verdict) == pytest.approx(3.0, rel=1e-3)


def test_the_first_stages_stay_and_all_else_learns() -> None:
    case, label = head("volume", 6, (2, 3))
    settings = replace(OWN, augment=True, turned=0.5)
    patches = Patches(
        [case, replace(case, name="other")], {"volume": label, "other": label}, Config("", segmenter=settings)
    )
    torch.manual_seed(0)
    network = to_fast_memory_format(build_unet(settings, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task = SegmenterTask(network, settings, 0)
    timed = timed_steps(task, training_batches(patches, settings, 0), torch.device("cpu"), "32-true", steps=2)
    assert all(np.isfinite(timed.losses))
    same = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    frozen = ("encoder._conv_stem", "encoder._bn0", *(f"encoder._blocks.{n}." for n in range(3)))
    assert same == {name for name in before if name.startswith(frozen)}


def test_it_begins_with_imagenet_and_goes_on_from_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PretrainedUNet] = []

    def fit(task: SegmenterTask, *_: Any) -> dict[str, Any]:
        assert isinstance(task.network, PretrainedUNet)
        seen.append(task.network)
        return {}

    monkeypatch.setattr("training.fitting.segmenter.fit", fit)
    case, label = head("volume", 6, (2, 3))
    config = Config("test", segmenter=OWN)
    train_segmenter([case], [case], {"volume": label}, config, tmp_path, Hardware())
    published, own = imagenet_weights(), seen[0].encoder.state_dict()
    assert all(torch.equal(own[name], published[name]) for name in published)
    with torch.no_grad():
        seen[0].slice_logit.weight.fill_(7)
    save_network(seen[0], tmp_path / "own.pt")
    train_segmenter([case], [case], {"volume": label}, config, tmp_path, Hardware(), tmp_path / "own.pt")
    assert (seen[1].slice_logit.weight == 7).all()


def test_a_share_of_the_weights_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(task: SegmenterTask, *_: Any) -> dict[str, Any]:
        with torch.no_grad():
            for value in task.network.state_dict().values():
                value.fill_(3)
        return {}

    monkeypatch.setattr("training.fitting.segmenter.fit", fit)
    before = build_unet(OWN, 2)
    save_network(before, tmp_path / "before.pt")
    case, label = head("volume", 6, (2, 3))
    config = Config("test", segmenter=replace(OWN, start_share=0.75))
    train_segmenter([case], [case], {"volume": label}, config, tmp_path, Hardware(), tmp_path / "before.pt")
    after = torch.load(tmp_path / NETWORK, weights_only=True)
    for name, value in before.state_dict().items():
        expected = 0.75 * value + 0.75 if value.is_floating_point() else torch.full_like(value, 3)
        assert torch.allclose(after[name], expected), name


@pytest.mark.parametrize("first", [Encoder(), LITE])
def test_a_later_round_with_another_network_begins_anew(
    first: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(steps, "train_segmenter", lambda *args: given.append(args) or {})
    monkeypatch.setattr(Context, "labels", lambda *_: {})
    monkeypatch.setattr(Context, "false_peaks", lambda *_: {})
    round_ = SelfTraining(True, encoder=LITE, slice_loss=0.3, train_patch=(4, 32, 32))
    segmenter = replace(OWN, encoder=first, channels=(4, 8), strides=((1, 2, 2),))
    context = Context(Config("test", segmenter=segmenter, self_training=round_), DataSet("none", ()), tmp_path)
    steps.continue_unet(context, 1, tmp_path)
    ((_, _, _, config, _, _, start, _),) = given
    assert config.segmenter.encoder == LITE
    assert start == (tmp_path / "segment" / NETWORK if first.name else None)
    for number, stage in enumerate(context.names.unets):
        (tmp_path / stage).mkdir()
        save_network(build_unet(context.round_config(number).segmenter, 2), tmp_path / stage / NETWORK)
    assert isinstance(context.unet("resegment"), PretrainedUNet)
    assert isinstance(context.unet("segment"), PretrainedUNet) == bool(first.name)


def test_compiled_it_saves_the_weights_of_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def compiled(both: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: called.append(len(args)) or both(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    tasks = [SegmenterTask(build_unet(OWN, 2), OWN, 0, compiled=c) for c in (False, True)]
    assert list(tasks[0].state_dict()) == list(tasks[1].state_dict())
    image, target = torch.rand(1, 2, 4, 32, 32), torch.zeros(1, 3, 4, 32, 32)
    losses: list[Tensor] = []
    for task in tasks:
        monkeypatch.setattr(task, "log", lambda *_, **__: None)
        losses.append(task.training_step((image, target), 0))
        task.validation_step((image, target[:, :1]), 0)
    assert called == [2]  # in training alone


def test_its_weights_start_what_has_its_encoder_and_nothing_else(tmp_path: Path) -> None:
    for name, settings in (("pretrained", OWN), ("plain", replace(OWN, encoder=Encoder()))):
        config = Config("test", segmenter=settings)
        (tmp_path / name).mkdir()
        networks = {"unet": build_unet(settings, 2), "classifier": torch.nn.Linear(2, 1)}
        write_states(networks, config, tmp_path / name / "torch")
        Manifest("test", "1", "hemseg.onnx", "0" * 64, settings.patch, config.preprocessing).write(tmp_path / name)
    old = tmp_path / "plain" / "torch" / "config.json"  # an export from before there were encoders says nothing of them
    said = json.loads(old.read_text())
    del said["segmenter"]["encoder"]
    old.write_text(json.dumps(said))
    for start, encoder, message in (
        ("pretrained", LITE, ""),
        ("plain", Encoder(), ""),
        ("pretrained", Encoder(), "segmenter.encoder is 'efficientnet_lite0' there and '' here"),
        ("plain", LITE, "segmenter.encoder is '' there and 'efficientnet_lite0' here"),
    ):
        config = Config("test", segmenter=replace(OWN, encoder=encoder), init=str(tmp_path / start))
        if message:
            with pytest.raises(HemsegError, match=message):
                build_stages(config, DataSet("none", ()), tmp_path)
        else:
            build_stages(config, DataSet("none", ()), tmp_path)


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": Encoder("resnet50")}, "encoder 'resnet50' is not known; known: efficientnet_lite0"),
        ({"encoder": replace(LITE, frozen_stages=5)}, "frozen_stages is 5; there are 4"),
        ({"slice_loss": 0.0}, "slice_head needs slice_loss"),
        ({"train_patch": (4, 40, 32)}, r"train_patch is \[4, 40, 32\]; with an encoder, y and x are multiples of 32"),
        ({"patch": (32, 192, 150)}, r"patch is \[32, 192, 150\]"),
        ({"encoder": Encoder(slice_head=0.3)}, "encoder has settings and no name"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_it_begins(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = Config("test", segmenter=replace(OWN, **changes))
    with pytest.raises(HemsegError, match=message):
        build_stages(config, DataSet("none", ()), tmp_path)
    round_ = SelfTraining(True, encoder=changes.get("encoder", LITE))
    plain = replace(config.segmenter, encoder=Encoder())
    with pytest.raises(HemsegError, match=message):
        build_stages(replace(config, segmenter=plain, self_training=round_), DataSet("none", ()), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(channels=("equalized", "hu")), "must be hu"),
        (Settings(hu_range=(-1000.0, 2000.0)), r"windows are parts of \[-20.0, 100.0\] HU"),
    ],
)
def test_the_encoder_needs_the_window_that_it_was_made_for(settings: Settings, message: str, tmp_path: Path) -> None:
    config = Config("test", segmenter=OWN, preprocessing=settings)
    with pytest.raises(HemsegError, match=message):
        build_stages(config, DataSet("none", ()), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 0}, "0 epochs, but another network"), ({"frozen_statistics": True}, "begins anew")],
)
def test_a_round_that_begins_anew_learns(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    schedule = replace(OWN.optimization, **changes)
    round_ = SelfTraining(True, encoder=LITE, slice_loss=0.3, train_patch=(4, 32, 32), optimization=schedule)
    config = Config("test", segmenter=replace(OWN, encoder=Encoder()), self_training=round_)
    with pytest.raises(HemsegError, match=message):
        build_stages(config, DataSet("none", ()), tmp_path)
    assert "segment" in build_stages(replace(config, segmenter=OWN), DataSet("none", ()), tmp_path)


@pytest.mark.parametrize(
    ("first", "share", "message"), [(Encoder(), 0.5, "no weights to take"), (LITE, 1.0, "less than")]
)
def test_a_share_of_the_weights_before_needs_some(first: Encoder, share: float, message: str, tmp_path: Path) -> None:
    round_ = SelfTraining(True, encoder=LITE, slice_loss=0.3, train_patch=(4, 32, 32), start_share=share)
    config = Config("test", segmenter=replace(OWN, encoder=first), self_training=round_)
    with pytest.raises(HemsegError, match=message):
        build_stages(config, DataSet("none", ()), tmp_path)


def test_where_a_network_began() -> None:
    plain, pretrained = Segmenter(), replace(OWN, encoder=LITE)
    other, same = SelfTraining(True, 3, encoder=LITE), SelfTraining(True, 3)
    for segmenter, round_, start in (
        (plain, other, 1),
        (plain, same, 0),
        (pretrained, other, 0),
        (pretrained, same, 0),
    ):
        config = Config("test", segmenter=segmenter, self_training=round_)
        assert [first_round_of_network(config, n) for n in range(4)] == [0, start, start, start]
        assert [starts_new_network(config, n) for n in range(3)] == [True, start == 1, False]


def test_what_patches_are_multiples_of() -> None:
    assert multiples(OWN) == (1, 32, 32)
    assert multiples(replace(OWN, encoder=Encoder(), strides=((1, 2, 2), (2, 2, 2)))) == (2, 4, 4)
    assert round_config(Config("", segmenter=OWN), 1).segmenter.encoder == LITE
