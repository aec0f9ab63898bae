"""A head that lies across is turned for the networks, exactly; one that is upright never is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hemseg.checks import check_scan
from hemseg.model import Model, load
from hemseg.preprocessing import Settings, Strip, WorkingImage, working_image
from hemseg.report.findings import findings, overlay
from hemseg.report.viewer import page
from hemseg.second_opinion import SliceClassifier
from hemseg.segmentation import postprocess, segment
from hemseg.upright import quarters_to_upright, turned
from hemseg.volume import Volume
from hemseg.volume_range import volumes_at
from hemseg.working_grid import WorkingGrid
from training.data.anatomy import Options
from training.data.phantom import Grid, make_phantom

GRID = Grid((22, 60, 64), (3.6, 3.6, 7.5), lower_mm=15.0)
BACK = {0: 0, 1: 3, 2: 0, 3: 1}  # upside down is left so


def rolled(volume: Volume, quarters: int) -> Volume:
    return replace(volume, hu=np.ascontiguousarray(np.rot90(volume.hu, quarters, axes=(1, 2))))


def prepared(seed: int, options: Options, strip: Strip | None) -> WorkingImage:
    return working_image(make_phantom(seed, (), GRID, options=options).volume, Settings(), strip)


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (1, Options()),
        (2, Options(roll=25)),
        (3, Options(roll=-30)),
        (4, Options(tilt=20)),
        (5, Options(craniectomy=True)),
        (6, Options(skull="infant")),
    ],
)
def test_a_head_is_brought_upright_from_either_side(seed: int, options: Options, model: Model) -> None:
    working = prepared(seed, options, model.strip)
    for quarters, back in BACK.items():
        hu, inside = (turned(array, quarters) for array in (working.hu, working.intracranial))
        assert quarters_to_upright(hu, inside, 1.0) == back, quarters


def test_what_is_not_clear_stays(model: Model) -> None:
    working = prepared(1, Options(roll=90), model.strip)
    assert working.quarters
    some = slice(4, 12)
    assert quarters_to_upright(working.hu[some], working.intracranial[some], 1.0) == 0
    for upright in (Options(roll=45), Options(roll=-45), Options(craniectomy=True)):
        assert prepared(5, upright, None).quarters == 0
    y, x = np.mgrid[-50:51, -50:51]
    round_ = np.broadcast_to(np.hypot(y, x) < 40, (14, 101, 101))
    assert quarters_to_upright(np.where(round_, 30, -20).astype(np.float32), round_, 1.0) == 0
    assert quarters_to_upright(np.zeros((14, 40, 40), np.float32), np.zeros((14, 40, 40), bool), 1.0) == 0


@pytest.mark.parametrize("quarters", [1, 3])
def test_a_rolled_scan_gets_the_rolled_mask_and_a_warning(quarters: int, light: Path) -> None:
    model = load(light, "cpu")
    settings = model.manifest.preprocessing
    straight = make_phantom(4, ("intraparenchymal",), GRID).volume
    expected = segment(straight, model)
    assert expected.volume_ml > 1
    assert expected.working.quarters == 0
    volume, working = check_scan(rolled(straight, quarters), settings, strip=model.strip)
    assert working.quarters
    assert "across" in " ".join(volume.warnings)
    result = segment(volume, model, working)
    assert {lesion.side for lesion in result.lesions} == {"unknown"}  # left by the header is front or back here
    assert {lesion.side for lesion in expected.lesions} <= {"left", "right", "midline"}
    assert expected.sides_are_known
    assert not result.sides_are_known
    assert result.mask.shape == volume.hu.shape
    assert result.volume.spacing == straight.spacing
    assert (result.volume.origin, result.volume.direction) == (straight.origin, straight.direction)
    back = np.rot90(result.mask, -quarters, axes=(1, 2))
    assert np.count_nonzero(back != expected.mask) <= 0.005 * expected.mask.sum()  # rounding, in another order
    mine, others = (volumes_at(one, model, (0.4,))[0.4] for one in (result, expected))
    assert mine == pytest.approx(others, rel=0.01)


@pytest.mark.parametrize(("oriented", "quarters"), [(True, 0), (False, 0), (True, 1)])
def test_pictures_and_pages_name_sides_that_are_known_alone(oriented: bool, quarters: int, model: Model) -> None:
    hu = np.full((8, 40, 40), 32, np.float32)
    hu[3, 10:20, 5:15] = 70
    volume = Volume(hu, (1.0, 1.0, 5.0), oriented=oriented)
    working = WorkingImage(hu, hu > 0, WorkingGrid(hu.shape, (5.0, 1.0, 1.0), (5.0, 1.0, 1.0), 1), quarters=quarters)
    result = postprocess(volume, working, (hu > 60).astype(np.float32), replace(model.manifest, min_lesion_ml=0.1))
    known = oriented and not quarters
    assert result.sides_are_known == known
    assert [lesion.side for lesion in result.lesions] == ["right" if known else "unknown"]
    text = page(result, findings(result, model, "case"))
    assert (">R</span>" in text, "patient's right is on the left" in text) == (known, known)
    assert ("Which side is the patient's right is not known" in text) != known
    named = replace(result, volume=replace(volume, oriented=True), working=replace(working, quarters=0))
    assert np.array_equal(overlay(result), overlay(named)) == known


def test_networks_are_shown_it_upright() -> None:
    hu = np.zeros((1, 20, 30), np.float32)
    hu[0, 3, 20] = 50
    inside = hu > -1
    grid = WorkingGrid(hu.shape, (5.0, 1.0, 1.0), (5.0, 1.0, 1.0), 1)
    seen: list[np.ndarray] = []

    def network(slices: np.ndarray) -> np.ndarray:
        seen.append(slices)
        return np.ones(len(slices), np.float32)

    working = WorkingImage(hu, inside, grid, quarters=1)
    shown, _ = working.upright
    assert np.argwhere(shown).tolist() == [[0, 9, 3]]  # what was to the right lies in front
    assert np.array_equal(working.from_upright(shown), hu)
    SliceClassifier((30, 20), network).classify_marked(np.ones(hu.shape, np.float32), 0.5, working, Settings())
    assert np.array_equal(seen[0], shown)
