"""Kinds of hemorrhage on their way from the weights to what people read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.series import write_series
from onnx import helper, numpy_helper

from hemseg.errors import HemsegError
from hemseg.folder.jobs import run_job
from hemseg.folder.plan import OutputOptions, plan_jobs
from hemseg.kinds import CODES, INPUTS, KINDS, UNSURE_CODE, Kind, KindHead
from hemseg.manifest import FORMAT, Manifest
from hemseg.model import Model, load
from hemseg.preprocessing import WorkingImage
from hemseg.report.columns import LESIONS, lesion_cells
from hemseg.report.findings import findings
from hemseg.report.kinds import kinds_path, write_kinds
from hemseg.report.viewer import page
from hemseg.scan import read
from hemseg.segmentation import Segmentation, lesion_kinds, segment
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid
from training.data.phantom import Phantom
from training.export.kinds import attach_kinds

FIELD = (50, 40)


@pytest.fixture(scope="module")
def naming(light: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light weights with a classifier and numbers that call every lesion subdural, with a probability of 0.75."""
    folder = tmp_path_factory.mktemp("naming")
    shutil.copytree(light, folder, dirs_exist_ok=True)
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "channel"),
        numpy_helper.from_array(np.array([1, 2], np.int64), "plane"),
    ]
    slices = helper.make_tensor_value_info("slices", 1, ["batch", *FIELD])
    answers = [
        helper.make_tensor_value_info("probability", 1, ["batch"]),
        helper.make_tensor_value_info("features", 1, ["batch", 1, *FIELD]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["slices", "plane"], ["mean"], keepdims=0),
        helper.make_node("Sigmoid", ["mean"], ["probability"]),
        helper.make_node("Unsqueeze", ["slices", "channel"], ["features"]),
    ]
    graph = helper.make_graph(nodes, "as it is", [slices], answers, constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    (folder / "classifier.onnx").write_bytes(network)
    even = np.log(0.25 / 4)
    classifier = sha256(network).hexdigest()
    KindHead(
        classifier=np.array(classifier),
        maps=np.zeros((len(KINDS), 1)),
        bias=np.zeros(len(KINDS)),
        mean=np.zeros(len(INPUTS)),
        scale=np.ones(len(INPUTS)),
        weight=np.zeros((len(KINDS), len(INPUTS))),
        offset=np.array([np.log(0.75) if kind == "subdural" else even for kind in KINDS]),
        unsure_below=np.array(0.5),
        right=np.array([7, 9]),
    ).write(folder / "kinds.npz")
    replace(
        Manifest.read(light),
        kinds_file="kinds.npz",
        kinds_sha256=sha256((folder / "kinds.npz").read_bytes()).hexdigest(),
        classifier_file="classifier.onnx",
        classifier_sha256=classifier,
        classifier_field=FIELD,
        format=FORMAT,
    ).write(folder)
    return folder


@pytest.fixture(scope="module")
def model(naming: Path) -> Model:
    return load(naming, "cpu", 1)


@pytest.fixture(scope="module")
def result(model: Model, bleed: Phantom) -> Segmentation:
    return segment(bleed.volume, model)


def test_every_lesion_has_a_kind_and_the_mask_is_the_same_without_them(
    result: Segmentation, light: Path, bleed: Phantom
) -> None:
    plain = segment(bleed.volume, load(light, "cpu", 1))
    assert result.lesions
    assert np.array_equal(plain.mask, result.mask)
    assert plain.lesions == result.lesions
    assert plain.kinds == ()
    assert [kind.name for kind in result.kinds] == ["subdural"] * len(result.lesions)
    assert result.kinds[0].probability == pytest.approx(0.75)


def test_the_mask_of_kinds_labels_each_lesion(result: Segmentation) -> None:
    assert set(np.unique(result.kind_mask)) == {0, CODES["subdural"]}
    assert np.array_equal(result.kind_mask > 0, result.mask > 0)
    unsure = replace(result, kinds=(Kind("unsure", 0.4), *result.kinds[1:]))
    largest = int((unsure.kind_mask == UNSURE_CODE).sum()) * result.volume.voxel_ml
    assert largest == pytest.approx(result.lesions[0].volume_ml)


def test_reports_say_the_kind_where_the_weights_name_it(result: Segmentation, model: Model) -> None:
    found = findings(result, model, "case")
    named = found["lesions"][0]
    assert (named["kind"], named["kind_probability"]) == ("subdural", 0.75)
    assert found["kinds_measured"] == {"right": 7, "lesions": 9}
    assert "right in 7 of 9 lesions of unseen scans" in page(result, found)
    without = findings(replace(result, kinds=()), model, "case")
    assert "kind" not in without["lesions"][0]
    assert "kinds_measured" not in without
    assert "unseen scans" not in page(replace(result, kinds=()), without)


def test_the_table_of_lesions_has_the_kind(result: Segmentation) -> None:
    measured = result.measured[0]
    assert lesion_cells("case", 1, measured, result.kinds[0])[-2:] == ("subdural", "0.750")
    assert lesion_cells("case", 1, measured)[-2:] == ("", "")
    assert [column.name for column in LESIONS[-2:]] == ["kind", "kind_probability"]
    assert set(LESIONS[-2].choices) == {*KINDS, "unsure"}


def test_the_mask_of_kinds_is_written_beside_the_mask(
    model: Model, light: Path, scan: Path, tmp_path: Path, naming: Path
) -> None:
    (plain,) = plan_jobs(scan, tmp_path / "plain", OutputOptions())
    (job,) = plan_jobs(scan, tmp_path / "out", OutputOptions(kinds=True, report=True))
    for one in (plain, job):
        outcome = run_job(one, load(light, "cpu", 1) if one is plain else model)
        assert outcome.error == ""
    assert job.kinds == tmp_path / "out" / "case_kinds.nii.gz"
    assert job.kinds in job.outputs
    kinds, mask = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (job.kinds, job.mask))
    assert set(np.unique(kinds)) == {0, CODES["subdural"]}
    assert np.array_equal(kinds > 0, mask > 0)
    assert job.mask.read_bytes() == plain.mask.read_bytes()  # to the byte, with or without kinds
    assert job.report
    assert {lesion["kind"] for lesion in json.loads(job.report.read_text())["lesions"]} == {"subdural"}


