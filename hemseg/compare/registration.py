"""Rigid registration of two head CT of one patient, and whether it succeeded.

Mattes' mutual information (Mattes et al., IEEE TMI 22:120, 2003) of HU clipped to 0..80, in which the brain has its
contrast and the skull is one bright shell, on three resolutions. It begins with the best of some hundred poses about
the centres of the two brains, so that a head that lies turned in the scanner is found, too. Whether it succeeded is
judged by what it did not optimize: how far the two cranial cavities fill the same space, and how much the brains look
alike in detail.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from hemseg.preprocessing import WorkingImage
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid

WINDOW_HU = (0.0, 80.0)
BASE_MM = 2.5  # both heads are brought to cubes of this size
LEVELS = (4, 2, 1)  # times as large
SHARES = (1.0, 0.5, 0.2)  # of the voxels that the metric looks at
SKULL_MM = 10.0  # around the cranial cavity, which is in the metric
FIELD_MM = 25.0  # around the cranial cavity, which is kept
MATTES_BINS = 32
TURNS_X, TURNS_Y, TURNS_Z = (-24.0, -12.0, 0.0, 12.0, 24.0), (-12.0, 0.0, 12.0), (-40.0, -20.0, 0.0, 20.0, 40.0)
SHIFTS_Z_MM = (-20.0, 0.0, 20.0)
UPPER_MM = 100.0  # of the cranial cavity, whose middle counts: scans end at different heights of its base
STARTS = 3  # poses that the coarse level is run from
INSET_MM = 5.0  # the rim is not in the comparison of the brains
BRAIN_HU = (0.0, 45.0)  # blood that came or went shall not count for much
FINE_MM, BROAD_MM = 2.0, 10.0  # what is compared is what is smaller than the latter
FAILED_OVERLAP, FAILED_LIKENESS = (
    0.80,
    0.35,
)  # other patients: 0.90 to 0.97, 0.25 to 0.65; the same: from 0.95, from 0.85
DOUBTFUL_OVERLAP, DOUBTFUL_LIKENESS = 0.92, 0.65
MIN_COMMON = 0.35  # of the smaller of the two cranial cavities


@dataclass(frozen=True, eq=False)
class Registration:
    """How a follow-up lies in the space of its baseline.

    Attributes:
        transform: takes points of the baseline (x, y, z; mm, LPS) to the same anatomy in the follow-up; rigid.
        overlap: Dice of the two cranial cavities, in the slices that both scans show.
        likeness: correlation of the brains' detail (HU 0..45, what is smaller than 10 mm), there.
        common: share of the smaller cranial cavity that both scans show.
    """

    transform: sitk.Euler3DTransform
    overlap: float
    likeness: float
    common: float

    @property
    def degrees(self) -> float:
        """By how much the head is turned between the scans, about whatever axis."""
        matrix = np.array(self.transform.GetMatrix()).reshape(3, 3)
        return float(np.degrees(np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))))

    @property
    def problem(self) -> str:
        """Why it did not succeed, as the end of a sentence; empty if it did."""
        if self.common < MIN_COMMON:
            return f"they show only {100 * self.common:.0f} % of a brain in common"
        if self.overlap < FAILED_OVERLAP:
            return f"after alignment the heads overlap by {self.overlap:.2f} (Dice) only"
        if self.likeness < FAILED_LIKENESS:
            return f"after alignment the brains look different (correlation {self.likeness:.2f})"
        return ""

    @property
    def doubt(self) -> str:
        """What makes it less sure, as a sentence; empty for most."""
        if self.overlap >= DOUBTFUL_OVERLAP and self.likeness >= DOUBTFUL_LIKENESS:
            return ""
        return (
            f"The alignment is uncertain (overlap of the heads {self.overlap:.2f}, correlation of the brains "
            f"{self.likeness:.2f}): look at both scans on the page."
        )


@dataclass(frozen=True, eq=False)
class _Head:
    """A head on cubes of `BASE_MM` along the patient's axes.

    Attributes:
        hu: float32, `WINDOW_HU`.
        cavity: uint8, the cranial cavity.
        shown: uint8, where the scan has voxels.
        centre: of the upper part of the cavity (x, y, z; mm).
    """

    hu: sitk.Image
    cavity: sitk.Image
    shown: sitk.Image
    centre: np.ndarray


def register(baseline: tuple[Volume, WorkingImage], followup: tuple[Volume, WorkingImage]) -> Registration:
    """Find the rigid transform between two scans of a head. The same input gives the same result, bit for bit.

    Args:
        baseline, followup: a scan and what `hemseg.preprocessing.working_image` makes of it; any grid and orientation.

    Returns:
        The best that was found, good or not: see `Registration.problem`.
    """
    fixed, moving = _head(*baseline), _head(*followup)
    transform = _optimize(fixed, moving)
    return Registration(transform, *_agreement(fixed, moving, transform))


def image_on_working_grid(voxels: np.ndarray, volume: Volume, grid: WorkingGrid) -> sitk.Image:
    """An array (z, y, x) on the working grid of a scan as a SimpleITK image, where it lies in the patient."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    start, steps = volume.lps_frame()
    axes = steps / np.linalg.norm(steps, axis=0)
    first = [
        (grid.slab - 1) / 2 * grid.scan_spacing[0],
        *((n * mm - m * new) / 2 + (new - mm) / 2 for n, mm, m, new in _in_plane(grid)),
    ]
    image.SetSpacing([float(v) for v in grid.spacing[::-1]])
    image.SetOrigin([float(v) for v in start + axes @ first])
    image.SetDirection([float(v) for v in axes[:, ::-1].ravel()])
    return image


