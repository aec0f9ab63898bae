"""Any usual window is taken for HU, no picture of gray values is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conftest import SHARED

from hemseg.errors import HemsegError
from hemseg.hounsfield import require_hounsfield_units
from hemseg.scan import read
from training.data.phantom import Grid, make_phantom

Change = Callable[[np.ndarray], np.ndarray]
WINDOWS = ((-1024, 3071), (0, 80), (-10, 70), (0, 75), (-5, 85), (0, 100), (10, 70), (-100, 300), (-20, 100))
GRAY = {"brain": (0, 80), "subdural": (-20, 180), "stroke": (20, 60), "bone": (-800, 2000), "bone 1500": (-450, 1050)}


@pytest.fixture(scope="module")
def head() -> tuple[np.ndarray, tuple[float, float, float]]:
    volume = make_phantom(3, ("intraparenchymal",), Grid((16, 128, 128), (1.8, 1.8, 9.0))).volume
    return volume.in_lps()[0], volume.in_lps()[1]


def padded(array: np.ndarray, value: float) -> np.ndarray:
    """With a constant outside of a circle, as scanners store it."""
    rows, columns = np.indices(array.shape[1:])
    outside = np.hypot(rows - array.shape[1] / 2, columns - array.shape[2] / 2) > 0.49 * array.shape[1]
    return np.where(outside, value, array)


def gray(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return np.clip(np.round((hu - low) / (high - low) * 255), 0, 255)


@pytest.mark.parametrize("part", [slice(None), slice(8, 9), slice(6, 9)])
@pytest.mark.parametrize("shift", [-15, 0, 10])
def test_every_usual_window_is_taken(head: tuple[np.ndarray, tuple], part: slice, shift: float) -> None:
    hu, spacing = head
    for window in WINDOWS:
        require_hounsfield_units(np.clip(hu[part] + shift, *window), spacing, "scan")
    require_hounsfield_units(padded(hu[part] + shift, -3024), spacing, "scan")


def one_voxel(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array[0, 0, 0] = -1
    return array


@pytest.mark.parametrize("part", [slice(None), slice(8, 9)])
@pytest.mark.parametrize("more", [lambda a: a, lambda a: padded(a, -2000), one_voxel])
def test_gray_values_and_other_units_are_not(head: tuple[np.ndarray, tuple], more: Change, part: slice) -> None:
    hu, spacing = head[0][part], head[1]
    for window in GRAY.values():
        with pytest.raises(HemsegError, match="not in HU"):
            require_hounsfield_units(more(gray(hu, window)), spacing, "scan")
    with pytest.raises(HemsegError, match="intercept is missing"):
        require_hounsfield_units(more(hu + 1024), spacing, "scan")


@pytest.mark.parametrize(
    "scaled",
    [
        lambda hu: np.clip(hu, -1024, 1024) / 1024,
        lambda hu: (hu - hu.mean()) / hu.std(),
        lambda hu: (hu + 1000) / 3000,
        lambda hu: hu * 10,
    ],
)
def test_scaled_values_are_not(head: tuple[np.ndarray, tuple], scaled: Change) -> None:
    hu, spacing = head
    with pytest.raises(HemsegError, match="not in HU"):
        require_hounsfield_units(scaled(hu), spacing, "scan")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real scans of ../shared/data are not here")
@pytest.mark.parametrize("name", ["cranium/cranium.nii.gz", "phe-sich-heads/images/0039.nii.gz"])
def test_real_heads(name: str) -> None:
    hu, spacing = read(SHARED / name).in_lps()
    some = hu[len(hu) // 3 :: 6]
    for window in WINDOWS:
        require_hounsfield_units(np.clip(some, *window), spacing, "scan")
    for window in GRAY.values():
        with pytest.raises(HemsegError, match="not in HU"):
            require_hounsfield_units(gray(some, window), spacing, "scan")