def test_weights_without_kinds_say_so(result: Segmentation, tmp_path: Path) -> None:
    with pytest.raises(HemsegError, match="name no kinds"):
        write_kinds(replace(result, kinds=()), tmp_path / "kinds.nii.gz")
    assert not list(tmp_path.iterdir())


def test_dicom_seg_has_a_segment_for_each_kind_that_was_found(
    result: Segmentation, bleed: Phantom, tmp_path: Path
) -> None:
    write_series(tmp_path / "series", bleed.volume)
    volume = read(tmp_path / "series")
    mask = np.zeros(volume.hu.shape, np.uint8)
    mask[2:4, 10:20, 10:20], mask[6:8, 40:45, 40:45], mask[9, 60:64, 60:62] = 1, 1, 1
    kinds = (Kind("subdural", 0.9), Kind("intraventricular", 0.8), Kind("unsure", 0.3))
    found = replace(result, volume=volume, mask=mask, lesions=(result.lesions[0],) * 3, kinds=kinds)
    segmentation = hd.seg.segread(write_kinds(found, tmp_path / "kinds.dcm"))
    described = [
        (s.SegmentLabel, s.SegmentedPropertyTypeCodeSequence[0].CodeValue, len(s.get("AnatomicRegionSequence", ())))
        for s in segmentation.SegmentSequence
    ]
    assert described == [  # in the order of the codes, without gaps
        ("Intraventricular hemorrhage", "1386000", 1),
        ("Subdural hemorrhage", "35486000", 0),
        ("Intracranial hemorrhage, kind unsure", "1386000", 0),
    ]
    voxels = dict.fromkeys((1, 2, 3), 0)
    for frame, about in zip(segmentation.pixel_array, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        voxels[about.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(frame.sum())
    assert voxels == {1: 50, 2: 200, 3: 8}


@pytest.mark.parametrize(
    ("mask", "expected"),
    [("a.nii.gz", "a_kinds.nii.gz"), ("a.mha", "a_kinds.mha"), ("a.dcm", "a_kinds.dcm"), ("a.nii", "a_kinds.nii")],
)
def test_where_the_mask_of_kinds_goes(mask: str, expected: str) -> None:
    assert kinds_path(Path("out", mask), Path("out", "a")) == Path("out", expected)


@pytest.fixture
def damaged(naming: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    shutil.copytree(naming, folder)
    return folder


def test_a_damaged_file_of_kinds_is_refused(damaged: Path) -> None:
    (damaged / "kinds.npz").write_bytes(b"x")
    with pytest.raises(HemsegError, match="sha256"):
        load(damaged, "cpu", 1)
    (damaged / "kinds.npz").unlink()
    with pytest.raises(HemsegError, match="cannot be read"):
        load(damaged, "cpu", 1)


def test_numbers_that_read_another_classifier_are_refused(damaged: Path) -> None:
    manifest = Manifest.read(damaged)
    replace(manifest, classifier_file="", classifier_sha256="").write(damaged)
    with pytest.raises(HemsegError, match="made for another slice classifier"):
        load(damaged, "cpu", 1)
    with pytest.raises(HemsegError, match="made for another slice classifier"):
        attach_kinds(damaged, damaged)


def test_a_manifest_of_weights_without_the_network_of_before_is_read(light: Path, tmp_path: Path) -> None:
    """Formats 7 to 9 had a network of kinds, which no weights that were published made use of."""
    shutil.copytree(light, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "manifest.json"
    values = json.loads(path.read_text()) | {"kinds_network_file": "", "kinds_network_sha256": ""}
    path.write_text(json.dumps(values))
    assert Manifest.read(tmp_path) == Manifest.read(light)
    path.write_text(json.dumps(values | {"kinds_network_file": "kinds.onnx"}))
    with pytest.raises(HemsegError, match="kinds_network_file"):
        Manifest.read(tmp_path)


def test_the_classifier_is_asked_once(model: Model, bleed: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said as a second opinion serves the kinds, too; without one it is asked for these."""
    asked: list[int] = []
    classifier = model.classifier
    assert classifier is not None

    def with_maps(slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(slices))
        assert classifier.kind_network is not None
        return classifier.kind_network(slices)

    monkeypatch.setattr(model, "classifier", replace(classifier, kind_network=with_maps))
    alone = segment(bleed.volume, model)
    of_kinds, asked[:] = sum(asked), []
    monkeypatch.setattr(model, "manifest", replace(model.manifest, min_slice_probability=0.01))
    both = segment(bleed.volume, model)
    assert both.working_probability is not None
    judged = np.count_nonzero((both.working_probability >= model.manifest.threshold).any(axis=(1, 2)))
    assert sum(asked) == judged >= of_kinds > 0
    assert both.kinds
    assert both.kinds == alone.kinds[: len(both.kinds)]  # lesions that it does not see are left out


def test_a_lesion_of_a_head_that_lies_across_is_named_as_if_it_were_upright(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    assert model.kinds is not None
    maps, weight = np.ones((len(KINDS), 1)), rng.normal(size=(len(KINDS), len(INPUTS))) / 30
    monkeypatch.setattr(model, "kinds", replace(model.kinds, maps=maps, weight=weight))
    hu = np.full((2, 40, 44), 32.0, np.float32)
    inside, mask = np.zeros(hu.shape, bool), np.zeros(hu.shape, np.uint8)
    inside[:, 3:37, 8:36], mask[:, 5:14, 10:16], hu[:, 5:14, 10:16] = True, 1, 70.0

    def named(quarters: int) -> Kind:
        lying, brain, blood = (np.rot90(array, -quarters, axes=(1, 2)).copy() for array in (hu, inside, mask))
        grid = WorkingGrid(lying.shape, (5.0, 1.0, 1.0), (5.0, 1.0, 1.0), 1)
        working = WorkingImage(lying, brain, grid, quarters=quarters)
        return lesion_kinds(blood, Volume(lying, (1.0, 1.0, 5.0)), working, model)[0]

    upright = named(0)
    for quarters in (1, 3):
        assert named(quarters).name == upright.name
        assert named(quarters).probability == pytest.approx(upright.probability, abs=1e-6)


def test_attached_kinds_are_named_in_the_manifest(naming: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(naming, weights)
    replace(Manifest.read(naming), kinds_file="", kinds_sha256="").write(weights)
    (weights / "kinds.npz").unlink()
    assert load(weights, "cpu", 1).kinds is None
    attach_kinds(naming, weights)
    assert Manifest.read(weights) == Manifest.read(naming)
    with pytest.raises(HemsegError, match=r"no kinds\.npz"):
        attach_kinds(tmp_path, weights)


def test_how_often_kinds_are_right_in_test_scans_is_kept_with_them(naming: Path, tmp_path: Path) -> None:
    weights, summary = tmp_path / "weights", tmp_path / "summary.csv"
    shutil.copytree(naming, weights)
    rows = ["a,val,all,5,5", "a,test,all,6,4", "a,test,subdural,3,2", "b,test,all,2,1", "painted,test,all,9,9"]
    summary.write_text("\n".join(["data,split,kind,judged,right", *rows, "phantoms,,all,8,8"]))
    attach_kinds(weights, weights, summary)
    kinds = load(weights, "cpu", 1).kinds
    assert kinds is not None
    assert kinds.right.tolist() == [5, 8]
    summary.write_text("data,split,kind,judged,right\na,val,all,5,5\n")
    with pytest.raises(HemsegError, match="test split"):
        attach_kinds(weights, weights, summary)
