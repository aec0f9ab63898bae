"""What the shipped recipe does beyond the paper, and how it is measured."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COARSE, ROOT, dice
from helpers.networks import TINY

from hemseg.errors import HemsegError
from hemseg.model import load
from hemseg.scan import read
from hemseg.volume import Volume
from training.config import Cam, Export, Pseudolabels, load_config
from training.data.augmentation import augmented_patches, augmented_slices, degraded
from training.data.brain import brain_level
from training.data.datasets import Case, DataSet, Prepared, load_dataset, merge_datasets
from training.data.permuted import permuted, permuted_singles
from training.data.phantom import make_phantom, write_dataset, write_image
from training.evaluation.evaluate import (
    Prediction,
    evaluate,
    metrics_over_cases,
    share_with_interval,
    threshold_predictor,
)
from training.evaluation.measure import measure_all, shown_slices, write_pictures
from training.evaluation.panels import PanelRow, panel
from training.experiments.records import gather, table, write_experiments
from training.experiments.shortcuts import shortcuts
from training.export.to_onnx import export_model
from training.labels.cam import activation_maps
from training.labels.components import choose_components
from training.labels.differential import Probe, SliceView
from training.labels.outline import half_maximum
from training.networks.slice_network import SliceNetwork
from training.networks.unet import LEFT_OUT, UNLOCATED, build_unet, combined_loss
from training.pipeline.context import unet_label
from training.pipeline.recipe import build_stages
from training.pipeline.runner import fingerprint


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two small data sets: `a` with masks, `b` with the same case names and slice labels alone."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("a", "b"):
        write_dataset(folder / name, 5, seed=4, grid=COARSE)
    for mask in (folder / "b" / "masks").glob("*"):
        mask.unlink()
    (folder / "b" / "masks").rmdir()
    return folder / "a", folder / "b"


# --- several data sets ------------------------------------------------------------------------------------------------


def test_data_sets_are_put_together_and_taken_apart(two_sets: tuple[Path, Path]) -> None:
    a, b = map(load_dataset, two_sets)
    both = merge_datasets([a, b])
    assert len(both.cases) == len({case.name for case in both.cases}) == 10
    assert {case.source for case in both.cases} == {"a", "b"}
    assert all(case.patient.startswith(f"{case.source}_") for case in both.cases)
    assert [source.name for source in both.sources()] == ["a", "b"]
    assert merge_datasets([a]) is a
    assert a.sources() == [a]
    with pytest.raises(HemsegError, match="two data sets are called a"):
        merge_datasets([a, a])


def test_each_data_set_is_measured_with_what_it_has(two_sets: tuple[Path, Path], tmp_path: Path) -> None:
    both = merge_datasets([load_dataset(folder) for folder in two_sets])

    def everything_above_45(volume: Volume) -> Prediction:
        mask = ((volume.hu > 45) & (volume.hu < 90)).astype(np.uint8)
        return Prediction(mask, mask.mean(axis=(1, 2)))

    figures = evaluate(both, everything_above_45, tmp_path, ("train", "val", "test"))
    a, b = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("a", "b"))
    assert figures["a dice_mean"] == a["dice_mean"]
    assert "dice_mean" not in b
    assert b["patients_found_count"] == a["patients_found_count"] == "4 of 4"
    assert b["healthy_with_half_ml"] == 1.0
    assert a["outlined"] == 5
    assert 0.4 < b["slice_auc"] <= 1
    with pytest.raises(HemsegError, match="no case is in the split"):
        evaluate(both, everything_above_45, tmp_path, ("nowhere",))


def test_doubtful_slices_are_counted_by_their_labels(two_sets: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = load_dataset(two_sets[1])

    def first_two(volume: Volume) -> Prediction:
        return Prediction(np.zeros(volume.hu.shape, np.uint8), np.zeros(len(volume.hu)), (0, len(volume.hu) // 2))

    evaluate(dataset, first_two, tmp_path, ("train", "val", "test"))
    with (tmp_path / "per_case.csv").open(newline="") as file:
        rows = {row["case"]: row for row in csv.DictReader(file)}
    for case in dataset.cases:
        labels = np.array(case.labels)[:: 1 if read(case.image).cosines[2, 2] > 0 else -1]
        asked = labels[[0, len(labels) // 2]]
        assert int(rows[case.name]["slices_doubtful"]) == (asked == 1).sum()
        assert int(rows[case.name]["doubtful_false"]) == (asked == 0).sum()
    assert sum(int(row["slices_doubtful"]) for row in rows.values()) > 0


def test_shares_come_with_wilsons_interval() -> None:
    found = share_with_interval("found", [True] * 9 + [False])  # Newcombe 1998 and any calculator: 0.596..0.982
    assert found == {"found": 0.9, "found_count": "9 of 10", "found_95": "0.60..0.98"}
    assert share_with_interval("found", [True] * 5)["found_95"] == "0.57..1.00"


def test_patients_are_found_by_a_true_positive_slice() -> None:
    rows = [
        {"positive_slices": 3, "slices_found": 0, "slices_false": 2, "predicted_ml": 2.0, "subtypes": "subdural"},
        {"positive_slices": 3, "slices_found": 1, "slices_false": 0, "predicted_ml": 2.0, "subtypes": "subdural"},
        {"positive_slices": 0, "slices_found": 0, "slices_false": 1, "predicted_ml": 0.6, "subtypes": ""},
        {"positive_slices": 0, "slices_found": 0, "slices_false": 0, "predicted_ml": 0.0, "subtypes": ""},
    ]
    figures = metrics_over_cases(rows, [])
    assert figures["patients_found_count"] == "1 of 2"
    assert figures["found_subdural"] == "1 of 2"
    assert figures["healthy_with_half_ml_count"] == "1 of 2"
    assert figures["healthy_median_ml"] == pytest.approx(0.3)


# --- maps and components ----------------------------------------------------------------------------------------------


class BloodCounter(SliceNetwork):
    """A classifier that says yes from ten pixels of 55-80 HU on."""

    def forward(self, hu: torch.Tensor) -> torch.Tensor:
        return ((hu > 55) & (hu < 80)).float().sum(dim=(1, 2)) - 10


def two_bleeds() -> tuple[np.ndarray, np.ndarray]:
    """A slice with a large and a small bleed of different intensity, a calcification and a thin bright streak."""
    hu = np.random.default_rng(0).normal(32, 1, (64, 48)).astype(np.float32)
    blood = np.zeros(hu.shape, bool)
    blood[20:30, 18:26] = True
    blood[44:48, 30:35] = True
    hu[20:30, 18:26] = 76
    hu[44:48, 30:35] = 60
    hu[8:14, 8:14] = 92  # calcified
    return hu, blood


def view_of(hu: np.ndarray, activation: float = 1.0) -> SliceView:
    return SliceView(hu, hu, np.full_like(hu, activation), np.ones(hu.shape, bool))


def test_components_take_every_bleed_and_no_calcification() -> None:
    hu, blood = two_bleeds()
    settings, probe = Pseudolabels(threshold=0.2, min_pixels=4), Probe(BloodCounter(TINY), TINY)
    choice = choose_components(view_of(hu), probe, settings)
    assert np.array_equal(choice.mask, blood)
    assert len(choice.sizes) == 3
    first_alone = choose_components(view_of(hu), probe, replace(settings, rounds=0))
    assert first_alone.mask.sum() == 80  # the small bleed costs less than the share that goes with the first one
    assert not choose_components(view_of(hu, activation=0), probe, settings).mask.any()
    limit = float(hu[blood].max()) - 1  # candidates above a limit are bone and brain in one voxel
    below = choose_components(view_of(hu), probe, replace(settings, max_hu=limit))
    assert below.mask.sum() < blood.sum()
    assert len(below.sizes) < 3
    assert not choose_components(view_of(np.full_like(hu, 32)), probe, settings).mask.any()
    assert brain_level(np.full((4, 4), 500.0), np.ones((4, 4), bool)) == 30


def test_components_that_hardly_matter_are_not_chosen() -> None:
    hu = np.full((64, 48), 32, np.float32)
    hu[20:26, 20:26] = 65
    view, probe, settings = view_of(hu), Probe(BloodCounter(TINY), TINY), Pseudolabels()
    drop = max(choose_components(view, probe, settings).drops)
    assert choose_components(view, probe, replace(settings, min_drop=drop - 1e-3)).mask.any()
    assert not choose_components(view, probe, replace(settings, min_drop=drop)).mask.any()


def test_nothing_is_chosen_when_nothing_lowers_the_logit() -> None:
    hu = np.full((64, 48), 32, np.float32)
    hu[8:14, 8:14] = 92
    choice = choose_components(view_of(hu), Probe(BloodCounter(TINY), TINY), Pseudolabels())
    assert not choice.mask.any()
    assert choice.chosen == 0


def test_former_names_are_read_and_leave_runs_valid(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("pseudolabels: {method: pieces, pieces: 6}")
    (tmp_path / "new.yaml").write_text("pseudolabels: {method: components, candidates: 6}")
    old, new = (load_config(tmp_path / f"{name}.yaml").pseudolabels for name in ("old", "new"))
    assert old == new == Pseudolabels(method="components", candidates=6)
    plain = {"Pseudolabels": {"method": "pieces", "pieces": 6}}  # what was hashed under the former names
    assert fingerprint(new) == fingerprint(plain)


def test_the_readme_adds_a_method_in_ten_lines() -> None:
    from training.labels import methods

    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "training" / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    hu, blood = two_bleeds()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "METHODS", dict(methods.METHODS))
        exec(compile(code, "training/README.md", "exec"), {})  # noqa: S102  our own page
        (name,) = set(methods.METHODS) - {"clusters", "components"}
        method = methods.choose_method(name)
        choice = method(view_of(hu), Probe(BloodCounter(TINY), TINY), Pseudolabels())
        assert (choice.mask & blood).any()
        assert not method(view_of(np.full_like(hu, 32)), Probe(BloodCounter(TINY), TINY), Pseudolabels()).mask.any()
    with pytest.raises(HemsegError, match="known: clusters, components"):
        methods.choose_method("pieces of eight")


def test_rounds_of_self_training_follow_one_another(two_sets: tuple[Path, Path], tmp_path: Path) -> None:
    config = load_config("best")
    again = replace(config.self_training, rounds=2)
    stages = build_stages(replace(config, self_training=again), load_dataset(two_sets[0]), tmp_path)
    assert stages["relabel2"].needs == ("resegment", "relabel")
    assert stages["resegment2"].needs == ("relabel2",)
    assert stages["export"].needs == ("resegment2",)
    one = build_stages(config, load_dataset(two_sets[0]), tmp_path)
    assert one["export"].needs == ("resegment",)
    assert one["resegment"].settings == stages["resegment"].settings  # one more round does not change the first


def test_half_maximum_finds_the_edge_that_a_blur_hid() -> None:
    from scipy import ndimage

    yy, xx = np.mgrid[:64, :64]
    true = (yy - 32) ** 2 + (xx - 30) ** 2 < 10**2
    hu = ndimage.gaussian_filter(np.where(true, 70.0, 30.0), 2.0)
    core = hu > 62
    everywhere = np.ones(true.shape, bool)
    assert dice(core, true) < 0.85
    assert dice(half_maximum(core, hu, everywhere, 4, 1.0), true) > 0.97
    speck = np.zeros_like(true)
    speck[5, 5] = True
    assert np.array_equal(half_maximum(speck, hu, everywhere, 4, 1.0), speck)
    assert not half_maximum(np.zeros_like(true), hu, everywhere, 4, 1.0).any()


def test_maps_of_several_stages_are_high_only_where_all_are() -> None:
    torch.manual_seed(0)
    network, hu = SliceNetwork(TINY), torch.randn(2, 64, 48) * 20 + 30
    single = [activation_maps(network, hu, Cam("layercam", s)) for s in (2, 3)]
    both = activation_maps(network, hu, Cam("layercam", stages=(2, 3)))
    expected = (single[0] * single[1]).sqrt()
    assert torch.allclose(both, expected / expected.amax(dim=(1, 2), keepdim=True), atol=1e-5)
    assert torch.equal(activation_maps(network, hu, Cam("layercam", stages=(3,))), single[1])


# --- labels, loss, augmentation ---------------------------------------------------------------------------------------


def test_slices_that_are_left_out_do_not_count_in_the_loss() -> None:
    logits = torch.randn(1, 1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    target = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) > 0.7).float()
    left_out = target.clone()
    left_out[:, :, 2], left_out[:, :, 3] = LEFT_OUT, UNLOCATED
    other = logits.clone()
    other[:, :, 2:] += 5
    assert torch.equal(combined_loss(logits, left_out), combined_loss(other, left_out))
    assert not torch.equal(combined_loss(logits, target), combined_loss(other, target))
    saved = {"mask": np.zeros((3, 2, 2), bool), "left_out": np.array([False, True, False])}
    assert unet_label(saved)[:, 0, 0].tolist() == [0, UNLOCATED, 0]


def test_labels_are_permuted_within_the_volume() -> None:
    labels = np.array([-1, 0, 0, 1, 1, 1, 0, 0, 0, -1], np.int8)
    case = Prepared("x", "train", np.zeros((10, 1, 1)), np.ones((10, 1, 1), bool), labels)
    other = permuted(case, 0, {})
    assert other.labels.sum() == labels.sum()
    assert other.labels[[0, -1]].tolist() == [-1, -1]
    assert not np.array_equal(other.labels, labels)
    assert np.array_equal(other.labels, permuted(case, 0, {}).labels)


def test_labels_of_single_slices_are_permuted_among_them() -> None:
    split = ["train"] * 8 + ["val"] * 4
    cases = [Case(f"s{i}", Path(f"s{i}"), part, (i % 2,), None) for i, part in enumerate(split)]
    volume = Case("volume", Path("volume"), "train", (0, 1), None)
    unknown = Case("unknown", Path("unknown"), "train", (-1,), None)
    singles = permuted_singles(DataSet("singles", (*cases, volume, unknown)), 0)
    assert set(singles) == {case.name for case in cases}
    for part in ("train", "val"):
        before = [case.labels[0] for case in cases if case.split == part]
        after = [singles[case.name] for case in cases if case.split == part]
        assert sorted(after) == sorted(before)
        assert after != before
    slice_of = Prepared("s1", "train", np.zeros((1, 1, 1)), np.ones((1, 1, 1), bool), np.array([1], np.int8))
    assert permuted(slice_of, 0, {"s1": 0}).labels.tolist() == [0]


def test_degradation_is_a_function_of_its_generator_and_stays_small() -> None:
    image = torch.rand(6, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    a, b = (degraded(image, torch.Generator().manual_seed(5), 0.5) for _ in range(2))
    assert torch.equal(a, b)
    changed = (a != image).flatten(1).any(dim=1)
    assert 0 < changed.sum() < 6
    assert (a - image).abs().max() < 0.2
    assert torch.equal(degraded(image, torch.Generator().manual_seed(5), 0.0), image)
    windows = torch.tensor([[0.0, 80.0], [-20.0, 100.0]])
    hu = torch.full((3, 32, 32), 40.0)
    moved = augmented_slices(hu, torch.Generator().manual_seed(1), windows, share_degraded=1.0)
    assert -20 <= moved.min() <= moved.max() <= 100
    patch = torch.rand(2, 2, 4, 16, 16)
    patch[:, :, :, :4] = 0
    image, target = augmented_patches(patch, patch[:, :1] * 0, torch.Generator().manual_seed(1), 1.0)
    assert image.shape == patch.shape
    assert not target.any()


# --- pictures, tables, export -----------------------------------------------------------------------------------------


def test_panels_have_a_column_for_each_thing_there_is() -> None:
    hu = np.full((20, 30), 30.0)
    mask = np.zeros(hu.shape, bool)
    mask[5:10, 5:10] = True
    full = PanelRow(hu, hu / 100, mask.astype(np.int8), mask, mask, mask)
    assert panel([full] * 3, (-20, 100)).shape == (18 + 3 * 20, 6 * 30, 3)
    assert panel([PanelRow(hu, prediction=mask)], (-20, 100)).shape == (18 + 20, 2 * 30, 3)
    assert (panel([full], (-20, 100))[18:, 5 * 30 :] == (60, 200, 60)).all(axis=2).any()  # the reference, in green


def test_pictures_of_masks_that_are_too_small_for_the_working_grid(tmp_path: Path) -> None:
    """One voxel of false blood in a healthy head fades where voxels are averaged; so does a mask without any."""
    hu = np.full((16, 48, 48), -1000, np.float32)
    hu[:, 8:40, 8:40] = 30
    mask = np.zeros(hu.shape, np.uint8)
    mask[2, 20, 20] = 1
    cases, rows = [], []
    for name, upwards, dice_ in (("up", 1.0, 0.0), ("down", -1.0, 1.0)):
        volume = Volume(hu, (0.5, 0.5, 1.25), direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, upwards))
        write_image(hu, volume, tmp_path / f"{name}.nii.gz")
        cases.append(Case(name, tmp_path / f"{name}.nii.gz", "test", (0,) * len(hu), None))
        rows.append({"case": name, "positive_slices": 0, "predicted_ml": 0.05, "dice": dice_})
    dataset = DataSet("a", tuple(cases))
    for found in (mask, mask * 0):
        prediction = Prediction(found, np.zeros(len(mask)))
        write_pictures(dataset, lambda volume, given=prediction: given, rows, tmp_path / str(found.sum()))
        assert len(list((tmp_path / str(found.sum())).glob("*.png"))) == 6
    up, down = (read(case.image) for case in cases)
    gone = np.zeros((4, 24, 24), bool)
    assert shown_slices(cases[0], up, mask, gone, 4).tolist() == [0]
    assert shown_slices(cases[1], down, mask, gone, 4).tolist() == [3]
    assert shown_slices(cases[0], up, mask * 0, gone, 4).tolist() == [0, 1, 2, 3]
    gone[1] = True
    assert shown_slices(cases[0], up, mask, gone, 4).tolist() == [1]


def test_measure_and_the_table_of_experiments(two_sets: tuple[Path, Path], tmp_path: Path) -> None:
    a = load_dataset(two_sets[0])
    predict = threshold_predictor(load_config("smoke").preprocessing)
    measure_all(a, predict, ("train", "test"), tmp_path / "out", tmp_path / "pictures")
    for plot in ("volumes.png", "dice.png", "roc.png"):
        assert (tmp_path / "out" / plot).stat().st_size > 5000
    assert list((tmp_path / "pictures").glob("worst_*.png"))
    found = gather(tmp_path / "out")
    assert len(found["a"]["dice"]) == found["a"]["figures"]["cases"] == 4
    runs = tmp_path / "runs"
    runs.mkdir()
    for order, (name, shift) in enumerate((("first", 0.0), ("second", 0.1))):
        dice_of = {k: v * 0.5 + shift + 0.01 * i for i, (k, v) in enumerate(found["a"]["dice"].items())}
        test = {"phe-sich": {"split": "test", "figures": found["a"]["figures"], "dice": dice_of}}
        (runs / f"{name}.json").write_text(json.dumps({"id": name, "order": order, "recipe": "r", "test": test}))
    rows = table(runs)
    assert [row["id"] for row in rows] == ["first", "second"]
    assert rows[0]["p against the row before"] == "-"
    assert rows[1]["p against the row before"].endswith("(+0.100)")
    write_experiments(runs, tmp_path / "experiments.md")
    assert (tmp_path / "experiments.md").read_text().count("| second |") == 1
    with pytest.raises(HemsegError, match="no recorded experiment"):
        write_experiments(tmp_path / "pictures", tmp_path / "x.md")
    with pytest.raises(HemsegError, match="holds no evaluation"):
        gather(tmp_path / "nowhere")


def test_the_committed_table_is_made_of_the_committed_records(tmp_path: Path) -> None:
    results = ROOT / "docs" / "results"
    write_experiments(results / "runs", tmp_path / "experiments.md")
    assert (tmp_path / "experiments.md").read_text() == (results / "experiments.md").read_text()


def test_export_in_half_precision(tmp_path: Path) -> None:
    config = load_config("smoke")
    config = replace(config, export=Export(half=True), segmenter=replace(config.segmenter, patch=(8, 32, 32)))
    figures = export_model(build_unet(config.segmenter, 2), config, tmp_path, {})
    whole = tmp_path / "whole"
    whole.mkdir()
    export_model(build_unet(config.segmenter, 2), replace(config, export=Export()), whole, {})
    assert 0 < figures["difference_to_torch"] < 2e-2
    assert (tmp_path / "hemseg.onnx").stat().st_size < 0.65 * (whole / "hemseg.onnx").stat().st_size
    probability = load(tmp_path, "cpu")(np.random.default_rng(0).random((1, 2, 8, 32, 32), dtype=np.float32))
    assert probability.dtype == np.float32


def test_bright_structures_fool_a_threshold_and_are_no_blood() -> None:
    predict = threshold_predictor(load_config("smoke").preprocessing, min_ml=0.1)
    healthy = [make_phantom(seed, (), COARSE) for seed in range(20, 30)]
    fooled = [predict(phantom.volume).mask.sum() * phantom.volume.voxel_ml for phantom in healthy]
    assert not any(phantom.mask.any() for phantom in healthy)
    assert sum(ml >= 0.5 for ml in fooled) >= 3


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0.2, 0.8), (25.0, 0.95, 1.0)])
def test_shortcuts_are_seen(tmp_path: Path, shift: float, least: float, most: float) -> None:
    """Two data sets that differ in brightness can be distinguished, two of the same kind cannot."""
    rng = np.random.default_rng(0)
    cases = []
    for number in range(12):
        source = "ab"[number % 2]
        hu = rng.normal(30 + shift * (source == "b"), 5, (6, 40, 40)).astype(np.float32)
        inside, labels = np.ones(hu.shape, bool), np.zeros(6, np.int8)
        np.savez(tmp_path / f"{source}_{number}.npz", hu=hu, intracranial=inside, labels=labels)
        cases.append(Case(f"{source}_{number}", tmp_path, "val", (0,) * 6, None, source=source))
    config = replace(load_config("smoke"), classifier=TINY)
    torch.manual_seed(0)
    network = SliceNetwork(TINY).eval()
    (row,) = shortcuts(network, DataSet("both", tuple(cases)), config, tmp_path)
    assert row["negative slices"] == "36 / 36"
    assert least <= row["from_features"] <= most
    with pytest.raises(HemsegError, match="needs two data sets"):
        shortcuts(network, DataSet("one", tuple(cases[::2])), config, tmp_path)
