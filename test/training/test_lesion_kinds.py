from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hemseg.kinds import ANSWERS, INPUTS, KINDS, KindHead
from hemseg.preprocessing import Settings
from training.config import Config, load_config
from training.data.datasets import Case, DataSet, Prepared
from training.data.slice_kinds import UNKNOWN, allowed_kinds, read_slice_kinds
from training.evaluation import kind_slices, single_slices
from training.evaluation.kind_slices import slice_aucs
from training.evaluation.kinds import by_patient, confusion, lesions_of_known_kind, summary
from training.fitting.kind_slices import PooledSlices, fit_linear_maps, head_without_regression
from training.labels.kind_head import PAINTED_SHARE, fit_head, sample_weights, unsure_below
from training.labels.lesion_kinds import LesionSample, labelled_lesions, lesions_of, painted_lesions
from training.pipeline import kinds as kinds_pipeline
from training.pipeline.kinds import KindData, lesion_samples, samples_key

MM = (5.0, 1.0, 1.0)
SUBDURAL = KINDS.index("subdural")


def of(*kinds: str) -> list[int]:
    """A slice's answers."""
    return [*(int(kind in kinds) for kind in KINDS), int(bool(kinds))]


def test_a_lesion_is_what_all_of_its_slices_may_be() -> None:
    answers = np.array([of("subdural"), of("subdural", "intraparenchymal"), of(), of("epidural")], np.int8)
    assert [KINDS[i] for i in np.flatnonzero(allowed_kinds(answers, np.array([5, 9, 2, 0])))] == ["subdural"]
    both = allowed_kinds(answers, np.array([0, 9, 0, 0]))
    assert both.sum() == 2
    assert both[SUBDURAL]
    assert allowed_kinds(answers, np.array([3, 0, 0, 3])).sum() == 2  # nothing in common: one of either
    assert not allowed_kinds(answers, np.array([0, 0, 4, 0])).any()  # on a slice without blood
    unknown = np.array([[UNKNOWN] * len(KINDS) + [1]], np.int8)
    assert not allowed_kinds(unknown, np.array([7])).any()


def test_kinds_are_read_from_the_table_of_slice_labels(tmp_path: Path) -> None:
    (tmp_path / "slice_labels.csv").write_text(
        "case,slice,hemorrhage,subdural,epidural\na,0,0,0,0\na,1,1,1,0\na,2,1,0,0\na,3,1,0,1\n"
    )
    case = Case("a", tmp_path / "a.nii.gz", "train", (0, 1, 1, -1), None)
    table = read_slice_kinds(tmp_path, DataSet("d", (case,)))["a"]
    assert table.tolist() == [of(), of("subdural"), [UNKNOWN] * len(KINDS) + [1], [UNKNOWN] * len(ANSWERS)]


def sample(value: float, kinds: tuple[str, ...], source: str = "set", case: str = "") -> LesionSample:
    inputs = np.zeros(len(INPUTS))
    inputs[0] = value
    return LesionSample(case or f"c{value}", source, np.array([k in kinds for k in KINDS]), inputs, True)


def test_the_regression_learns_from_lesions_that_may_be_either_kind() -> None:
    """Low figures are subdural, high ones epidural; most labels name two kinds."""
    rng = np.random.default_rng(0)
    low, high = rng.normal(-1, 0.2, 40), rng.normal(1, 0.2, 40)
    samples = [sample(v, ("subdural", "intraventricular") if i % 2 else ("subdural",)) for i, v in enumerate(low)]
    samples += [sample(v, ("epidural", "intraventricular")) for v in high]
    samples += [sample(3.0 + v / 10, ("intraventricular",)) for v in high]
    maps = head_without_regression("its sha256", np.ones((len(KINDS), 2)), np.zeros(len(KINDS)))
    head = fit_head(samples, maps)
    named = head.probabilities(np.stack([s.inputs for s in [sample(-1, ()), sample(3.1, ())]])).argmax(axis=1)
    assert [KINDS[i] for i in named] == ["subdural", "intraventricular"]
    assert head.maps is maps.maps
    assert head.has_maps


