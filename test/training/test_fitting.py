"""Training that is interrupted, shared among processes, or meant for a larger machine."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import COARSE, ROOT, training
from helpers.networks import TINY, write_tiny
from torch.utils.data import DataLoader

from hemseg.errors import HemsegError
from training.config import Classifier, Config, Optimization, Segmenter, Sequence, load_config
from training.data.datasets import Prepared, load_dataset
from training.data.phantom import write_dataset
from training.experiments.ablation import significance
from training.experiments.crossval import split_into_folds
from training.fitting import trainer
from training.fitting.classifier import SequenceTask, Slices, SliceTask, collate_volumes, kind_loss, training_slices
from training.fitting.curves import read_metrics
from training.fitting.hardware import Hardware
from training.fitting.segmenter import SegmenterTask, train_segmenter
from training.fitting.trainer import EpochSampler, Task, WholeCheckpoints, fit, loader, micro_batch
from training.networks.slice_network import SequenceNetwork, SliceNetwork, load_torchvision
from training.networks.unet import LEFT_OUT, MEMORY_FORMAT, build_unet, combined_loss
from training.pipeline.runner import fingerprint

CPU = Hardware(accelerator="cpu")
OPTIMIZATION = Optimization("sgd", lr=0.05, batch=4, epochs=4, schedule="onecycle")
SMALLER = replace(TINY, image_size=(32, 32), windows=((0, 80),), augment=True, optimization=OPTIMIZATION)
DIFFERENCES = """
classifier: {augment: true, kinds: 0.5, painted: 1, optimization: {schedule: onecycle, epochs: 6}}
sequence: {optimization: {epochs: 2}}
pseudolabels: {clusters: 3}
segmenter: {patch: [16, 48, 40], augment: true, optimization: {epochs: 2}}
"""


def slice_task(epochs: int = 4, workers: int = 0) -> tuple[Task, Any, Any]:
    torch.manual_seed(0)
    hu, labels = torch.rand(14, 32, 32) * 80, (torch.arange(14) % 2).float()
    settings = replace(SMALLER, kinds=0.5, optimization=replace(OPTIMIZATION, epochs=epochs))
    data = Slices(hu, labels, torch.randint(-1, 2, (14, 5)).float())
    task, plain = SliceTask(SliceNetwork(settings), settings, 0), Slices(hu, labels)
    return task, training_slices(data, settings, 0, workers), DataLoader(plain, 4)


def helped_slice_task() -> tuple[Task, Any, Any]:
    return slice_task(workers=1)


def sequence_task() -> tuple[Task, Any, Any]:
    torch.manual_seed(0)
    data = [(torch.rand(n, 32, 32) * 80, (torch.arange(n) % 2).float()) for n in (3, 5, 4, 2)]
    sequence = Sequence(hidden=4, optimization=replace(OPTIMIZATION, batch=2))
    config = Config("test", classifier=SMALLER, sequence=sequence)
    task = SequenceTask(SequenceNetwork(SliceNetwork(SMALLER), sequence), config)

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, key: Any) -> Any:
            return data[key if isinstance(key, int) else key[1]]

    train = loader(Items(), sequence.optimization, 0)
    train.collate_fn = collate_volumes
    return task, train, DataLoader(Items(), 1, collate_fn=collate_volumes)


def segmenter_task() -> tuple[Task, Any, Any]:
    torch.manual_seed(0)
    optimization = Optimization("adam", lr=0.01, batch=2, epochs=4)
    settings = Segmenter((4, 8), ((1, 2, 2),), 1, augment=True, optimization=optimization)
    data = [(torch.rand(2, 4, 16, 16), (torch.rand(1, 4, 16, 16) > 0.8).float()) for _ in range(5)]

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, key: Any) -> Any:
            return data[key if isinstance(key, int) else key[1]]

    return (
        SegmenterTask(build_unet(settings, 2), settings, 0),
        loader(Items(), optimization, 0),
        DataLoader(Items(), 1),
    )


def test_kinds_that_are_unknown_teach_nothing() -> None:
    kinds = torch.tensor([[1.0, -1.0], [0.0, -1.0]])
    logits = torch.zeros(2, 2, requires_grad=True)
    kind_loss(logits, kinds).backward()
    assert logits.grad.sign().tolist() == [[-1, 0], [1, 0]]
    assert kind_loss(logits, torch.full((2, 2), -1.0)) == 0


def weights(task: Task) -> torch.Tensor:
    return torch.cat([v.flatten().double() for v in task.state_dict().values()])


@pytest.mark.parametrize("make", [slice_task, helped_slice_task, sequence_task, segmenter_task])
def test_an_interrupted_run_ends_like_an_unbroken_one(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    task, train, val = make()
    figures = fit(task, train, val, tmp_path / "whole", CPU)
    assert (tmp_path / "whole" / "curves.png").exists()

    def stop(self: Task) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("power cut")

    broken, train, val = make()
    with monkeypatch.context() as patch:
        patch.setattr(type(broken), "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="power cut"):
            fit(broken, train, val, tmp_path / "broken", CPU)
    epochs: list[int] = []
    again, train, val = make()
    monkeypatch.setattr(type(again), "on_train_epoch_start", lambda self: epochs.append(self.current_epoch))
    assert fit(again, train, val, tmp_path / "broken", CPU) == pytest.approx(figures, abs=1e-6)
    assert epochs == [2, 3]  # it went on, and did not start over
    assert [len(read_metrics(tmp_path / "broken")[name]) for name in ("train_loss", "val_loss")] == [4, 4]
    assert (weights(again) - weights(task)).abs().max() < 1e-6
    assert (weights(make()[0]) - weights(task)).abs().max() > 1e-3  # it did learn


def test_a_loss_that_is_no_number_stops_with_its_batch(tmp_path: Path) -> None:
    task, train, val = slice_task()
    train.dataset.dataset.hu[5] = float("nan")
    with pytest.raises(HemsegError, match="the loss is nan in epoch 0"):
        fit(task, train, val, tmp_path, CPU)
    hu, labels, _ = torch.load(tmp_path / "bad_batch.pt", weights_only=True)
    assert torch.isnan(hu).any()
    assert len(hu) == len(labels)
    assert all(torch.isfinite(p).all() for p in task.parameters())


@pytest.mark.parametrize("garbage", [float("nan"), 4.7e32])
def test_a_gradient_that_is_none_stops_before_a_weight_is_changed(tmp_path: Path, garbage: float) -> None:
    """As PyTorch 2.13 gives them in bfloat16 on a CPU where a 3D convolution sees two slices."""
    task, train, val = slice_task()
    before, first = [p.detach().clone() for p in task.parameters()], next(task.parameters())
    first.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), garbage))
    with pytest.raises(HemsegError, match=r"the gradient of network\.\S+ is \S+ in epoch 0.*--precision 32-true"):
        fit(task, train, val, tmp_path, CPU)
    assert (tmp_path / "bad_batch.pt").exists()
    assert all(torch.equal(p, q) for p, q in zip(task.parameters(), before, strict=True))


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    writer, path = WholeCheckpoints(), tmp_path / "last.ckpt"
    writer.save_checkpoint({"epoch": 1, "weights": torch.ones(10)}, path)
    before = path.read_bytes()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # files end there, as on a disk that is full
    try:
        with pytest.raises(HemsegError, match="Is the disk full"):
            writer.save_checkpoint({"epoch": 2, "weights": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("marked", "epochs"), [(False, 1), (True, 2)])
def test_labels_without_hemorrhage_are_reported_and_cost_one_epoch(
    marked: bool, epochs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path, DIFFERENCES)
    rng = np.random.default_rng(0)
    cases = [
        Prepared(str(n), "train", rng.uniform(0, 80, (8, 32, 32)), np.ones((8, 32, 32), bool), np.ones(8)) for n in "ab"
    ]
    labels = {case.name: np.full(case.hu.shape, LEFT_OUT, np.int8) for case in cases}  # of which nothing is known
    if marked:
        labels["a"][4, 8:16, 8:16] = 1
    figures = train_segmenter(cases, cases, labels, load_config(str(tmp_path / "tiny.yaml")), tmp_path, CPU)
    assert figures["epochs"] == epochs
    assert ("has a hemorrhage label" in capsys.readouterr().err) is not marked
    assert (tmp_path / "network.pt").is_file()


@pytest.mark.parametrize(("workers", "given_back"), [(0, [0, 0, 0]), (1, [1, 2, 3])])
def test_a_loaders_process_gives_memory_back_at_every_batch(
    workers: int, given_back: list[int], monkeypatch: Any
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(trainer, "release_memory", lambda: given.append(True))
    slices = Slices(torch.rand(12, 8, 8), torch.zeros(12))
    batches = loader(slices, replace(OPTIMIZATION, batch=4), 0, workers, lambda batch, _: torch.tensor(len(given)))
    assert [int(batch) for batch in batches] == given_back


def test_gradients_add_up_to_the_batch() -> None:
    assert micro_batch(Optimization(batch=32)) == 32
    assert micro_batch(Optimization(batch=32, micro_batch=8)) == 8
    with pytest.raises(HemsegError, match="not a multiple"):
        micro_batch(Optimization(batch=32, micro_batch=5))


def test_processes_share_an_epoch(monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for number in range(3):
        monkeypatch.setenv("RANK", str(number))
        shares.append([index for _, index in EpochSampler(10, seed=0)])
    assert {len(share) for share in shares} == {4}
    assert set().union(*shares) == set(range(10))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    with pytest.raises(HemsegError, match="torchrun"):
        Hardware(devices=2).check()
    Hardware(devices=3).check()


# --- whole commands ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set of phantoms and a configuration."""
    folder = tmp_path_factory.mktemp("study")
    write_dataset(folder / "data", 10, seed=5, grid=replace(COARSE, shape=(12, 64, 64), spacing=(3.6, 3.6, 12.0)))
    write_tiny(folder, DIFFERENCES)
    return folder


