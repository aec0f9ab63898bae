from __future__ import annotations

import csv
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import COARSE, training
from helpers.networks import TINY
from safetensors.torch import load_file

from hemseg.errors import HemsegError
from hemseg.fields_of_view import cut
from hemseg.manifest import default_weights
from hemseg.model import load as load_model
from hemseg.preprocessing import Settings, working_image
from hemseg.scan import read
from hemseg.sliding_window import network_probability
from hemseg.volume import Volume
from training.config import CONFIGS, Cam, Config, Pseudolabels, Segmenter, Sequence, Without, load_config
from training.data.datasets import load_dataset, merge_datasets, prepare, prepared
from training.data.field_of_view import paste
from training.data.phantom import write_dataset
from training.data.references import read_reference
from training.evaluation.evaluate import Prediction, evaluate
from training.evaluation.metrics import lesion_counts, overlap, summary
from training.fitting.classifier import Volumes, collate_volumes, refit_linear_layer
from training.fitting.segmenter import Patches
from training.fitting.trainer import EpochSampler
from training.labels.cam import activation_maps, raw_maps
from training.labels.clusters import choose_cluster, intensity_clusters, trial_images
from training.labels.differential import Probe, SliceView
from training.networks.slice_network import SequenceNetwork, SliceNetwork
from training.networks.unet import build_unet, combined_loss
from training.pipeline.recipe import build_stages
from training.pipeline.runner import Stage, _join_first_process, run_stage
from training.rounds import round_config


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_dataset(folder, 6, seed=3, grid=COARSE)
    return folder


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_builds(path: Path) -> None:
    config = load_config(path.stem)
    assert config == load_config(path)
    assert config.name == path.stem
    SliceNetwork(config.classifier)
    build_unet(config.segmenter, len(config.preprocessing.channels))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("clasifier: {}", "did you mean 'classifier'"),
        ("pseudolabels: {treshold: 0.5}", "did you mean 'threshold'"),
        ("seed: many", "expects int"),
        ("cam: {flips: 1}", "expects bool"),
        ("seed: true", "expects int"),
        ("classifier: {image_size: [1, 2, 3]}", "expects 2 values"),
        ("classifier: resnet", "expects a mapping"),
        ("segmenter: {channels: 16}", "expects a list"),
        ("preprocessing: {bone_floor_hu: 500}", "hu_range"),
        ("preprocessing: {in_plane_mm: 0}", r"in_plane_mm is 0, and should be from 0\.2 to 10"),
        ("preprocessing: {slice_mm: .nan}", r"slice_mm is nan, and should be"),
        ("preprocessing: {channels: []}", "channels should be a list"),
        ("a: [", "cannot be read as YAML.*line 1, column 5"),
        ("name: caf\xe9", "cannot be read as YAML.*position 9"),
        ("[1]", "expects a mapping"),
        ("extends: mine.yaml", "extends itself"),
        ("extends: nothing", "no such configuration"),
        ("extends: best\nsegmenter: {chanels: [1]}", "did you mean 'channels'"),
    ],
)
def test_wrong_configurations_get_a_clear_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(HemsegError, match=said) as error:
        load_config(tmp_path / "mine.yaml")
    assert ".yaml: " in str(error.value)
    assert "x0a" not in str(error.value)  # a line break
    with pytest.raises(HemsegError, match="no such configuration"):
        load_config("smokes")


def test_faults_of_a_data_set_are_listed_a_line_each(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "set")
    table = tmp_path / "set" / "slice_labels.csv"
    table.write_text(table.read_text().replace(",1\n", ",2\n", 1).replace(",0\n", ",7\n", 1) + "nobody,0,1\n")
    with pytest.raises(HemsegError) as caught:
        load_dataset(tmp_path / "set")
    first, *rest = str(caught.value).splitlines()
    assert first.endswith("the data set has faults:")
    assert len(rest) >= 1
    assert all(line.startswith("  ") for line in rest)
    assert "\\x0a" not in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  workers hand errors over like this
    assert str(again) == str(caught.value)


