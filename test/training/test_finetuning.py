"""Training that starts from weights, uses masks where it is asked to, and says how long it will take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COARSE, training
from helpers.networks import write_tiny
from safetensors.torch import load_file, save_file

from hemseg.errors import HemsegError
from hemseg.manifest import Manifest, default_weights
from training.commands.inputs import config_and_data
from training.config import Config, SelfTraining, load_config
from training.data.datasets import DataSet, load_dataset
from training.data.phantom import cases, write_case
from training.evaluation.tables import write_table
from training.export.to_onnx import WithSigmoid, write_onnx, write_states
from training.fitting.hardware import Hardware, best_precision, choose_hardware
from training.fitting.trainer import load_network
from training.networks.slice_network import SliceNetwork
from training.networks.unet import build_unet
from training.pipeline import context, steps
from training.pipeline.estimate import Estimate, estimate, measured_steps, needed
from training.pipeline.initial_weights import (
    InitialWeights,
    combined_license,
    combined_supervision,
    find_initial_weights,
    load_initial,
)
from training.pipeline.recipe import build_stages
from training.pipeline.runner import Stage, run_stage, stage_fingerprint
from training.pipeline.train_masks import contradicting
from training.stage_names import Variant

CPU = Hardware(accelerator="cpu")
SPLIT = ("train", "train", "train", "val", "test", "train")
NON_COMMERCIAL = "non-commercial research only"
DIFFERENCES = """
classifier: {optimization: {frozen_statistics: true}}
segmenter: {optimization: {frozen_statistics: true}}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of phantoms, a configuration, and weights of its networks to start from, for research only."""
    folder = tmp_path_factory.mktemp("finetuning")
    grid = replace(COARSE, shape=(8, 48, 48), spacing=(4.8, 4.8, 18.0))
    rows = [row for case in cases(6, 5) for row in write_case(folder / "data", case, grid)]  # processes would cost more
    parts = [{"case": name, "split": part} for (name, _, _), part in zip(cases(6, 5), SPLIT, strict=True)]
    write_table(rows, folder / "data" / "slice_labels.csv")
    write_table(parts, folder / "data" / "split.csv")
    write_tiny(folder, DIFFERENCES)
    config = load_config(folder / "tiny.yaml")
    torch.manual_seed(7)
    unet = build_unet(config.segmenter, len(config.preprocessing.channels))
    start = folder / "start"
    (start / "torch").mkdir(parents=True)
    write_states({"unet": unet, "classifier": SliceNetwork(config.classifier)}, config, start / "torch")
    (start / "LICENSE").write_text("as the manifest says\n")
    manifest = Manifest("start", "1", "hemseg.onnx", "0" * 64, config.segmenter.patch, config.preprocessing)
    replace(manifest, license=NON_COMMERCIAL, provenance={"supervision": "slice labels", "data": "others"}).write(start)
    return folder


@pytest.fixture(scope="module")
def config(study: Path) -> Config:
    return load_config(study / "tiny.yaml")


@pytest.fixture(scope="module")
def dataset(study: Path) -> DataSet:
    return load_dataset(study / "data")


def command(study: Path, stage: str, run: Path, *more: object) -> tuple[object, ...]:
    return (stage, "--config", study / "tiny.yaml", "--data", study / "data", "--run", run, *more)


@pytest.fixture(scope="module")
def tuned(study: Path) -> tuple[Path, str]:
    """A run that started from those weights, up to the U-Net, and what it said."""
    run = study / "run"
    return run, training(*command(study, "segment", run, "--init", study / "start")).stderr


def exported(stages: dict[str, Stage], folder: Path, monkeypatch: Any) -> Manifest:
    """What an export would say, without the seconds that ONNX takes."""

    def write(
        network: Any, config: Config, place: Path, provenance: dict[str, Any], strip: Any, beside: Any
    ) -> dict[str, Any]:
        settings = config.segmenter
        manifest = Manifest(config.name, "1", "hemseg.onnx", "1" * 64, settings.patch, config.preprocessing)
        replace(manifest, license=config.weights_license, provenance=provenance).write(place)
        return {}

    monkeypatch.setattr(steps, "export_model", write)
    folder.mkdir(exist_ok=True, parents=True)
    stages[folder.name].run(folder)
    return Manifest.read(folder)


# --- starting from weights --------------------------------------------------------------------------------------------


def test_fine_tuned_weights_say_what_they_started_from_and_keep_its_licence(
    tuned: tuple[Path, str], study: Path, config: Config, dataset: DataSet, monkeypatch: Any
) -> None:
    stages = build_stages(replace(config, init=str(study / "start")), dataset, tuned[0], hardware=CPU)
    manifest = exported(stages, tuned[0] / "export", monkeypatch)
    initial = InitialWeights(study / "start" / "torch", Manifest.read(study / "start"))
    assert manifest.license.startswith(NON_COMMERCIAL)
    said = manifest.provenance["initial_weights"]
    assert said["license"] == NON_COMMERCIAL
    assert (said["name"], said["data"], said["torch_sha256"]) == ("start", "others", initial.hashes)
    assert manifest.provenance["supervision"] == "slice labels"
    assert (tuned[0] / "export" / "LICENSE").read_text() == "as the manifest says\n"
    assert find_initial_weights(str(tuned[0])) is not None  # and one may go on from it


def test_networks_with_0_epochs_stay_what_they_are_and_a_later_round_goes_on_from_there(
    study: Path, config: Config, dataset: DataSet, tmp_path: Path
) -> None:
    as_it_is = replace(config.classifier.optimization, epochs=0)
    round_ = SelfTraining(enabled=True, optimization=config.segmenter.optimization)
    config = replace(
        config,
        init=str(study / "start"),
        classifier=replace(config.classifier, optimization=as_it_is, painted=1, unpainted=5),
        segmenter=replace(config.segmenter, optimization=as_it_is),
        self_training=round_,
    )
    stages = build_stages(config, dataset, tmp_path, hardware=CPU)
    run_stage(stages["resegment"], tmp_path, stages)
    start = find_initial_weights(config.init)
    assert start is not None
    for stage, before in (
        ("classify", start.classifier),
        ("classify/unpainted", start.unpainted),
        ("segment", start.unet),
        ("resegment", None),
    ):
        found = torch.load(tmp_path / stage / "network.pt", weights_only=True)
        kept = load_file(before) if before else torch.load(tmp_path / "segment" / "network.pt", weights_only=True)
        assert all(torch.equal(found[key], kept[key].to(found[key])) for key in kept) == (before is not None)
    with pytest.raises(HemsegError, match=r"classifier has 0 epochs.*name weights with --init"):
        build_stages(replace(config, init=""), dataset, tmp_path, hardware=CPU)


def test_of_two_classifiers_one_may_go_on_alone(study: Path, config: Config, dataset: DataSet, tmp_path: Path) -> None:
    learns = replace(config.classifier.optimization, epochs=1, patience=1)
    both = replace(config.classifier, optimization=learns, unpainted=5, unpainted_stays=True)
    config = replace(config, init=str(study / "start"), classifier=both)
    stages = build_stages(config, dataset, tmp_path, hardware=CPU)
    run_stage(stages["classify"], tmp_path, stages)
    start = find_initial_weights(config.init)
    assert start is not None
    for stage, before, stays in (("classify", start.classifier, False), ("classify/unpainted", start.unpainted, True)):
        found, kept = torch.load(tmp_path / stage / "network.pt", weights_only=True), load_file(before)
        assert all(torch.equal(found[key], kept[key].to(found[key])) for key in kept) == stays
    for unfit in (replace(config, init=""), replace(config, classifier=replace(both, unpainted=0))):
        with pytest.raises(HemsegError, match=r"unpainted_stays takes a second classifier as it is"):
            build_stages(unfit, dataset, tmp_path, hardware=CPU)


def test_training_goes_on_from_the_weights_with_frozen_statistics(tuned: tuple[Path, str], study: Path) -> None:
    """The means and variances of both networks are those of the initial weights to the last bit; the rest moved."""
    for stage, name in (("classify", "classifier"), ("segment", "unet")):
        before = load_file(study / "start" / "torch" / f"{name}.safetensors")
        after = torch.load(tuned[0] / stage / "network.pt", weights_only=True)
        statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
        assert len(statistics) > 4
        assert all(torch.equal(before[key], after[key]) for key in statistics)
        learned = [key for key in before if key.endswith("weight")]
        assert any(not torch.equal(before[key], after[key]) for key in learned)
        assert all((before[key] - after[key]).abs().max() < 0.2 for key in learned)  # random ones would be far away


def test_other_initial_weights_start_the_stages_over(study: Path, config: Config, dataset: DataSet) -> None:
    plain = build_stages(config, dataset, study / "none", hardware=CPU)
    started = build_stages(replace(config, init=str(study / "start")), dataset, study / "none", hardware=CPU)
    for name in ("classify", "segment", "export"):
        assert stage_fingerprint(plain[name], plain) != stage_fingerprint(started[name], started), name
    assert stage_fingerprint(plain["prepare"], plain) == stage_fingerprint(started["prepare"], started)
    half = build_stages(config, dataset, study / "none", hardware=replace(CPU, precision="bf16-mixed"))
    assert all(stage_fingerprint(plain[name], plain) == stage_fingerprint(half[name], half) for name in plain)


def test_networks_that_do_not_fit_get_a_sentence(study: Path, config: Config, tmp_path: Path) -> None:
    start = find_initial_weights(str(study / "start"))
    assert start == find_initial_weights(str(study / "start" / "torch"))
    assert start is not None
    wider = replace(config.segmenter, channels=(8, 8, 8))
    with pytest.raises(HemsegError, match=r"not of the network .* is \(4, .* there and \(8"):
        load_initial(build_unet(wider, 2), start.unet)
    with pytest.raises(HemsegError, match=r"segmenter.channels is \[4, 8, 8\] there and \[8, 8, 8\] here"):
        start.check(replace(config, segmenter=wider))
    with pytest.raises(HemsegError, match=r"classifier\.windows is"):
        start.check(replace(config, classifier=replace(config.classifier, windows=((0, 80), (0, 100)))))
    with pytest.raises(HemsegError, match=r"preprocessing\.in_plane_mm is"):
        start.check(replace(config, preprocessing=replace(config.preprocessing, in_plane_mm=2.0)))
    with pytest.raises(HemsegError, match="no weights to start from"):
        find_initial_weights(str(tmp_path))
    Manifest.read(study / "start").write(tmp_path)
    with pytest.raises(HemsegError, match="export again"):
        find_initial_weights(str(tmp_path))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(HemsegError, match="is missing"):
        load_initial(build_unet(config.segmenter, 2), tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").write_bytes(b"no arrays")
    with pytest.raises(HemsegError, match="cannot be read as safetensors"):
        load_initial(build_unet(config.segmenter, 2), tmp_path / "other.safetensors")


def test_weights_that_do_not_fit_are_refused_before_phantoms_are_made(tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="does not fit these weights"):
        config_and_data("best", None, tmp_path, init="weights")  # they hold the U-Net of its last round
    with pytest.raises(HemsegError, match="nothing says from where"):
        config_and_data("best_further", None, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("own", "initial", "result"),
    [
        ("MIT", "MIT", "MIT"),
        ("mine", "MIT", "mine"),
        (NON_COMMERCIAL, NON_COMMERCIAL, NON_COMMERCIAL),
        ("MIT", NON_COMMERCIAL, f"{NON_COMMERCIAL}; carried over from the weights that training started from"),
        (
            "mine",
            NON_COMMERCIAL,
            f"mine; and {NON_COMMERCIAL}; carried over from the weights that training started from",
        ),
    ],
)
def test_conditions_of_either_licence_hold(own: str, initial: str, result: str) -> None:
    assert combined_license(own, initial) == result
    assert combined_license(result, initial) == result
    assert combined_license(own, result) == result  # tuned again, from what was tuned


def test_masks_that_initial_weights_learned_from_are_not_forgotten(study: Path) -> None:
    start = find_initial_weights(str(study / "start"))
    assert start is not None
    assert combined_supervision("slice labels", start) == combined_supervision("slice labels", None) == "slice labels"
    masks = replace(start, manifest=replace(start.manifest, provenance={"supervision": "reference masks"}))
    assert combined_supervision("slice labels", masks).endswith("weights that learned from reference masks")


@pytest.mark.slow
def test_shipped_weights_fit_finetune_and_exported_again_give_the_shipped_onnx(tmp_path: Path) -> None:
    """`finetune` starts from the very network that is shipped; the two ONNX files agree to 1e-4."""
    import onnxruntime as ort

    config, shipped = load_config("finetune"), find_initial_weights("weights")
    assert shipped is not None
    shipped.check(config)
    load_initial(SliceNetwork(config.classifier), shipped.classifier)
    unet = build_unet(config.segmenter, len(config.preprocessing.channels))
    load_initial(unet, shipped.unet)
    image = np.random.default_rng(0).random((1, 2, *config.segmenter.patch), np.float32)
    write_onnx(WithSigmoid(unet).eval(), torch.from_numpy(image), tmp_path / "again.onnx")
    names = (default_weights() / shipped.manifest.file, tmp_path / "again.onnx")
    first, again = (
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": image})[0]
        for path in names
    )
    assert np.abs(first - again).max() < 1e-4


# --- masks of train cases ---------------------------------------------------------------------------------------------


def test_masks_of_train_cases_are_used_where_there_are_some_and_said(
    tuned: tuple[Path, str], study: Path, config: Config, dataset: DataSet, monkeypatch: Any
) -> None:
    run, train = tuned[0], dataset.part("train")
    few = replace(
        dataset,
        cases=tuple(replace(c, reference=c.reference if c == train[0] else None) for c in dataset.cases),
    )
    seen: dict[str, dict[str, np.ndarray]] = {}

    def record(_: Any, __: Any, labels: dict[str, np.ndarray], ___: Any, folder: Path, *____: Any) -> dict[str, Any]:
        seen[folder.name] = labels
        return {}

    monkeypatch.setattr(steps, "train_segmenter", record)
    started = replace(config, init=str(study / "start"))
    for masks, name in ((False, "segment"), (True, "segment@masks")):
        stages = build_stages(started, few, run, Variant(masks=masks), CPU)
        stages[name].run(run / name) if not masks else run_stage(stages[name], run, stages)
    weak, both = seen["segment"], seen["segment@masks"]
    assert not np.array_equal(weak[train[0].name], both[train[0].name])
    with np.load(run / "masks" / f"{train[0].name}.npz") as file:
        assert np.array_equal(both[train[0].name] == 1, file["mask"] & ~file["left_out"][:, None, None])
    others = set(weak) - {train[0].name}
    assert others
    assert all(np.array_equal(weak[name], both[name]) for name in others)
    assert sorted(p.name for p in (run / "masks").glob("*.npz")) == [f"{train[0].name}.npz"]


def test_the_manifest_says_which_masks_were_used(
    dataset: DataSet, config: Config, study: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(context, "load_network", lambda network, path: network)
    stages = build_stages(config, dataset, study / "other", Variant(masks=True), CPU)
    said = exported(stages, study / "other" / "export@masks", monkeypatch).provenance
    count = len(dataset.part("train"))
    assert said["supervision"] == f"slice labels; reference masks of {count} of {count} train cases of data"
    without = replace(dataset, cases=tuple(replace(c, reference=None) for c in dataset.cases))
    with pytest.raises(HemsegError, match="no train case has a mask"):
        build_stages(config, without, study / "other", Variant(masks=True), CPU)


def test_slices_whose_mask_and_label_disagree_are_left_out() -> None:
    mask = np.zeros((5, 2, 2), bool)
    mask[[0, 1, 4]] = True
    assert contradicting(mask, np.int8([1, 0, 1, 0, -1])).tolist() == [False, True, True, False, False]


# --- hardware, time and memory ----------------------------------------------------------------------------------------


def test_precision_follows_what_the_processor_can_do(tmp_path: Path) -> None:
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("a GPU decides here")
    info = tmp_path / "cpuinfo"
    for flags, precision, said in (
        ("fpu avx2 avx512f", "32-true", "has no amx_bf16"),
        ("fpu avx512f avx512_bf16", "32-true", "has no amx_bf16"),
        ("fpu amx_bf16 avx512_bf16", "bf16-mixed", "has amx_bf16"),
    ):
        info.write_text(f"processor : 0\nflags\t\t: {flags}\n\nprocessor : 1\nflags\t\t: {flags}\n")
        chosen, why = best_precision(info)
        assert (chosen, said in why) == (precision, True)
    assert best_precision(tmp_path / "none") == (
        "32-true",
        f"{tmp_path / 'none'} does not say what this processor can do",
    )


def test_devices_follow_what_was_started(monkeypatch: Any) -> None:
    assert choose_hardware("auto", 1, "32-true") == (Hardware(1, 1, "32-true"), [])
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert choose_hardware("auto", 2, "bf16-mixed")[0] == Hardware(2, 2, "bf16-mixed")
    for devices, nodes, precision, said in (
        ("auto", 3, "32-true", "cannot be shared by 3 nodes"),
        ("2", 1, "32-true", "torchrun --nproc-per-node 2"),
        ("some", 1, "32-true", "a number from 1 on, or auto"),
        ("4", 1, "bf16", "known: auto, 32-true"),
    ):
        with pytest.raises(HemsegError, match=said):
            choose_hardware(devices, nodes, precision)


def test_a_run_says_how_long_it_will_take_and_measures_once(
    tuned: tuple[Path, str], study: Path, config: Config, dataset: DataSet, monkeypatch: Any
) -> None:
    run, said = tuned
    assert "minutes on this machine" in said
    assert "precision " in said
    (steps,) = json.loads((run / "steps.json").read_text()).values()
    assert steps["unet"]["seconds"] > 0
    assert "later unet" not in steps  # no later round
    config = replace(config, init=str(study / "start"))
    monkeypatch.setattr("training.pipeline.estimate.timed_steps", lambda *_: pytest.fail("measured again"))
    stages = build_stages(config, dataset, run, hardware=CPU)
    precision = choose_hardware("auto", 1, "auto")[0]
    assert measured_steps(config, run, precision, ["segment"]) == steps
    assert estimate(config, dataset, run, ["segment"], stages, precision) is None  # nothing is left to train


def test_estimates_grow_with_the_work(config: Config, dataset: DataSet, tmp_path: Path, monkeypatch: Any) -> None:
    steps = {
        "classifier": {"seconds": 8.0, "memory_bytes": 2e9},
        "unet": {"seconds": 6.0, "memory_bytes": 3e9},
        "later unet": {"seconds": 12.0, "memory_bytes": 9e9},
    }
    monkeypatch.setattr("training.pipeline.estimate.measured_steps", lambda *_: steps)

    def minutes(config: Config, last: str = "segment") -> Estimate:
        stages = build_stages(config, dataset, tmp_path, hardware=CPU)
        assert needed([last], stages)[-1] == last
        found = estimate(config, dataset, tmp_path, [last], stages, CPU)
        assert found is not None
        return found

    first = minutes(config)
    slices = {split: sum(len(c.labels) for c in dataset.part(split)) for split in ("train", "val")}
    assert first.minutes["classify"] == pytest.approx((slices["train"] + 0.35 * slices["val"]) / 60)  # 1 s per slice
    longer = replace(config.segmenter, optimization=replace(config.segmenter.optimization, epochs=50))
    assert minutes(replace(config, segmenter=longer)).minutes["segment"] == pytest.approx(50 * first.minutes["segment"])
    twice = replace(config, classifier=replace(config.classifier, unpainted=config.classifier.optimization.epochs))
    assert minutes(twice).minutes["classify"] == pytest.approx(2 * first.minutes["classify"])
    own = SelfTraining(enabled=True, optimization=config.segmenter.optimization)
    later = minutes(replace(config, self_training=own), "resegment")
    longer_step = later.minutes["resegment"] / first.minutes["segment"]
    assert longer_step == pytest.approx(2)  # its step takes twice as long, and so does its answer in validation
    assert first.memory_bytes > 3e9
    assert later.memory_bytes > 9e9 > first.memory_bytes
    assert "GB of memory" in first.sentence()
    monkeypatch.setattr("training.pipeline.estimate.available_bytes", lambda: 10**9)
    assert "this process can have 1.0 GB" in first.warning()
    assert Estimate({"segment": 47.0}, 0, False).sentence().startswith("about 45 minutes on this machine")


def test_a_network_is_read_from_either_kind_of_file(config: Config, study: Path) -> None:
    network = load_network(SliceNetwork(config.classifier), study / "start" / "torch" / "classifier.safetensors")
    assert not network.training
