"""A slice that holds hemorrhage by the slice classifier, but no outline, is named wherever people look first."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hemseg.compare import comparison
from hemseg.compare.comparison import compare, prepare_scan
from hemseg.errors import HemsegError
from hemseg.folder.console import print_table
from hemseg.folder.plan import Job
from hemseg.folder.rows import Row
from hemseg.folder.summary_page import write_summary_page
from hemseg.manifest import Manifest
from hemseg.model import Model
from hemseg.postprocessing import doubtful_slices, postprocessed_mask
from hemseg.preprocessing import Settings, WorkingImage
from hemseg.report.findings import COLUMNS, MAX_DOUBTFUL, ROWS, YELLOW, _slices_to_show, findings, overlay
from hemseg.report.viewer import page
from hemseg.second_opinion import Opinion
from hemseg.segmentation import Segmentation, postprocess, slice_numbers
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid
from training.data.phantom import Grid, make_phantom

NAN = np.nan
PHANTOM = Grid((28, 96, 96), (2.2, 2.2, 5.0))
TABLE = re.compile(r"<tbody>.*</tbody>", re.DOTALL)
SHAPE = (8, 40, 40)
MANIFEST = Manifest(
    "made up", "0", "none.onnx", "0" * 64, (8, 8, 8), Settings(),
    threshold=0.3, min_peak=0.5, min_lesion_ml=0.1,
    classifier_file="none.onnx", min_slice_probability=0.4, doubt_slice_probability=0.6,
)  # fmt: skip


def scan(slices: dict[int, float], thickness: int = 1, direction: tuple[float, ...] = Volume.direction) -> Segmentation:
    """A scan of SHAPE on the working grid, each slice of it ``thickness`` thin ones, with a spot of that probability in
    some slices, of which the classifier says 0.7; in slice 7 it is never sure, and in slice 0 the U-Net sees nothing.
    """
    hu, probability = np.full(SHAPE, 32.0, np.float32), np.zeros(SHAPE, np.float32)
    for z, peak in slices.items():
        probability[z, 16:24, 16:24] = peak
    probability[7, 16:24, 16:24] = 0.4
    opinion = np.full(SHAPE[0], NAN, np.float32)
    opinion[[0, *slices, 7]] = [0.9, *(0.7 for _ in slices), 0.5]
    grid = WorkingGrid((SHAPE[0] * thickness, *SHAPE[1:]), (5 / thickness, 1.0, 1.0), (5.0, 1.0, 1.0), thickness)
    volume = Volume(np.repeat(hu, thickness, axis=0), (1.0, 1.0, 5 / thickness), direction=direction)
    working = WorkingImage(hu, np.ones(SHAPE, bool), grid)
    return postprocess(volume, working, probability, MANIFEST, Opinion(opinion, np.zeros(SHAPE, bool)))


def test_a_slice_is_doubtful_where_the_classifier_is_sure_the_unet_sees_some_and_nothing_is_left() -> None:
    result = scan({1: 0.4, 3: 0.9, 5: 0.4})
    assert np.flatnonzero(result.mask.any(axis=(1, 2))).tolist() == [3]
    assert result.doubtful_slices == (1, 5)
    (said,) = result.volume.warnings
    assert said == (
        "The slice classifier sees hemorrhage in slices 2, 6 of 8, counted from inferior, where nothing is outlined: "
        "look there."
    )
    arguments = result.mask, result.volume, result.working, result.working_probability
    assert doubtful_slices(*arguments, MANIFEST, None) == ()  # type: ignore[arg-type]
    assert doubtful_slices(*arguments, replace(MANIFEST, doubt_slice_probability=0.0), result.opinion) == ()  # type: ignore[arg-type]


def test_the_ends_of_a_lesion_are_not_doubtful() -> None:
    """The outline leaves out where a lesion fades; a spot apart, in the next slice, is another thing."""
    fading = replace(MANIFEST, outline_threshold=0.7, outline_ml=0.1)
    result = scan({2: 0.4, 3: 0.9, 4: 0.9, 5: 0.4})
    assert result.opinion is not None
    assert result.working_probability is not None
    arguments = result.volume, result.working, result.working_probability, fading, result.opinion
    mask = postprocessed_mask(*arguments)
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [3, 4]
    assert doubtful_slices(mask, *arguments) == ()
    apart = result.working_probability.copy()
    apart[5] = np.roll(apart[5], 12, axis=1)
    assert doubtful_slices(mask, *arguments[:2], apart, *arguments[3:]) == (5,)


@pytest.mark.parametrize("direction", [Volume.direction, (1, 0, 0, 0, 1, 0, 0, 0, -1)])
def test_slices_are_counted_from_inferior_however_the_file_is_stored(direction: tuple[float, ...]) -> None:
    assert scan({1: 0.4}, thickness=3, direction=direction).doubtful_slices == (3, 4, 5)


def test_slices_in_words() -> None:
    assert slice_numbers((6,)) == "slice 7"
    assert slice_numbers((0, 2, 3, 4, 8)) == "slices 1, 3-5, 9"


def test_nothing_is_not_called_nothing_where_a_slice_is_doubtful() -> None:
    assert scan({}).headline == "no hemorrhage found"
    assert scan({1: 0.4}).headline == "nothing outlined, doubtful: slice 2"
    assert scan({1: 0.9}).headline == "0.3 mL in 1 lesion"
    assert scan({1: 0.9, 3: 0.4}).headline == "0.3 mL in 1 lesion, doubtful: slice 4"


def test_pictures_show_doubtful_slices_and_the_hemorrhage() -> None:
    mask = np.zeros((60, 4, 4), np.uint8)
    mask[10:50] = 1
    mask[27, 0, 0] = 0
    plain = _slices_to_show(mask, ())
    assert len(plain) == COLUMNS * ROWS
    shown = _slices_to_show(mask, (2, 55))
    assert {2, 55} <= set(shown)
    assert len(set(shown)) == COLUMNS * ROWS
    many = _slices_to_show(mask, tuple(z for z in range(60) if not 10 <= z < 50))
    assert len(set(many)) == COLUMNS * ROWS
    assert 4 <= sum(not mask[z].any() for z in many) <= MAX_DOUBTFUL
    single = np.zeros((24, 4, 4), np.uint8)
    single[2] = 1
    assert {2, 17} <= set(_slices_to_show(single, (17,)))
    assert _slices_to_show(single * 0, (5,)) == sorted({*_slices_to_show(single * 0, ())} - {4} | {5})
    assert _slices_to_show(mask[:1], (0,)) == [0]
    assert _slices_to_show(mask[:3], (0, 1, 2)) == [0, 1, 2]
    rng = np.random.default_rng(0)
    for _ in range(300):
        mask = np.zeros((int(rng.integers(1, 40)), 2, 2), np.uint8)
        mask[rng.integers(len(mask), size=rng.integers(1, 5))] = 1
        empty = np.flatnonzero(~mask.any(axis=(1, 2)))
        doubtful = tuple(sorted(rng.choice(empty, min(len(empty), int(rng.integers(9))), replace=False).tolist()))
        shown = _slices_to_show(mask, doubtful)
        assert any(mask[z].any() for z in shown)
        assert len(set(shown)) == len(shown) == min(len(mask), COLUMNS * ROWS)
    for slices, framed in (({1: 0.4}, True), ({1: 0.9}, False)):
        picture = overlay(scan(slices))
        assert (picture == YELLOW).all(axis=2).any() == framed


def test_reports_hold_doubtful_slices(model: Model) -> None:
    result = scan({1: 0.4})
    found = findings(result, model, "case")
    assert json.loads(json.dumps(found))["doubtful_slices"] == [1]
    assert '"doubtful": [1]' in page(result, found)
    assert "nothing outlined, doubtful: slice 2" in page(result, found)


def test_tables_and_pages_of_folders_hold_doubtful_slices(tmp_path: Path) -> None:
    row = Row("case", "done", "0.000", "0", "0.000", "1.00", doubtful_slices="2 3").sealed
    assert row.holds
    assert not replace(row, doubtful_slices="").holds
    with redirect_stdout(io.StringIO()) as printed:
        print_table([row])
    assert "0.0 doubtful" in printed.getvalue()
    warned = replace(row, warnings='He said "look".')
    write_summary_page([(Job(Path("case"), tmp_path / "case.nii", tmp_path / "mask.nii"), warned)], tmp_path / "s.html")
    text = (tmp_path / "s.html").read_text()
    assert "Slices are doubtful in 1 of them." in text
    ((cells,),) = [ElementTree.fromstring(body) for body in TABLE.findall(text)]  # noqa: S314 - our own
    notes = cells[-1]
    assert notes.attrib["data-value"] == "".join(notes.itertext()) == 'Doubtful slices: 2 3. He said "look".'


def test_a_comparison_warns_where_nothing_is_outlined(monkeypatch: pytest.MonkeyPatch, model: Model) -> None:
    first = make_phantom(3, (), PHANTOM).volume
    scans = [prepare_scan(volume, model) for volume in (first, replace(first, hu=first.hu + 1))]
    shape = scans[0].working.hu.shape
    faint = np.zeros(shape, np.float32)
    faint[4, shape[1] // 2 : shape[1] // 2 + 8, shape[2] // 2 : shape[2] // 2 + 8] = 0.4
    answers = np.full(shape[0], 0.9, np.float32)
    monkeypatch.setattr(model, "manifest", replace(model.manifest, threshold=0.3, min_peak=0.5))
    monkeypatch.setattr(comparison, "working_probability", lambda *_: faint)
    monkeypatch.setattr(comparison, "second_opinion", lambda *_: Opinion(answers, np.zeros(shape, bool)))
    monkeypatch.setattr(comparison, "pose_probabilities", lambda *_: iter([np.zeros(shape, np.float32)]))
    found = compare(*scans, model)
    assert found.baseline.volume_ml == found.followup.volume_ml == 0
    for one in (found.baseline, found.followup):
        assert one.volume.warnings[-1].startswith(f"The slice classifier sees hemorrhage in slice 5 of {shape[0]},")


def test_a_manifest_with_doubts_needs_a_second_opinion(tmp_path: Path) -> None:
    replace(MANIFEST, min_slice_probability=0.0).write(tmp_path)
    with pytest.raises(HemsegError, match="doubt_slice_probability needs min_slice_probability"):
        Manifest.read(tmp_path)
