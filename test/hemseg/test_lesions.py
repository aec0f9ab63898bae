"""Figures of lesions: ABC/2 of shapes whose axes are known, what touches what, side and place in odd orientations."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import ndimage

from hemseg.abc2 import _interpolated, abc2
from hemseg.lesions import components, lesions_of, measured_lesions, ventricular_csf
from hemseg.preprocessing import WorkingImage
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid


def ellipsoid(
    axes: tuple[float, float, float],
    spacing: tuple[float, float, float],
    turn: float = 0.0,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """An ellipsoid, bool (z, y, x); full axes (a in plane, b in plane, c along z) and spacing (z, y, x) in mm.

    Args:
        turn: of A against the columns, in plane, in degrees.
        shift: of its middle against that of a voxel, in voxels.
    """
    a, b, c = axes
    reach = [int(np.ceil(r)) + 2 for r in (c / 2 / spacing[0], max(a, b) / 2 / spacing[1], max(a, b) / 2 / spacing[2])]
    z, y, x = ((np.arange(-n, n + 1) - s) * mm for n, s, mm in zip(reach, shift, spacing, strict=True))
    cos, sin = np.cos(np.deg2rad(turn)), np.sin(np.deg2rad(turn))
    along, across = cos * y[:, None] + sin * x, -sin * y[:, None] + cos * x
    return (2 * z[:, None, None] / c) ** 2 + (2 * along / a) ** 2 + (2 * across / b) ** 2 <= 1


def weighted_height(c: float, mm_z: float, shift: float) -> float:
    """C of an ellipsoid by the rule, from the areas that its slices have by geometry; full axis, in mm."""
    z = (np.arange(-100, 101) - shift) * mm_z
    areas = np.maximum(0, 1 - (2 * z / c) ** 2)
    shares = areas / areas.max()
    return mm_z * float(np.where(shares > 0.75, 1.0, np.where(shares >= 0.25, 0.5, 0.0)).sum())


@pytest.mark.parametrize("turn", [0, 20, 45, 77, 90])
@pytest.mark.parametrize("axes", [(30.0, 30.0, 26.0), (46.0, 25.0, 33.0), (60.0, 18.0, 52.0)])
@pytest.mark.parametrize("spacing", [(5.0, 0.45, 0.45), (1.0, 0.5, 0.5), (2.5, 0.9, 0.6)])
def test_abc2_of_ellipsoids(axes: tuple[float, float, float], spacing: tuple[float, float, float], turn: float) -> None:
    shift = (0.21, 0.4, -0.3)
    found = abc2(ellipsoid(axes, spacing, turn, shift), spacing)
    c = weighted_height(axes[2], spacing[0], shift[0])
    off = (2 * 0.21 * spacing[0] / axes[2]) ** 2  # the largest slice lies so far from the middle
    a, b = (axis * np.sqrt(1 - off) for axis in axes[:2])
    assert found.a_cm * 10 == pytest.approx(a, rel=0.025)
    assert found.b_cm * 10 == pytest.approx(b, rel=0.025)
    assert found.c_cm * 10 == pytest.approx(c, abs=spacing[0] / 2)  # counted pixels may pass 75 % where areas do not
    assert found.volume_ml == pytest.approx(a * b * found.c_cm / 200, rel=0.03)
    if axes[0] > axes[1]:
        (ya, xa), (yb, xb) = found.a_line
        direction = np.rad2deg(np.arctan2((xb - xa) * spacing[2], (yb - ya) * spacing[1])) % 180
        assert abs((direction - turn + 90) % 180 - 90) < 6
    lines = [np.diff(np.array(line), axis=0)[0] * spacing[1:] for line in (found.a_line, found.b_line)]
    assert_allclose([np.linalg.norm(line) / 10 for line in lines], [found.a_cm, found.b_cm])
    assert abs(np.dot(*lines)) < 1e-6 * np.linalg.norm(lines[0]) * np.linalg.norm(lines[1])


def test_slices_are_weighted_by_their_area() -> None:
    lesion = np.zeros((6, 12, 12), bool)
    for z, rows in enumerate((2, 3, 9, 10, 12, 5)):  # shares of 12: 0.17, 0.25, 0.75, 0.83, 1, 0.42
        lesion[z, :rows] = True
    found = abc2(lesion, (5.0, 1.0, 1.0))
    assert found.slice == 4
    assert found.c_cm == pytest.approx(0.5 * (0 + 0.5 + 0.5 + 1 + 1 + 0.5))


def test_single_voxel() -> None:
    found = abc2(np.ones((1, 1, 1), bool), (5.0, 0.5, 0.5))
    assert found.c_cm == 0.5
    assert 0.04 < found.b_cm <= found.a_cm < 0.1


def test_b_of_a_crescent_is_its_thickness() -> None:
    y, x = np.mgrid[-60:61, -60:61] * 1.0
    ring = (np.hypot(y, x) <= 58) & (np.hypot(y, x) >= 48) & (y < -30)
    found = abc2(ring[None], (5.0, 1.0, 1.0))
    assert found.a_cm == pytest.approx(2 * np.sqrt(58**2 - 30**2) / 10, rel=0.03)
    assert 1.0 <= found.b_cm < 1.4  # a caliper around all of it would give 2.8


def test_between_pixels_a_field_is_linear_and_ends_with_the_picture() -> None:
    field = np.random.default_rng(0).random((6, 9))
    at = np.random.default_rng(1).uniform(-2, 11, (40, 5, 2))
    expected = ndimage.map_coordinates(field, np.moveaxis(at, -1, 0), order=1, mode="nearest")
    assert_allclose(_interpolated(field, at), expected, atol=1e-12)


def test_components_come_by_size_and_touch_at_corners() -> None:
    mask = np.zeros((4, 8, 8), np.uint8)
    mask[0, 0, 0] = 3
    mask[2, 2:4, 2:4] = mask[3, 4, 4] = 1
    mask[0, 7, :3] = 1
    assert [len(voxels) for voxels in components(mask)] == [5, 3, 1]
    assert list(components(np.zeros((2, 2, 2)))) == []


SPACING = (5.0, 1.0, 1.0)  # of `head`, (z, y, x) in mm


def head(direction: tuple[float, ...] = (1, 0, 0, 0, 1, 0, 0, 0, 1)) -> tuple[Volume, WorkingImage]:
    """A brain of 32 HU, 120 mm wide, in which a ventricle of 8 HU lies; working grid and scan are the same."""
    y, x = np.mgrid[-70:70, -70:70]
    hu = np.full((8, 140, 140), 100, np.float32)
    inside = np.broadcast_to(np.hypot(y, x) < 60, hu.shape)
    hu[inside] = 32
    hu[2:6, 60:80, 60:70] = 8
    hu[:, 70:74, 12:14] = 8  # a sulcus
    plain = Volume(hu, (1.0, 1.0, 5.0), (7.0, 8.0, 9.0), tuple(map(float, direction)))
    scan = Volume(np.ascontiguousarray(plain.from_lps(hu)), plain.spacing, plain.origin, plain.direction)
    grid = WorkingGrid(hu.shape, SPACING, SPACING, 1)  # type: ignore[arg-type]
    return scan, WorkingImage(hu, inside, grid)


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), (-1, 0, 0, 0, 1, 0, 0, 0, -1)])
def test_what_a_lesion_touches(direction: tuple[float, ...]) -> None:
    volume, working = head(direction)
    assert ventricular_csf(working.hu[3], working.intracranial[3], 32.0, 1.0).sum() == pytest.approx(200, rel=0.1)
    mask = np.zeros((8, 140, 140), np.uint8)
    mask[3:5, 62:76, 72:90] = 1  # 2 mm beside the ventricle, left of it
    mask[3:5, 60:70, 30:44] = 1  # on the right, deep, far from it
    mask[6, 68:72, 127:130] = 1  # at the skull, left
    where = tuple(np.argwhere(mask).T)
    working.hu[where] = 60
    scan = Volume(np.ascontiguousarray(volume.from_lps(working.hu)), volume.spacing, volume.origin, volume.direction)
    probability = np.where(mask, 0.75, 0).astype(np.float32)
    probability[3, 62, 72] = 1.0
    stored = np.ascontiguousarray(scan.from_lps(mask))
    found = measured_lesions(stored, scan, working, probability)
    assert [lesion.touches_ventricle for lesion in found] == [True, False, False]
    assert [lesion.touches_skull for lesion in found] == [False, False, True]
    assert [lesion.lesion.side for lesion in found] == ["left", "right", "left"]
    assert tuple(lesion.lesion for lesion in found) == lesions_of(stored, scan, working)
    assert [lesion.median_hu for lesion in found] == [60, 60, 60]
    assert [lesion.axial_slices for lesion in found] == [(3, 4), (3, 4), (6, 6)]
    own = [(3, 4), (3, 4), (6, 6)] if direction[-1] > 0 else [(3, 4), (3, 4), (1, 1)]
    assert [lesion.lesion.slices for lesion in found] == own
    assert found[0].probability_max == 1.0
    assert found[0].probability_mean == pytest.approx(0.75, abs=0.01)
    assert (found[0].abc2.a_cm, found[0].abc2.slice) == (pytest.approx(np.hypot(13, 18) / 10, rel=0.05), 3)
    (ya, xa), (yb, xb) = found[0].abc2.a_line
    assert sorted((ya, yb)) == pytest.approx([62, 75], abs=0.6)
    assert sorted((xa, xb)) == pytest.approx([72, 89], abs=0.6)
    assert measured_lesions(stored, scan, working)[0].probability_mean is None
    assert measured_lesions(np.zeros_like(stored), scan, working) == ()