def half_as_long(part: Any) -> Any:
    """A configuration's part with half of its epochs, and as much patience."""
    epochs = part.optimization.epochs // 2
    return replace(part, optimization=replace(part.optimization, epochs=epochs, patience=epochs))


def test_a_configuration_that_extends_another_says_what_differs(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("seed: 3\nsegmenter: {threshold: 0.4, strides: [[1, 2, 2]], channels: [8, 16]}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nsegmenter: {threshold: 0.2, channels: [4, 8]}\n")
    mine = load_config(tmp_path / "mine.yaml")
    assert (mine.name, mine.seed, mine.segmenter.threshold) == ("mine", 3, 0.2)
    assert (mine.segmenter.channels, mine.segmenter.strides) == ((4, 8), ((1, 2, 2),))
    best, without_rsna = load_config("best"), load_config("best_open")
    halves = {name: half_as_long(getattr(best, name)) for name in ("classifier", "segmenter", "self_training")}
    halves["classifier"] = replace(halves["classifier"], unpainted=best.classifier.unpainted // 2)
    halves["segmenter"] = replace(halves["segmenter"], single_slices=0)
    as_best = {"name": "best", "weights_license": best.weights_license, "without": best.without}
    assert replace(without_rsna, **as_best) == replace(best, **halves)
    assert "non-commercial" in best.weights_license
    assert without_rsna.weights_license == (
        "MIT; the U-Net began with EfficientNet-Lite0 (Apache License 2.0), learned from ImageNet, "
        "whose own terms say non-commercial research"
    )


def test_the_torch_weights_are_those_of_the_onnx_file() -> None:
    """What training goes on from is what is shipped, and the classifier fits its configuration."""
    config, folder = round_config(load_config("best"), 1), default_weights()
    unet = build_unet(config.segmenter, len(config.preprocessing.channels))
    unet.load_state_dict(load_file(folder / "torch" / "unet.safetensors"))
    image = np.random.default_rng(0).random((1, 2, *config.segmenter.patch), np.float32)
    with torch.no_grad():
        probability = unet.eval()(torch.from_numpy(image)).sigmoid().numpy()
    assert np.abs(load_model(folder, "cpu")(image) - probability).max() < 1e-4
    classifier = SliceNetwork(config.classifier)
    classifier.load_state_dict(load_file(folder / "torch" / "classifier.safetensors"))


@pytest.mark.parametrize("path", sorted(default_weights().glob("*.onnx")), ids=lambda p: p.stem)
def test_weights_do_not_tell_in_which_folder_they_were_made(path: Path) -> None:
    assert b"stack_trace" not in (content := path.read_bytes())
    assert b".py" not in content


# --- data sets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", [False, True])
def test_training_and_inference_see_the_same_numbers(edge: bool, phantoms: Path, tmp_path: Path) -> None:
    config = load_config("smoke")
    dataset = load_dataset(phantoms)
    settings = replace(config.preprocessing, level_hu=32.0, edge_slices=edge)
    prepare(dataset, settings, tmp_path)
    case, stored = dataset.part("train")[0], next(prepared(tmp_path, dataset, "train"))
    working = working_image(read(case.image), settings)
    seen: list[np.ndarray] = []

    def network(patches: np.ndarray) -> np.ndarray:
        seen.append(patches[0])
        return patches[:, :1]

    network_probability(working.hu, working.intracranial, settings, network, config.segmenter.patch)
    labels = {stored.name: np.zeros(stored.hu.shape, bool)}
    plain = replace(config.segmenter, train_patch=config.segmenter.patch, augment=False)
    image, _ = Patches([stored], labels, replace(config, preprocessing=settings, segmenter=plain))[0]
    assert len(seen) == 1
    assert np.array_equal(image.numpy(), seen[0])


def test_labels_come_from_masks_where_there_is_no_table(phantoms: Path, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        shutil.copytree(phantoms / part, tmp_path / part)
    made, given = load_dataset(tmp_path), load_dataset(phantoms)
    assert [c.labels for c in made.cases] == [c.labels for c in given.cases]
    assert {c.split for c in made.cases} <= {"train", "val", "test"}
    assert made == load_dataset(tmp_path)


def test_faults_of_a_data_set_are_told_all_at_once(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    data = tmp_path / "data"
    rows = list(csv.reader((data / "slice_labels.csv").open()))
    first, second, third = sorted({r[0] for r in rows[1:]})[:3]
    rows = [r for r in rows if r[:2] != [first, "3"] and r[0] != second] + [["ghost", "0", "1"] + ["0"] * 5]
    with (data / "slice_labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    with (data / "split.csv").open("a") as stream:
        stream.write(f"{third},holdout\r\n")
    with pytest.raises(HemsegError) as error:
        load_dataset(data)
    for said in ("ghost", f"{first}: has 16 slices", second, f"{third}: is in two splits", "holdout"):
        assert said in str(error.value)
    with pytest.raises(HemsegError, match="is not a data set"):
        load_dataset(tmp_path / "nothing")


def test_damaged_images_are_named_and_left_out_by_choice(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    images = sorted((tmp_path / "data" / "images").iterdir())
    for image in images[:2]:
        image.write_bytes(image.read_bytes()[:2000])  # the header is there, the voxels are not
    dataset = load_dataset(tmp_path / "data")
    with pytest.raises(HemsegError) as error:
        prepare(dataset, Settings(), tmp_path)
    assert f"2 of {len(images)} images cannot be used" in str(error.value)
    assert all(str(image) in str(error.value) for image in images[:2])
    assert len(list(tmp_path.glob("*.npz"))) == len(images) - 2
    names = [image.name.removesuffix(".nii.gz") for image in images[:2]]
    (tmp_path / "data" / "left_out.txt").write_text("\n".join([*names, ""]))
    dataset = load_dataset(tmp_path / "data")
    assert names[0] in capsys.readouterr().err
    assert prepare(dataset, Settings(), tmp_path)["cases"] == len(images) - 2
    (tmp_path / "data" / "left_out.txt").write_text("nobody\n")
    with pytest.raises(HemsegError, match=r"left_out\.txt names cases that are not there: nobody"):
        load_dataset(tmp_path / "data")


def test_scans_that_are_not_axial_are_neither_prepared_nor_measured(phantoms: Path, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for path in sorted((phantoms / part).iterdir())[:2]:
            image = sitk.ReadImage(str(path))  # coronal slices, of which there are more than axial ones
            sitk.WriteImage(sitk.PermuteAxes(image, [0, 2, 1]), str(tmp_path / part / path.name))
    dataset = load_dataset(tmp_path)
    with pytest.raises(HemsegError, match="2 of 2 images cannot be used") as error:
        prepare(dataset, Settings(), tmp_path / "prepared")
    assert all("slices are not axial" in fault and "left_out.txt" in fault for fault in error.value.details)

    def predict(volume: Volume) -> Prediction:
        return Prediction(np.zeros(volume.hu.shape, np.uint8), np.zeros(len(volume.in_lps()[0])))

    with pytest.raises(HemsegError, match=r"\.nii\.gz: slices are not axial"):
        evaluate(dataset, predict, tmp_path / "out", ("train", "val", "test"))


def test_instance_layout_and_multi_label_masks(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms / "images", tmp_path / "data")
    (tmp_path / "label").mkdir()
    for path in (phantoms / "masks").iterdir():
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image * 5, str(tmp_path / "label" / path.name))  # classes other than 1
    read_back, given = load_dataset(tmp_path), load_dataset(phantoms)
    assert [c.labels for c in read_back.cases] == [c.labels for c in given.cases]
    assert all(c.reference for c in read_back.cases)
    assert {s for c in given.cases for s in c.subtypes}


def test_a_mask_that_is_cut_short_is_no_half_empty_mask(phantoms: Path, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        shutil.copytree(phantoms / part, tmp_path / part)
    whole, cut, *_ = sorted((tmp_path / "masks").iterdir())
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    whole_image = sitk.ReadImage(str(whole))
    assert np.array_equal(read_reference(whole), sitk.GetArrayFromImage(whole_image))
    sitk.WriteImage(sitk.Cast(whole_image, sitk.sitkFloat32) * 0.5, str(whole))  # any value above 0 is hemorrhage
    assert np.array_equal(read_reference(whole), sitk.GetArrayFromImage(whole_image))
    assert read_reference(whole).dtype == np.uint8
    with pytest.raises(HemsegError, match=cut.name):
        read_reference(cut)
    with pytest.raises(HemsegError) as error:  # the labels are made of the masks
        load_dataset(tmp_path)
    (fault,) = error.value.details
    assert cut.name in fault
    assert "left_out.txt" in fault
    (tmp_path / "left_out.txt").write_text(cut.name.removesuffix(".nii.gz"))
    assert len(load_dataset(tmp_path).cases) == 5


def test_masks_that_cannot_be_read_are_named_before_anything_is_measured(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    for mask in sorted((tmp_path / "data" / "masks").iterdir())[:2]:
        mask.write_bytes(mask.read_bytes()[: mask.stat().st_size // 2])
    dataset = load_dataset(tmp_path / "data")  # its labels are in a table: no voxel of a mask is looked at

    def predict(volume: Volume) -> Prediction:
        raise AssertionError("a scan was segmented")

    with pytest.raises(HemsegError, match="2 reference masks cannot be read") as error:
        evaluate(dataset, predict, tmp_path / "out", ("train", "val", "test"))
    assert len(error.value.details) == 2


def test_masks_that_do_not_fit_are_told(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    masks = sorted((tmp_path / "data" / "masks").iterdir())
    shutil.copy(masks[0], masks[0].with_name("ghost.nii.gz"))
    image = sitk.ReadImage(str(masks[1]))
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, str(masks[1]))
    names = [c.name for c in load_dataset(phantoms).cases]
    rows = [f"{name},{'train' if i % 2 else 'test'},p{i // 2}" for i, name in enumerate(names)]
    (tmp_path / "data" / "split.csv").write_text("\n".join(["case,split,patient", *rows]))
    with pytest.raises(HemsegError) as error:
        load_dataset(tmp_path / "data")
    for said in ("masks without an image: ghost", masks[1].name.split(".")[0], "patient p0: is in two splits"):
        assert said in str(error.value)


def test_blanked_and_missing_slices_are_left_out(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, tmp_path / "data")
    path = tmp_path / "data" / "slice_labels.csv"
    lines = path.read_text().splitlines()
    lines = [lines[0] + ",blanked"] + [line + (",1" if i % 16 == 0 else ",0") for i, line in enumerate(lines[1:])]
    path.write_text("\n".join(lines))
    assert all(case.labels[0] == -1 for case in load_dataset(tmp_path / "data").cases)


# --- classifier and maps ----------------------------------------------------------------------------------------------


def test_cam_averaged_over_space_plus_bias_is_the_logit() -> None:
    torch.manual_seed(0)
    network = SliceNetwork(TINY).eval()
    hu = torch.rand(3, 64, 48) * 100 - 20
    maps = raw_maps(network, hu, Cam())
    assert maps.shape == (3, 8, 6)  # output stride 8
    with torch.no_grad():
        assert torch.allclose(maps.mean(dim=(1, 2)) + network.fc.bias, network(hu), atol=1e-5)


@pytest.mark.parametrize("settings", [Cam(), Cam(flips=True), Cam("layercam", 2), Cam("layercam", 3, flips=True)])
def test_maps_are_normalised_and_do_not_depend_on_the_batch(settings: Cam) -> None:
    torch.manual_seed(0)
    network = SliceNetwork(TINY).eval()
    hu = torch.rand(4, 64, 48) * 100 - 20
    maps = activation_maps(network, hu, settings)
    assert maps.shape == hu.shape
    assert maps.amin() >= 0
    assert maps.amax() <= 1
    assert torch.allclose(activation_maps(network, hu[2:3], settings), maps[2:3], atol=1e-4)
    if settings.flips:
        assert torch.allclose(activation_maps(network, hu.flip(2), settings).flip(2), maps, atol=1e-4)


def test_layercam_counts_what_speaks_for_hemorrhage() -> None:
    """Of a ReLU's activations it is the published map; of negative ones, what they say with a negative gradient."""
    torch.manual_seed(0)
    network, hu = SliceNetwork(TINY).eval(), torch.rand(2, 64, 48) * 100 - 20
    for stage in (2, 3):
        maps = network.stages(hu)
        (gradient,) = torch.autograd.grad(network.fc(maps[-1].mean(dim=(2, 3))).sum(), maps[stage - 1])
        published = (gradient.relu() * maps[stage - 1]).sum(dim=1).relu()
        assert torch.allclose(raw_maps(network, hu, Cam("layercam", stage)), published)

    class Signed(SliceNetwork):
        def stages(self, hu: torch.Tensor) -> list[torch.Tensor]:
            first = torch.stack([hu, -hu], dim=1).requires_grad_()
            return [first, torch.stack([first[:, 0] - first[:, 1], 0 * first[:, 0]], dim=1)]

    signed = Signed(TINY).eval()
    signed.fc = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(signed.fc.weight)
    bright = torch.zeros(1, 4, 4)
    bright[0, 1, 2] = 3.0
    assert torch.allclose(raw_maps(signed, bright, Cam("layercam", 1)), 2 * bright / 16)


def test_unknown_maps_are_refused() -> None:
    network = SliceNetwork(TINY)
    with pytest.raises(HemsegError, match="layercam"):
        raw_maps(network, torch.zeros(1, 64, 48), Cam("cam", 2))
    with pytest.raises(HemsegError, match="not known"):
        raw_maps(network, torch.zeros(1, 64, 48), Cam("scorecam"))


@pytest.mark.parametrize(("stride", "size"), [(32, (2, 2)), (16, (4, 3)), (8, (8, 6))])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_output_stride(backbone: str, stride: int, size: tuple[int, int]) -> None:
    network = SliceNetwork(replace(TINY, backbone=backbone, output_stride=stride)).eval()
    assert tuple(network.stages(torch.zeros(1, 64, 48))[-1].shape[2:]) == size


def test_gradients_reach_the_backbone_through_the_lstm_and_padding_carries_none() -> None:
    torch.manual_seed(0)
    sequence = SequenceNetwork(SliceNetwork(TINY).eval(), Sequence(hidden=4))
    volumes = [(torch.rand(n, 64, 48) * 80, torch.ones(n)) for n in (5, 2)]
    hu, labels, lengths = collate_volumes(volumes)
    logits = sequence(hu, lengths)
    assert logits.shape == labels.shape == (7,)
    logits.sum().backward()
    assert sequence.network.backbone.conv1.weight.grad.abs().sum() > 0
    alone = torch.cat([sequence(v, torch.tensor([len(v)])) for v, _ in volumes])
    assert torch.allclose(alone, logits, atol=1e-5)


def test_the_refitted_layer_separates_what_the_features_separate() -> None:
    torch.manual_seed(0)
    network = SliceNetwork(TINY).eval()
    dark, bright = torch.rand(12, 64, 48) * 20, 60 + torch.rand(12, 64, 48) * 20
    volumes = Volumes([], Config("test"))
    volumes.items = [(torch.cat([dark, bright]), torch.cat([torch.zeros(12), torch.ones(12)]))]
    before = network.backbone.conv1.weight.clone()
    refit_linear_layer(network, volumes)
    with torch.no_grad():
        assert network(bright).min() > network(dark).max()
    assert torch.equal(before, network.backbone.conv1.weight)


def test_cut_and_paste_are_inverse_even_beyond_the_edges() -> None:
    array = np.random.default_rng(0).random((2, 20, 30))
    window = cut(array, (-4, 10), (18, 25), -1.0)
    assert window.shape == (2, 18, 25)
    assert (window[:, :4] == -1).all()
    back = paste(window, (-4, 10), array.shape)
    assert np.array_equal(back[:, :14, 10:], array[:, :14, 10:])
    assert not back[:, 14:].any()


# --- pseudo-labels ----------------------------------------------------------------------------------------------------


class BrightNetwork(SliceNetwork):
    """A classifier that counts voxels of 55-75 HU: the truth about a phantom."""

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return ((hu > 55) & (hu < 75)).float().sum(dim=(1, 2))


def blood_on_brain() -> tuple[np.ndarray, np.ndarray]:
    hu = np.random.default_rng(0).normal(32, 2, (64, 48)).astype(np.float32)
    blood = np.zeros(hu.shape, bool)
    blood[20:30, 18:26] = True
    hu[blood] = 65
    hu[24:26, 10:12] = 100  # a calcification
    return hu, blood


def probe() -> Probe:
    return Probe(BrightNetwork(TINY), TINY)


@pytest.mark.parametrize("how", ["lowest", "mean"])
def test_differential_prediction_finds_the_blood(how: str) -> None:
    hu, blood = blood_on_brain()
    activation = np.zeros(hu.shape, np.float32)
    activation[14:36, 6:34] = 1.0
    settings = Pseudolabels(threshold=0.7, clusters=3, replace=how)
    choice = choose_cluster(SliceView(hu, hu, activation, np.ones(hu.shape, bool)), probe(), settings)
    assert np.array_equal(choice.mask, blood)
    assert choice.chosen == int(np.argmax(choice.drops)) + 1
    assert sum(choice.sizes) == (activation > 0).sum()
    assert list(choice.means) == sorted(choice.means)


def test_nothing_is_chosen_where_no_removal_matters() -> None:
    hu, blood = blood_on_brain()
    view = SliceView(hu, hu, np.ones_like(hu), np.ones(hu.shape, bool))
    least = Pseudolabels(clusters=3, min_drop=float(blood.sum()) - 1)
    assert choose_cluster(view, probe(), least).mask[blood].all()
    none = choose_cluster(view, probe(), replace(least, min_drop=float(blood.sum())))
    assert none.chosen == 0
    assert not none.mask.any()
    assert none.drops


def test_degenerate_regions_are_defined() -> None:
    hu, _ = blood_on_brain()
    everywhere = np.ones(hu.shape, bool)
    view = SliceView(hu, hu, np.ones_like(hu), everywhere)
    nothing = choose_cluster(replace(view, activation=np.zeros_like(hu)), probe(), Pseudolabels())
    assert not nothing.mask.any()
    assert nothing.chosen == 0
    flat = np.full_like(hu, 60)
    one = choose_cluster(replace(view, hu=flat, intensities=flat), probe(), Pseudolabels())
    assert one.mask.all()
    whole = choose_cluster(view, probe(), Pseudolabels(clusters=0))
    assert whole.mask.all()
    outside = choose_cluster(replace(view, intracranial=~everywhere), probe(), Pseudolabels(intracranial=True))
    assert not outside.mask.any()
    assert intensity_clusters(np.array([5.0, 1.0, 5.0]), 4).tolist() == [2, 1, 2]


def test_clusters_rise_with_intensity_and_do_not_change() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(m, 1, 50) for m in (60, 10, 35)])
    labels = intensity_clusters(values, 3)
    assert labels.tolist() == [3] * 50 + [1] * 50 + [2] * 50
    assert np.array_equal(labels, intensity_clusters(values, 3))


def test_trial_images_take_out_one_cluster_each() -> None:
    hu, blood = blood_on_brain()
    trials = trial_images(hu, blood.astype(np.int8), -20.0, "lowest")
    assert np.array_equal(trials[0], hu)
    assert (trials[1][blood] == -20).all()
    assert np.array_equal(trials[1][~blood], hu[~blood])
    with pytest.raises(HemsegError, match="not known"):
        trial_images(hu, blood.astype(np.int8), -20.0, "noise")


# --- segmenter --------------------------------------------------------------------------------------------------------


def test_combined_loss_is_equation_2() -> None:
    logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1.0, 0.0, 0.0]])
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    bce = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert combined_loss(logits, target) == pytest.approx(float(dice + bce), abs=1e-6)
    assert combined_loss(target * 100 - 50, target) < 1e-4


def test_patches_are_a_function_of_seed_epoch_and_index(phantoms: Path, tmp_path: Path) -> None:
    config = load_config("smoke")
    dataset = load_dataset(phantoms)
    prepare(dataset, config.preprocessing, tmp_path)
    cases = list(prepared(tmp_path, dataset, "train"))
    labels = {c.name: (c.hu > 50) & (c.hu < 80) & c.intracranial for c in cases}
    a, b = (Patches(cases, labels, config) for _ in range(2))
    for key in ((0, 0), (3, 1)):
        for x, y in zip(a[key], b[key]):
            assert torch.equal(x, y)
    assert not torch.equal(a[0, 0][0], a[1, 0][0])
    assert a[0, 0][0].shape == (2, *config.segmenter.train_patch)
    sampler = EpochSampler(10, seed=1)
    sampler.set_epoch(4)
    assert sorted(i for _, i in sampler) == list(range(10))
    assert list(sampler) == list(sampler)
    assert all(epoch == 4 for epoch, _ in sampler)


def test_the_unet_keeps_shapes_and_starts_with_rare_hemorrhage() -> None:
    settings = Segmenter(channels=(4, 8, 8), strides=((1, 2, 2), (2, 2, 2)), residual_units=1)
    network = build_unet(settings, 2).eval()
    with torch.no_grad():
        logits = network(torch.rand(1, 2, 4, 16, 16))
    assert logits.shape == (1, 1, 4, 16, 16)
    assert logits.sigmoid().mean() < 0.2


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    a, b = np.zeros((2, 4, 6, 8), np.uint8)
    a[1, 1:3, 1:5], b[1, 1:3, 3:7] = 1, 1
    assert overlap(a, b) == {"dice": 0.5, "rvd": 0.0, "tpr": 0.5}
    assert overlap(a, b * 0)["dice"] == 0.0
    assert np.isnan(overlap(a, b * 0)["rvd"])
    assert overlap(a * 0, b * 0)["dice"] == 1.0
    b[3, 4:6, 6:8] = 1
    assert lesion_counts(a, b, voxel_ml=0.05) == {"lesions": 2, "lesions_found": 1, "lesions_false": 0}
    assert lesion_counts(b, a, voxel_ml=0.05) == {"lesions": 1, "lesions_found": 1, "lesions_false": 1}
    assert lesion_counts(a, b, voxel_ml=0.02) == {"lesions": 1, "lesions_found": 1, "lesions_false": 0}
    figures = summary([{"dice": 0.5, "rvd": float("nan")}, {"dice": 0.7, "rvd": 1.0}], ("dice", "rvd"))
    assert figures["dice_mean"] == pytest.approx(0.6)
    assert figures["dice_sd"] == pytest.approx(0.1414, abs=1e-3)
    assert figures["rvd_mean"] == 1.0


# --- stages and the whole pipeline ------------------------------------------------------------------------------------


def test_stages_are_skipped_when_done_and_run_again_when_something_changed(tmp_path: Path) -> None:
    ran: list[str] = []

    def stages(first: int, second: int) -> dict[str, Stage]:
        def work(name: str) -> dict[str, int]:
            ran.append(name)
            return {"n": len(ran)}

        made = [Stage("a", (), (first,), lambda _: work("a")), Stage("b", ("a",), (second,), lambda _: work("b"))]
        return {stage.name: stage for stage in made}

    for expected, settings in ((["a", "b"], (1, 1)), ([], (1, 1)), (["b"], (1, 2)), (["a", "b"], (2, 2))):
        ran.clear()
        (tmp_path / "b" / "left over").parent.mkdir(exist_ok=True)
        table = stages(*settings)
        run_stage(table["b"], tmp_path, table)
        assert ran == expected


def test_a_trained_network_is_kept_when_its_stage_starts_over(tmp_path: Path) -> None:
    current: list[int] = []
    trained: list[int] = []

    def train(folder: Path) -> dict[str, int]:
        (folder / "network.pt").write_text("weights")
        trained.append(current[0])
        return {}

    def run(setting: int) -> None:
        current[:] = [setting]
        table = {"a": Stage("a", (), (setting,), train), "b": Stage("b", ("a",), (), lambda folder: {})}
        run_stage(table["b"], tmp_path, table)

    for setting in (1, 2, 1, 2):
        run(setting)
    assert trained == [1, 2]  # what was done before is taken back
    assert len(list((tmp_path / "former").glob("a-*/network.pt"))) == 1  # b can be made again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "former"]
    (tmp_path / "a" / "done.json").unlink()  # interrupted: half of a training is none
    run(3)
    assert len(list((tmp_path / "former").iterdir())) == 1


def test_the_other_processes_do_not_train_what_the_first_took_back(tmp_path: Path) -> None:
    def train(folder: Path) -> dict[str, int]:
        raise AssertionError("waits for a first process that does not train")

    (tmp_path / "a").mkdir()
    for name in ("started.json", "done.json"):  # as a folder that is moved: both at once
        (tmp_path / "a" / name).write_text('{"fingerprint": "mark", "figures": {"n": 1}}')
    assert _join_first_process(Stage("a", (), (), train, distributed=True), tmp_path / "a", "mark") == {"n": 1}


def test_an_interrupted_stage_goes_on_with_what_it_has(tmp_path: Path) -> None:
    def fail_once(folder: Path) -> dict[str, int]:
        if not (folder / "half").exists():
            (folder / "half").touch()
            raise KeyboardInterrupt
        return {"n": 1}

    table = {"a": Stage("a", (), (), fail_once)}
    with pytest.raises(KeyboardInterrupt):
        run_stage(table["a"], tmp_path, table)
    assert not (tmp_path / "a" / "done.json").exists()
    assert run_stage(table["a"], tmp_path, table) == {"n": 1}


def test_splits_without_cases_are_told_before_any_work(phantoms: Path, tmp_path: Path) -> None:
    shutil.copytree(phantoms, data := tmp_path / "set")
    names, run = [case.name for case in load_dataset(data).cases], tmp_path / "run"
    for splits, stage, said in (
        (("train", "test"), "all", "in the split val, which classify needs"),
        (("val", "test"), "segment", "in the split train, which classify needs"),
        (("test", "test"), "export", "in the split train or val, which classify needs"),
        (("train", "val"), "evaluate", "in the split test, which evaluate needs"),
    ):
        rows = [f"{name},{splits[i % 2]}" for i, name in enumerate(names)]
        (data / "split.csv").write_text("\n".join(["case,split", *rows]))
        told = training(stage, "--config", "smoke", "--run", run, "--data", data, check=1).stderr
        assert said in told.replace("\n", " ")
        assert not run.exists()
    without = replace(load_config("smoke"), without=Without(classify=("a", "b")))
    a, b = (replace(load_dataset(data), name=name) for name in "ab")
    stages = build_stages(without, merge_datasets([a, b]), run)
    with pytest.raises(HemsegError, match="no case but for those of a, b is in the split train or val"):
        run_stage(stages["cam"], run, stages)
    assert not run.exists()
    (data / "split.csv").write_text("\n".join(["case,split", *(f"{name},test" for name in names)]))
    training("prepare", "--config", "smoke", "--run", run, "--data", data)  # what needs no split
    training("measure", "--threshold", "--data", data, "--out", tmp_path / "measured")
    assert (tmp_path / "measured" / "per_case.csv").exists()


def test_stages_that_a_configuration_does_not_have(phantoms: Path, tmp_path: Path) -> None:
    told = training("relabel", "--config", "smoke", "--run", tmp_path, "--data", phantoms, check=1).stderr
    assert "configuration smoke has no stage relabel" in told


def test_mistakes_end_in_one_sentence(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shutil.copytree(phantoms, tmp_path / "set")
    (tmp_path / "set" / "slice_labels.csv").unlink()
    (tmp_path / "set" / "slice_labels.csv").mkdir()
    for arguments, said in (
        (("all", "--config", "nothing", "--run", tmp_path), "no such configuration"),
        (("all", "--config", "phe_sich", "--run", tmp_path), "give --data"),
        (("all", "--config", "smoke", "--run", tmp_path, "--data", tmp_path), "is not a data set"),
        (
            ("prepare", "--config", "smoke", "--run", tmp_path / "file", "--data", phantoms),
            f"error: {tmp_path / 'file' / 'prepare'}: Not a directory; check",
        ),
        (
            ("prepare", "--config", "smoke", "--run", tmp_path, "--data", tmp_path / "set"),
            f"error: {tmp_path / 'set' / 'slice_labels.csv'}: Is a directory; check",
        ),
    ):
        assert said in training(*arguments, check=1).stderr