def command(study: Path, stage: str, run: Path, *more: str) -> list[str]:
    same = ["--precision", "32-true"]  # on processors with bfloat16, too
    return [stage, "--config", f"{study}/tiny.yaml", "--data", f"{study}/data", "--run", str(run), *same, *more]


def network(run: Path, stage: str) -> torch.Tensor:
    state = torch.load(run / stage / "network.pt", weights_only=True)
    return torch.cat([v.flatten().double() for v in state.values()])


@pytest.mark.slow
def test_kill_9_in_the_middle_of_training(study: Path, tmp_path: Path) -> None:
    training(*command(study, "classify", tmp_path / "whole"))
    arguments = [sys.executable, "-m", "training", *command(study, "classify", tmp_path / "killed")]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "classify" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "classify" / "done.json").exists()
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "classify: was interrupted, goes on" in done.stderr
    assert "prepare: done before, skipped" in done.stderr
    assert [e for e, _ in read_metrics(tmp_path / "killed" / "classify")["val_loss"]] == list(range(6))
    assert (network(tmp_path / "whole", "classify") - network(tmp_path / "killed", "classify")).abs().max() < 1e-6


@pytest.mark.slow
def test_two_processes_train_together(study: Path, tmp_path: Path) -> None:
    """torchrun with two gloo processes on the CPU: all stages, one set of results."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + ["-m", "--", "training", *command(study, "all", tmp_path / "run", "--devices", "2")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("prepare", "classify", "sequence", "cam", "pseudolabel", "segment", "export", "evaluate"):
        assert (tmp_path / "run" / stage / "done.json").exists(), stage
    assert np.isfinite(network(tmp_path / "run", "segment").numpy()).all()


def test_processes_that_were_not_started_are_missed(study: Path, tmp_path: Path) -> None:
    done = training(*command(study, "classify", tmp_path / "run", "--devices", "4"), check=1)
    assert "torchrun --nproc-per-node 4" in done.stderr


# --- the paper's configuration ----------------------------------------------------------------------------------------


def test_the_paper_configuration_holds_the_papers_values() -> None:
    c = load_config("paper")
    for o, lr in ((c.classifier.optimization, 1e-4), (c.sequence.optimization, 1e-3)):
        assert (o.optimizer, o.momentum, o.lr, o.epochs, o.patience) == ("sgd", 0.9, lr, 100, 25)
    assert (c.classifier.backbone, c.classifier.optimization.batch) == ("resnet101", 32)
    assert c.classifier.image_size == (512, 512)
    assert (c.cam.method, c.pseudolabels.threshold, c.pseudolabels.clusters) == ("cam", 0.7, 4)
    o = c.segmenter.optimization
    assert (o.optimizer, o.lr, o.batch, o.epochs, o.patience) == ("adam", 1e-3, 4, 100, 25)
    assert c.segmenter.threshold == 0.5
    assert c.preprocessing.skull_percentile == 95


@pytest.mark.slow
def test_the_paper_configuration_takes_a_step_at_512_squared() -> None:
    c = load_config("paper")
    torch.manual_seed(0)
    network = SliceNetwork(c.classifier)
    hu, labels = torch.rand(2, *c.classifier.image_size) * 100, torch.tensor([0.0, 1.0])  # one CPU core: small batches
    slices = SliceTask(network, c.classifier, 0)
    sequence = SequenceTask(SequenceNetwork(network, c.sequence), c)
    unet = build_unet(c.segmenter, len(c.preprocessing.channels)).to(memory_format=MEMORY_FORMAT)
    segmenter = SegmenterTask(unet, c.segmenter, 0)
    patch = torch.rand(2, 1, 4, *c.segmenter.train_patch[1:])  # four slices of the patch, as few as its strides take
    patch = patch.contiguous(memory_format=MEMORY_FORMAT)
    steps = (
        (slices, lambda: slices.bce(network(hu[1:]), labels[1:])),
        (sequence, lambda: sequence.bce(sequence.sequence(hu, torch.tensor([2])), labels)),
        (segmenter, lambda: combined_loss(segmenter.network(patch), (patch > 0.9).float())),
    )
    for task, step in steps:
        loss = step()
        optimizer = task.configure_optimizers()
        before = [p.detach().clone() for p in task.parameters()]
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        assert not all(torch.equal(a, b) for a, b in zip(before, task.parameters(), strict=True))


# --- ImageNet weights -------------------------------------------------------------------------------------------------


def torchvision_shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's ResNet state dicts, written down from its layout."""
    bottleneck = depth >= 50
    layers = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7)}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{k}": (width,) for k in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 64)
    inputs = 64
    for stage, (width, blocks) in enumerate(zip((64, 128, 256, 512), layers, strict=True), start=1):
        outputs = width * (4 if bottleneck else 1)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            kernels = ((width, 1), (width, 3), (outputs, 1)) if bottleneck else ((width, 3), (width, 3))
            before = inputs
            for number, (after, kernel) in enumerate(kernels, start=1):
                shapes[f"{name}.conv{number}.weight"] = (after, before, kernel, kernel)
                norm(f"{name}.bn{number}", after)
                before = after
            if block == 0 and (stage > 1 or bottleneck):
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes | {"fc.weight": (1000, inputs), "fc.bias": (1000,)}


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_torchvision_weights_fit_key_for_key(depth: int, tmp_path: Path) -> None:
    shapes = torchvision_shapes(depth)
    state = {k: torch.zeros(s, dtype=torch.long) if k.endswith("tracked") else torch.rand(s) for k, s in shapes.items()}
    torch.save(state, tmp_path / "resnet.pth")
    windows = ((0, 80), (-20, 100), (40, 100))
    network = SliceNetwork(Classifier(f"resnet{depth}", windows=windows, pretrained=str(tmp_path / "resnet.pth")))
    loaded = network.backbone.state_dict()
    assert set(loaded) == {k for k in shapes if not k.startswith("fc.")}
    assert all(torch.equal(v, state[k]) for k, v in loaded.items())