def test_lesions_of_a_scan_share_its_weight_and_painted_ones_theirs() -> None:
    samples = [sample(i, ("subdural",), case="many") for i in range(4)] + [sample(9, ("subdural",), case="one")]
    samples += [sample(i, ("epidural",), source="painted") for i in range(50)]
    weights = sample_weights(samples)
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() == pytest.approx(2 * weights[4])
    assert weights[5:].sum() == pytest.approx(PAINTED_SHARE)
    assert sample_weights([sample(0, ("subdural",), source="phantoms"), samples[4]])[0] == pytest.approx(1 / 3)
    rare = [sample(9, ("subdural",), source="painted")]
    assert sample_weights(samples[5:] + rare)[-1] == pytest.approx(1 / (1 + 50**0.5))


def test_what_is_named_is_right_often_enough() -> None:
    probabilities = np.eye(len(KINDS))[[0, 0, 1, 1]] * np.array([0.9, 0.8, 0.7, 0.4])[:, None]
    allowed = np.eye(len(KINDS), dtype=bool)[[0, 0, 1, 2]]  # the least certain is wrong
    assert unsure_below(probabilities, allowed) == 0.3  # three of four are enough
    allowed[2] = allowed[3]  # the two least certain are wrong: two of three are too few
    assert 0.7 < unsure_below(probabilities, allowed) <= 0.8
    assert unsure_below(probabilities, np.roll(allowed, 1, axis=1)) == 0.9  # never right: as good as never named


