"""What holds for every array and every geometry, by examples that hypothesis looks for."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import orthonormal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import hemseg
from hemseg.checks import check_scan
from hemseg.io.masks import write_mask
from hemseg.model import Model
from hemseg.preprocessing import Settings
from hemseg.scan import read
from hemseg.segmentation import segment
from hemseg.volume import Volume

settings.register_profile(
    "hemseg", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("hemseg")

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
SPACINGS = st.tuples(*[st.floats(0.01, 100)] * 3)
ORIGINS = st.tuples(*[st.floats(-1e5, 1e5)] * 3)
AXES = [
    tuple(float(v) for v in (np.eye(3)[list(order)] * np.array(signs)[:, None]).ravel())
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
DIRECTIONS = st.one_of(st.sampled_from(AXES), st.integers(0, 10**6).map(orthonormal))
HU = st.one_of(st.floats(-1100, 3100, width=32), st.floats(-(2.0**127), 2.0**127, width=32))


@given(SHAPES, SPACINGS, ORIGINS, DIRECTIONS, st.integers(0, 2**32 - 1))
def test_lps_and_back(shape: Any, spacing: Any, origin: Any, direction: Any, seed: int) -> None:
    volume = Volume(np.random.default_rng(seed).random(shape, np.float32), spacing, origin, direction)
    lps, mm = volume.in_lps()
    assert np.array_equal(volume.from_lps(lps), volume.hu)
    assert sorted(mm) == sorted(spacing)
    voxels = np.argwhere(volume.hu > 0.5)
    there = volume.indices_in_lps(voxels)
    assert np.array_equal(lps[tuple(there.T)], volume.hu[tuple(voxels.T)])


@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nii", ".nrrd"])
@settings(max_examples=25)
@given(SHAPES, SPACINGS, ORIGINS, DIRECTIONS, st.integers(0, 2**32 - 1))
def test_masks_have_the_geometry_of_any_scan(
    suffix: str, shape: Any, spacing: Any, origin: Any, direction: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, shape).astype(np.int16))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    mask = rng.integers(0, 2, shape).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder, f"scan{suffix}")
        sitk.WriteImage(image, str(scan))
        try:
            volume = read(scan)
        except hemseg.HemsegError:
            return  # NIfTI's 32 bits make some of these no geometry at all
        made = sitk.ReadImage(str(write_mask(mask, volume, Path(folder, f"mask{suffix}"))))
        stored = sitk.ReadImage(str(scan))
    for what in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(made, what)() == getattr(stored, what)()
    assert np.array_equal(sitk.GetArrayFromImage(made), mask)


@settings(max_examples=150)
@given(arrays.arrays(np.float32, SHAPES, elements=HU), SPACINGS, ORIGINS, DIRECTIONS)
def test_any_array_is_prepared_or_refused(hu: np.ndarray, spacing: Any, origin: Any, direction: Any) -> None:
    try:
        volume, working = check_scan(Volume(hu, spacing, origin, direction), Settings())
    except hemseg.HemsegError:
        return
    assert np.isfinite(working.hu).all()
    assert volume.warnings


@settings(max_examples=5)
@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 12), st.integers(1, 90), st.integers(1, 90)), DIRECTIONS)
def test_noise_gets_a_mask_of_its_shape(model: Model, seed: int, shape: Any, direction: Any) -> None:
    hu = np.random.default_rng(seed).normal(30, 300, shape).astype(np.float32)
    result = segment(Volume(hu, (1.7, 1.8, 6.0), (0, 0, 0), direction), model)
    assert result.mask.shape == shape
    assert set(np.unique(result.mask)) <= {0, 1}
    assert result.volume_ml == pytest.approx(result.mask.sum() * 1.7 * 1.8 * 6 / 1000)