def test_other_files_are_no_torchvision_weights(tmp_path: Path) -> None:
    backbone = SliceNetwork(Classifier("resnet18")).backbone
    with pytest.raises(HemsegError, match="cannot be read"):
        load_torchvision(backbone, tmp_path / "missing.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(HemsegError, match="not a state dict of this network"):
        load_torchvision(backbone, tmp_path / "other.pth")


def test_settings_at_their_default_do_not_change_a_fingerprint() -> None:
    a, b = Optimization(lr=1e-4, batch=32), Optimization()
    assert fingerprint(a) == fingerprint(b)
    assert fingerprint(Optimization(micro_batch=8)) != fingerprint(b)
    assert fingerprint(Classifier(), (1, 2)) == fingerprint(Classifier(), [1, 2])


# --- several runs -----------------------------------------------------------------------------------------------------


def test_folds_are_disjoint_and_keep_patients_together(study: Path) -> None:
    dataset = load_dataset(study / "data")
    twice = tuple(replace(c, patient=f"p{i // 2}") for i, c in enumerate(dataset.cases * 2))
    folds = split_into_folds(replace(dataset, cases=twice), 3, seed=0)
    tests = [{c.patient for c in fold.part("test")} for fold in folds]
    assert [len(t) for t in tests] == [2, 2, 2]
    assert len(set().union(*tests)) == 6
    for fold in folds:
        assert all(len({c.split for c in fold.cases if c.patient == p}) == 1 for p in {c.patient for c in fold.cases})
        assert {c.split for c in fold.cases} == {"train", "val", "test"}
    with pytest.raises(HemsegError, match="no 6 disjoint"):
        split_into_folds(dataset, 6, seed=0)


@pytest.mark.slow
def test_ablation_and_cross_validation_write_their_tables(study: Path, tmp_path: Path) -> None:
    for name, more in (("ablate", []), ("crossval", ["--folds", "2"])):
        out = tmp_path / name
        training(*command(study, name, tmp_path / "run", "--out", str(out), *more))
        table = (out / "table.md").read_text().splitlines()
        rows = [line for line in table if line.startswith("|")]
        assert len(rows) == {"ablate": 8, "crossval": 5}[name]
        assert len({line.count("|") for line in rows}) == 1
        assert len((out / "per_case.csv").read_text().splitlines()) > 4
    started = {p.parent.name for p in (tmp_path / "run").glob("*/started.json")}
    assert {"cam", "cam@resnet", "segment", "segment@threshold", "segment@supervised", "evaluate@baseline"} <= started
    assert len([name for name in started if name.startswith("classify")]) == 1  # shared by all rows
    assert (tmp_path / "ablate" / "dice.png").stat().st_size > 5000


def test_stars_are_for_significantly_better_rows() -> None:
    rng = np.random.default_rng(0)
    before = [{"dice": float(v)} for v in rng.uniform(0.3, 0.4, 12)]
    better = [{"dice": row["dice"] + 0.3 + float(e)} for row, e in zip(before, rng.normal(0, 0.02, 12), strict=True)]
    assert significance(better, before, "dice", 1) == "\\*\\*"
    assert significance(before, better, "dice", 1) == ""
    assert significance(before, better, "dice", -1) == "\\*\\*"
    assert significance(before, before, "dice", 1) == ""


def test_bench_reports_three_rates(study: Path, tmp_path: Path) -> None:
    lines = training(*command(study, "bench", tmp_path / "run")).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["loader", "network", "training"]
    assert all(float(line.split()[1]) > 0 for line in lines)


def test_minutes_left_count_what_is_done_of_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.TQDMProgressBar, "get_metrics", lambda *_: {})
    done = SimpleNamespace(current=SimpleNamespace(completed=50))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=done))
    state: Any = SimpleNamespace(current_epoch=1, max_epochs=3, num_training_batches=100, fit_loop=loop)
    bar = trainer.TimeLeft()
    bar.began = time.monotonic() - 900, 0
    assert bar.get_metrics(state, None) == {"left": "15 min"}  # type: ignore[arg-type]