def test_maps_learn_a_kind() -> None:
    rng, n = np.random.default_rng(1), 120
    answers = np.zeros((n, len(ANSWERS)), np.int8)
    answers[: n // 3, [SUBDURAL, -1]] = 1
    features = rng.normal(size=(n, 8)).astype(np.float32)
    features[:, 2] += 4 * answers[:, SUBDURAL]
    head = fit_linear_maps(PooledSlices(features, answers, np.array([f"case{i // 4}" for i in range(n)])), "its sha256")
    logits = features @ head.maps[SUBDURAL] + head.bias[SUBDURAL]
    truth = answers[:, SUBDURAL] == 1
    assert np.abs(head.maps[SUBDURAL]).argmax() == 2
    assert logits[truth].mean() > logits[~truth].mean() + 0.05  # a strong penalty on few slices
    assert (head.maps[KINDS.index("epidural")] == 0).all()  # no slice has it
    assert str(head.classifier) == "its sha256"


def test_slices_are_ranked_by_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps are the answers themselves, with one slice of subarachnoid blood taken for none."""
    monkeypatch.setattr(kind_slices, "RESAMPLED", 50)
    monkeypatch.setattr(single_slices, "RESAMPLED", 50)
    rng = np.random.default_rng(0)
    answers = (rng.random((60, len(ANSWERS))) < 0.3).astype(np.int8)
    features = answers[:, : len(KINDS)].astype(np.float32)
    wrong = np.flatnonzero(answers[:, KINDS.index("subarachnoid")])[0]
    features[wrong, KINDS.index("subarachnoid")] = 0
    head = head_without_regression("its sha256", np.eye(len(KINDS)), np.zeros(len(KINDS)))
    rows = {r["kind"]: r for r in slice_aucs(PooledSlices(features, answers, np.arange(60)), head, "set", "val")}
    missed = 1 - 0.5 / answers[:, KINDS.index("subarachnoid")].sum()  # half a pair in each of the slices without
    assert [rows[kind]["auc"] for kind in ("intraparenchymal", "subarachnoid")] == [1, pytest.approx(missed, abs=1e-3)]
    assert rows["mean of four"]["auc"] == pytest.approx((3 + missed) / 4, abs=1e-3)
    assert rows["mean of four"]["auc_low"] < rows["mean of four"]["auc"] <= rows["mean of four"]["auc_high"] <= 1
    answers[:, KINDS.index("subdural")] = 0
    fewer = slice_aucs(PooledSlices(features, answers, np.arange(60)), head, "set", "val")
    assert "mean of four" not in {row["kind"] for row in fewer}
    assert np.isnan(fewer[KINDS.index("subdural")]["auc"])


@pytest.fixture(scope="module")
def head() -> Prepared:
    """Four slices of a round head, without blood."""
    y, x = np.meshgrid(np.arange(120), np.arange(120), indexing="ij")
    inside = np.stack([(y - 60) ** 2 + (x - 60) ** 2 < 50**2] * 4)
    noise = np.random.default_rng(0).normal(0, 2, inside.shape)
    hu = np.where(inside, 32 + noise, 100).astype(np.float32)
    return Prepared("head", "train", hu, inside, np.zeros(4, np.int8))


def counted(lesions: list[np.ndarray], hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
    return np.array([[lesion.sum()] * len(INPUTS) for lesion in lesions], float)


def test_lesions_to_learn_from(head: Prepared) -> None:
    mask = np.zeros(head.hu.shape, bool)
    mask[0, 50:60, 50:60], mask[1:3, 80:100, 50:70], mask[3, 20, 40] = True, True, True  # the last is too small
    answers = {"head": np.array([of(), of("subdural"), of("subdural", "epidural"), of("epidural")], np.int8)}
    (found,) = labelled_lesions([(head, mask)], answers, "set", MM, counted)  # nothing on the slice without blood
    assert found.inputs[0] == 800
    assert found.allowed.tolist() == [k == "subdural" for k in KINDS]
    assert found.largest
    assert [lesion.sum() for lesion in lesions_of(mask, MM)] == [800, 100]
    painted = list(painted_lesions([head], {"sheet": "subdural", "subdural": "subdural"}, 3, MM, counted, 0))
    assert painted
    assert all(s.source == "painted" and s.allowed[SUBDURAL] and s.allowed.sum() == 1 for s in painted)


def row(case: str, lesion: int, truth: str, called: str, kinds: str = "subdural") -> dict[str, object]:
    about = {"data": "set", "split": "val", "case": case, "kinds": kinds}
    return about | {"lesion": lesion, "ml": 1.0, "truth": truth, "called": called, "probability": 0.5}


def test_figures_count_the_largest_lesion_of_one_kind_and_unsure_as_wrong() -> None:
    rows = [
        row("a", 1, "", "epidural"),  # where the labels have no blood
        row("a", 2, "subdural", "subdural"),
        row("a", 3, "subdural", "epidural"),  # not the largest
        row("b", 1, "subdural", "unsure"),
        row("c", 0, "", ""),  # nothing was found
        row("d", 1, "subdural epidural", "epidural", "subdural epidural"),  # nobody knows
    ]
    assert [(r["case"], r["called"]) for r in lesions_of_known_kind(rows)] == [("a", "subdural"), ("b", "unsure")]
    every = {r["kind"]: r for r in summary(rows)}
    subdural, total = every["subdural"], every["all"]
    assert (subdural["scans_of_one_kind"], subdural["judged"], subdural["right"], subdural["unsure"]) == (3, 2, 1, 1)
    assert total["share"] == 0.5
    assert total["low"] < 0.5 < total["high"]
    assert total["lesions_elsewhere"] == 1
    table = confusion(rows)
    assert table.sum() == 2
    assert table[SUBDURAL].tolist() == [0, 0, 0, 1, 0, 1]


def test_samples_are_taken_up_only_where_they_were_made_of_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case with one subdural lesion; nothing is painted, as no slice has an inside."""
    (tmp_path / "prepare").mkdir()
    hu, empty = np.full((2, 12, 12), 30, np.float32), np.zeros((2, 12, 12), bool)
    np.savez(tmp_path / "prepare" / "a.npz", hu=hu, intracranial=empty, labels=np.ones(2, np.int8))
    mask = np.zeros((2, 12, 12), np.uint8)
    mask[0, 3:8, 3:8] = 1
    (tmp_path / "relabel").mkdir()
    np.savez(tmp_path / "relabel" / "a.npz", mask=mask)
    case = Case("a", tmp_path / "a.nii.gz", "train", (1, 1), None, source="d")
    answers = {"a": np.array([of("subdural"), of("subdural")], np.int8)}
    data = KindData(DataSet("d", (case,)), answers, tmp_path, tmp_path / "relabel", Settings())
    made: list[int] = []

    def inputs(lesions: list[np.ndarray], hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
        made.append(len(lesions))
        return np.zeros((len(lesions), len(INPUTS)))

    def lesions(data: KindData, config: Config) -> list[LesionSample]:
        key = samples_key(data, "", config)
        return lesion_samples(data, "train", inputs, config, tmp_path / "lesions_train.npz", key)

    config = load_config("smoke")
    (first,), (again,) = lesions(data, config), lesions(data, config)
    assert made == [1]
    assert (first.case, first.largest, first.allowed.tolist()) == (again.case, again.largest, again.allowed.tolist())
    lesions(data, replace(config, seed=config.seed + 1))
    assert made == [1, 1]
    lesions(data, config)  # of the seed before
    np.savez(tmp_path / "relabel" / "a.npz", mask=mask * 0)
    assert lesions(data, config) == []
    np.savez(tmp_path / "relabel" / "a.npz", mask=mask)
    lesions(data, config)
    lesions(replace(data, answers={"a": np.array([of("epidural"), of("epidural")], np.int8)}), config)
    assert made == [1] * 5
    kept, whole = tmp_path / "lesions_train.npz", lesions(data, config)
    for part in (kept.read_bytes()[:200], kept.read_bytes()[:200] + bytes(50) + kept.read_bytes()[250:], b"", b"PK"):
        kept.write_bytes(part)  # by a process that was killed, or a disk that was full
        made.clear()
        (again,) = lesions(data, config)
        assert again.case == whole[0].case
        assert made == [1]

    def stopped(path: Path, **arrays: np.ndarray) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    kept.unlink()
    monkeypatch.setattr(np, "savez_compressed", stopped)
    with pytest.raises(KeyboardInterrupt):
        lesions(data, config)
    assert not kept.exists()


def test_kinds_are_learned_from_slice_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Round heads with a bleed at the rim or in the middle; nothing is painted, no classifier is asked."""
    monkeypatch.setattr(kinds_pipeline, "COPIES", 0)
    config = load_config("smoke")
    y, x = np.meshgrid(np.arange(48), np.arange(48), indexing="ij")
    inside = np.stack([(y - 24) ** 2 + (x - 24) ** 2 < 20**2] * 2)
    for folder in ("prepare", "relabel"):
        (tmp_path / folder).mkdir()
    cases, answers = [], {}
    for number in range(8):
        name, kind = f"head{number}", ("subdural", "intraparenchymal")[number % 2]
        middle = 24 - (16 if kind == "subdural" else 2) + number // 4
        mask = inside & ((y - middle) ** 2 + (x - 24) ** 2 < (4 + number / 8) ** 2)
        hu = np.where(mask, 65, np.where(inside, 32, -20)).astype(np.float32)
        np.savez(tmp_path / "prepare" / f"{name}.npz", hu=hu, intracranial=inside, labels=np.ones(2, np.int8))
        np.savez(tmp_path / "relabel" / f"{name}.npz", mask=mask)
        split = "val" if number >= 6 else "train"
        cases.append(Case(name, tmp_path / f"{name}.nii.gz", split, (1, 1), None, source="d"))
        answers[name] = np.array([of(kind), of(kind)], np.int8)
    data = KindData(DataSet("d", tuple(cases)), answers, tmp_path, tmp_path / "relabel", Settings())
    figures = kinds_pipeline.train_kinds(data, None, config, tmp_path / "out")
    assert figures["lesions"] == 6
    assert not KindHead.read(tmp_path / "out" / "kinds.npz").has_maps
    rows = list(csv.DictReader((tmp_path / "out" / "lesions.csv").open()))
    assert [(row["truth"], row["called"]) for row in rows] == [(k, k) for k in ("subdural", "intraparenchymal")]


def test_patients_count_once_whatever_their_lesions_are_called() -> None:
    def row(split: str, case: str, kinds: str, called: str, data: str = "set") -> dict[str, object]:
        return {"data": data, "split": split, "case": case, "kinds": kinds, "called": called}

    rows = [
        *(row("val", "a", "subdural epidural", called) for called in ("subdural", "subdural", "unsure")),
        row("test", "b", "subdural", ""),
        row("test", "c", "epidural", "subdural"),
        row("", "p", "subdural", "subdural", "phantoms"),
    ]
    table = {(line["split"], line["kind"]): line for line in by_patient(rows)}
    assert {split for split, _ in table} == {"val", "test", "val + test"}
    both = table["val + test", "subdural"]
    assert (both["patients"], both["called_so"], both["share"]) == (2, 1, 0.5)
    assert (both["others"], both["others_called_so"], both["others_share"]) == (1, 1, 1.0)
    assert both["low"] == pytest.approx(0.095, abs=1e-3)  # Wilson's, of 1 in 2
    assert np.isnan(table["val", "subdural"]["others_share"])  # nobody is without it
