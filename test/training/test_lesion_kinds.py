from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hemseg.kinds import ANSWERS, INPUTS, KINDS, View
from hemseg.preprocessing import Settings
from training.config import Config, load_config
from training.data.datasets import Case, DataSet, Prepared
from training.data.slice_kinds import UNKNOWN, allowed_kinds, read_slice_kinds
from training.evaluation.kinds import confusion, judged, summary
from training.fitting.kind_slices import PooledSlices, crossed_maps, folds, linear_maps, painted_copies
from training.labels.kind_head import fitted_head, sample_weights, unsure_below
from training.labels.lesion_kinds import LesionSample, labelled_lesions, lesions_of, painted_lesions
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
    view = View((20, 20), -20.0, (8.0,))
    maps = np.zeros((len(ANSWERS), 2)), np.zeros(len(ANSWERS))
    head = fitted_head(samples, maps, view)
    named = head.probabilities(np.stack([s.inputs for s in [sample(-1, ()), sample(3.1, ())]])).argmax(axis=1)
    assert [KINDS[i] for i in named] == ["subdural", "intraventricular"]
    assert head.maps.shape == (len(ANSWERS), 2, 1)
    assert head.view == view


def test_lesions_of_a_scan_share_its_weight_and_painted_ones_theirs() -> None:
    samples = [sample(i, ("subdural",), case="many") for i in range(4)] + [sample(9, ("subdural",), case="one")]
    samples += [sample(i, ("epidural",), source="painted") for i in range(50)]
    weights = sample_weights(samples)
    assert weights.sum() == pytest.approx(1)
    assert weights[:4].sum() == pytest.approx(2 * weights[4])
    assert weights[5:].sum() == pytest.approx(0.3)


def test_what_is_named_is_right_often_enough() -> None:
    probabilities = np.eye(len(KINDS))[[0, 0, 1, 1]] * np.array([0.9, 0.8, 0.7, 0.4])[:, None]
    allowed = np.eye(len(KINDS), dtype=bool)[[0, 0, 1, 2]]  # the least certain is wrong
    assert unsure_below(probabilities, allowed) == 0.3  # three of four are enough
    allowed[2] = allowed[3]  # the two least certain are wrong
    assert 0.4 < unsure_below(probabilities, allowed) <= 0.7
    assert unsure_below(probabilities, np.roll(allowed, 1, axis=1)) == 0.9  # never right: as good as never named


def pooled(n: int = 120) -> PooledSlices:
    rng = np.random.default_rng(1)
    answers = np.zeros((n, len(ANSWERS)), np.int8)
    answers[: n // 3, [SUBDURAL, -1]] = 1
    answers[n // 3 : n // 2] = UNKNOWN
    features = rng.normal(size=(n, 8)).astype(np.float32)
    features[:, 2] += 4 * answers[:, SUBDURAL]
    return PooledSlices(features, answers, np.array([f"case{i // 4}" for i in range(n)]), np.zeros(n, bool))


def test_maps_learn_a_kind_and_leave_out_what_is_unknown() -> None:
    slices = pooled()
    weights, bias = linear_maps(slices)
    known = slices.answers[:, SUBDURAL] != UNKNOWN
    logits = slices.features @ weights[SUBDURAL] + bias[SUBDURAL]
    truth = slices.answers[known, SUBDURAL] == 1
    assert np.abs(weights[SUBDURAL]).argmax() == 2
    assert logits[known][truth].mean() > logits[known][~truth].mean() + 0.03  # a strong penalty on 60 slices
    assert (weights[KINDS.index("epidural")] == 0).all()  # no slice has it


def test_crossed_maps_have_not_seen_the_case() -> None:
    slices = pooled()
    fold = folds(slices.cases, seed=0)
    other = slices.features.copy()
    changed = np.array([fold[name] == 0 for name in slices.cases])
    other[changed] += 100.0
    before = crossed_maps(slices, 0)[0]
    after = crossed_maps(PooledSlices(other, slices.answers, slices.cases, slices.painted), 0)[0]
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])


@pytest.fixture(scope="module")
def head() -> Prepared:
    """Four slices of a round head, without blood."""
    y, x = np.meshgrid(np.arange(120), np.arange(120), indexing="ij")
    inside = np.stack([(y - 60) ** 2 + (x - 60) ** 2 < 50**2] * 4)
    noise = np.random.default_rng(0).normal(0, 2, inside.shape)
    hu = np.where(inside, 32 + noise, 100).astype(np.float32)
    return Prepared("head", "train", hu, inside, np.zeros(4, np.int8))


def test_painted_copies_are_labelled_with_their_kind(head: Prepared) -> None:
    answers = np.array([of()] * 4, np.int8)
    config = load_config("best")  # some kinds have no room in a head without CSF
    copies = [copy for seed in range(4) for copy in painted_copies(head, answers, config, np.random.default_rng(seed))]
    assert copies
    for scan, slices, own in copies:
        assert (scan.hu[slices] != head.hu[slices]).any()
        assert (own[slices, -1] == 1).all()
        assert (own[slices, : len(KINDS)].sum(axis=1) == 1).all()
        rest = np.setdiff1d(np.arange(4), slices)
        assert (own[rest] == 0).all()
    assert (answers == 0).all()


def counted(lesions: list[np.ndarray], hu: np.ndarray, inside: np.ndarray, name: str) -> np.ndarray:
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
    assert [(r["case"], r["called"]) for r in judged(rows)] == [("a", "subdural"), ("b", "unsure")]
    every = {r["kind"]: r for r in summary(rows)}
    subdural, total = every["subdural"], every["all"]
    assert (subdural["scans_of_one_kind"], subdural["judged"], subdural["right"], subdural["unsure"]) == (3, 2, 1, 1)
    assert total["share"] == 0.5
    assert total["low"] < 0.5 < total["high"]
    assert total["lesions_elsewhere"] == 1
    table = confusion(rows)
    assert table.sum() == 2
    assert table[SUBDURAL].tolist() == [0, 0, 0, 1, 0, 1]


def test_samples_are_taken_up_only_where_they_were_made_of_the_same(tmp_path: Path) -> None:
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

    def inputs(lesions: list[np.ndarray], hu: np.ndarray, inside: np.ndarray, name: str) -> np.ndarray:
        made.append(len(lesions))
        return np.zeros((len(lesions), len(INPUTS)))

    def lesions(data: KindData, config: Config) -> list[LesionSample]:
        key = samples_key(data, None, config)
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