def _in_plane(grid: WorkingGrid) -> list[tuple[int, float, int, float]]:
    """Pixels and their size in the scan, and on the working grid, along y and x."""
    return [(grid.scan_shape[a], grid.scan_spacing[a], grid.shape[a], grid.spacing[a]) for a in (1, 2)]


def _head(volume: Volume, working: WorkingImage) -> _Head:
    hu = image_on_working_grid(working.hu.clip(*WINDOW_HU), volume, working.grid)
    inside = sitk.GetImageFromArray(working.intracranial.astype(np.float32))
    inside.CopyInformation(hu)
    low, high = _box(hu, working.intracranial)
    cubes = sitk.Image([max(4, int(np.ceil(extent / BASE_MM))) for extent in high - low], sitk.sitkUInt8)
    cubes.SetSpacing([BASE_MM] * 3)
    cubes.SetOrigin([float(v) for v in low])
    smooth = sitk.DiscreteGaussian(hu, [(0.5 * BASE_MM) ** 2, (0.5 * BASE_MM) ** 2, 0.0])
    same = sitk.Transform()
    ones = sitk.Image(hu.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(hu)
    cavity = sitk.Resample(inside, cubes, same, sitk.sitkLinear, 0.0, sitk.sitkFloat32) > 0.5
    return _Head(
        hu=sitk.Resample(smooth, cubes, same, sitk.sitkLinear, WINDOW_HU[0], sitk.sitkFloat32, True),
        cavity=cavity,
        shown=sitk.Resample(ones, cubes, same, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8),
        centre=_centre(cavity),
    )


def _box(image: sitk.Image, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The box (mm, LPS) around what is true, with `FIELD_MM` to spare; around everything where nothing is."""
    where = inside if inside.any() else np.ones_like(inside)
    spans = [np.flatnonzero(where.any(axis=axes))[[0, -1]] for axes in ((0, 1), (0, 2), (1, 2))]  # x, y, z
    corners = [image.TransformContinuousIndexToPhysicalPoint([float(v) for v in c]) for c in itertools.product(*spans)]
    return np.min(corners, axis=0) - FIELD_MM, np.max(corners, axis=0) + FIELD_MM


def _centre(cavity: sitk.Image) -> np.ndarray:
    upper = sitk.GetArrayFromImage(cavity)
    planes = np.flatnonzero(upper.any(axis=(1, 2)))
    if not planes.size:
        middle = [(n - 1) / 2 for n in cavity.GetSize()]
        return np.array(cavity.TransformContinuousIndexToPhysicalPoint(middle))
    upper[: max(0, planes[-1] - round(UPPER_MM / BASE_MM))] = 0
    z, y, x = (float(v) for v in ndimage.center_of_mass(upper))
    return np.array(cavity.TransformContinuousIndexToPhysicalPoint((x, y, z)))


def _optimize(fixed: _Head, moving: _Head) -> sitk.Euler3DTransform:
    """Coarse to fine; the coarse level from several poses."""
    pairs = [(_downsample(fixed, factor), _downsample(moving, factor)) for factor in LEVELS]
    runs = [_optimize_level(fixed, pairs, start, 0) for start in _starting_poses(fixed, moving, pairs[0])]
    _, best = min(runs, key=lambda run: run[0])
    for level in range(1, len(LEVELS)):
        _, best = _optimize_level(fixed, pairs, best, level)
    return best


def _starting_poses(fixed: _Head, moving: _Head, pair: tuple[sitk.Image, sitk.Image]) -> list[sitk.Euler3DTransform]:
    """The poses about the heads' centres with the most mutual information, the best first."""
    method = _registration_method(fixed, 0)
    found = []
    for x, y, z, shift in itertools.product(TURNS_X, TURNS_Y, TURNS_Z, SHIFTS_Z_MM):
        transform = sitk.Euler3DTransform()
        transform.SetCenter([float(v) for v in fixed.centre])
        transform.SetRotation(*np.radians([x, y, z]).tolist())
        transform.SetTranslation([float(v) for v in moving.centre - fixed.centre + [0, 0, shift]])
        method.SetInitialTransform(transform, False)
        try:
            value = method.MetricEvaluate(*pair)
        except RuntimeError:  # nothing in common there
            value = float("inf")
        found.append((value, (abs(x) + abs(y) + abs(z) + abs(shift), x, y, z, shift), transform))
    found.sort(key=lambda one: one[:2])
    return [transform for _, _, transform in found[:STARTS]]


def _registration_method(fixed: _Head, level: int) -> sitk.ImageRegistrationMethod:
    """The metric on one level."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(MATTES_BINS)
    reach = [round(SKULL_MM / BASE_MM)] * 3
    head = sitk.BinaryDilate(fixed.cavity, reach) * fixed.shown
    method.SetMetricFixedMask(sitk.Shrink(head, [LEVELS[level]] * 3))
    if SHARES[level] < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(SHARES[level])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetNumberOfThreads(1)  # sums in another order would give other digits
    return method


def _downsample(head: _Head, factor: int) -> sitk.Image:
    if factor == 1:
        return head.hu
    return sitk.Shrink(sitk.DiscreteGaussian(head.hu, [(0.4 * factor * BASE_MM) ** 2] * 3), [factor] * 3)


def _optimize_level(
    fixed: _Head, pairs: list[tuple[sitk.Image, sitk.Image]], start: sitk.Euler3DTransform, level: int
) -> tuple[float, sitk.Euler3DTransform]:
    """Optimize on one level; the metric (the lower the better) and the transform."""
    method = _registration_method(fixed, level)
    mm = BASE_MM * LEVELS[level]
    transform = sitk.Euler3DTransform(start)
    if level + 1 < len(LEVELS):  # far from the end a line search gets on best
        method.SetOptimizerAsConjugateGradientLineSearch(mm, 40, 1e-5, 10)
    else:
        method.SetOptimizerAsRegularStepGradientDescent(mm / 2, mm / 500, 100, 0.8, 1e-9)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, True)
    try:
        method.Execute(*pairs[level])
    except RuntimeError:  # the two left each other
        return float("inf"), sitk.Euler3DTransform(start)
    return float(method.GetMetricValue()), transform


def _agreement(fixed: _Head, moving: _Head, transform: sitk.Euler3DTransform) -> tuple[float, float, float]:
    """Overlap of the heads, likeness of the brains, share in common, see `Registration`."""
    cubes = fixed.cavity
    a = sitk.GetArrayFromImage(cubes) > 0
    b, field = (
        sitk.GetArrayFromImage(sitk.Resample(image, cubes, transform, sitk.sitkNearestNeighbor, 0)) > 0
        for image in (moving.cavity, moving.shown)
    )
    least = min(int(np.sum(sitk.GetArrayViewFromImage(head.cavity))) for head in (fixed, moving))
    shown = field & (sitk.GetArrayViewFromImage(fixed.shown) > 0)
    a, b = a & shown, b & shown
    both = a & b
    common = float(both.sum()) / max(1, least)
    overlap = 2 * float(both.sum()) / max(1.0, float(a.sum() + b.sum()))
    one, other = _detail(fixed.hu), _detail(moving.hu)
    other = sitk.Resample(other, cubes, transform, sitk.sitkLinear, 0.0)
    inner = ndimage.binary_erosion(both, iterations=round(INSET_MM / BASE_MM))
    x, y = sitk.GetArrayViewFromImage(one)[inner], sitk.GetArrayViewFromImage(other)[inner]
    if x.size < 100 or x.std() == 0 or y.std() == 0:
        return overlap, 0.0, common
    return overlap, float(np.corrcoef(x, y)[0, 1]), common


def _detail(hu: sitk.Image) -> sitk.Image:
    """HU of brain and fluid, without what is larger than `BROAD_MM`."""
    brain = sitk.Clamp(hu, sitk.sitkFloat32, *BRAIN_HU)
    return sitk.DiscreteGaussian(brain, [FINE_MM**2] * 3) - sitk.DiscreteGaussian(brain, [BROAD_MM**2] * 3, 64)
