"""Both scans of a head segmented in the same orientations.

What a network outlines depends on how the head lies: of a head that is turned by 10 degrees it finds a volume that may
differ by a third. Two scans are compared in the same orientations, therefore: halfway between the two, so that neither
is interpolated more than the other, and in a few poses about that (turned, shifted by part of a slice, mirrored), whose
probabilities are averaged on the scan's own grid.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from hemseg.compare.registration import image_on_working_grid
from hemseg.io.writers import to_itk
from hemseg.model import Model
from hemseg.postprocessing import drop_uncertain_components
from hemseg.preprocessing import Settings, WorkingImage, working_image
from hemseg.sliding_window import working_probability
from hemseg.volume import Volume

MARGIN_MM = (25.0, 25.0, 20.0)  # x, y, z around the two brains: skull and scalp
WINDOW_TOP_HU = 300.0  # a scan without anything brighter was stored in a window
BONE_HU = 500.0
SUBSLICES = 4  # per slice of the working grid, so that thin slices are averaged, not skipped


@dataclass(frozen=True)
class Pose:
    """How the head lies in a frame, compared with halfway between the two scans.

    Attributes:
        degrees: turned about x, y, z.
        shift_mm: shifted along x, y, z.
        mirrored: left and right exchanged.
    """

    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    mirrored: bool = False


POSES = (
    Pose(),
    Pose((5.0, 2.0, 4.0), (0.4, -0.3, 2.5), mirrored=True),
    Pose((-4.0, -3.0, -5.0), (-0.3, 0.4, 1.25)),
    Pose((2.0, 4.0, -3.0), (0.2, 0.2, -1.25), mirrored=True),
)


@dataclass(frozen=True, eq=False)
class HalfwaySpace:
    """The space between two scans.

    Attributes:
        to_baseline, to_followup: take its points (x, y, z; mm) to those of a scan; rigid.
        centre: of the brains.
        size: (x, y, z) mm that hold both brains and their skulls, whatever pose.
    """

    to_baseline: sitk.AffineTransform
    to_followup: sitk.AffineTransform
    centre: np.ndarray
    size: np.ndarray


def halfway(
    transform: sitk.Euler3DTransform, baseline: tuple[Volume, WorkingImage], followup: tuple[Volume, WorkingImage]
) -> HalfwaySpace:
    """The space that lies as far from the one scan as from the other.

    Args:
        transform: takes points of the baseline to the follow-up.
        baseline, followup: a scan and what `hemseg.preprocessing.working_image` makes of it.
    """
    turn = Rotation.from_matrix(np.array(transform.GetMatrix()).reshape(3, 3))
    half = Rotation.from_rotvec(turn.as_rotvec() / 2)
    pivot = np.array(transform.GetCenter())
    shift = np.array(transform.GetTranslation())
    # of the baseline: h = half (b - pivot) + pivot + shift / 2; of the follow-up: f = turn (b - pivot) + pivot + shift
    to_baseline = _affine(half.inv().as_matrix(), pivot - half.inv().apply(pivot + shift / 2))
    to_followup = _affine(half.as_matrix(), pivot + shift - half.apply(pivot + shift / 2))
    corners = np.concatenate(
        [_brain_corners(*scan, back.GetInverse()) for scan, back in ((baseline, to_baseline), (followup, to_followup))]
    )
    low, high = corners.min(axis=0) - MARGIN_MM, corners.max(axis=0) + MARGIN_MM
    return HalfwaySpace(to_baseline, to_followup, (low + high) / 2, high - low)


def _affine(matrix: np.ndarray, translation: np.ndarray) -> sitk.AffineTransform:
    transform = sitk.AffineTransform(3)
    transform.SetMatrix([float(v) for v in matrix.ravel()])
    transform.SetTranslation([float(v) for v in translation])
    return transform


def _brain_corners(volume: Volume, working: WorkingImage, to_halfway: sitk.Transform) -> np.ndarray:
    """The corners (n, 3; mm) of each slice's box around the brain, in the space between the scans."""
    image = image_on_working_grid(working.intracranial.astype(np.uint8), volume, working.grid)
    inside = working.intracranial if working.intracranial.any() else np.ones_like(working.intracranial)
    points = []
    for z in np.flatnonzero(inside.any(axis=(1, 2))):
        rows, columns = (np.flatnonzero(inside[z].any(axis=axis))[[0, -1]] for axis in (1, 0))
        for x, y in itertools.product(columns, rows):
            at = image.TransformContinuousIndexToPhysicalPoint((float(x), float(y), float(z)))
            points.append(to_halfway.TransformPoint(at))
    return np.array(points)


def frame(space: HalfwaySpace, pose: Pose, settings: Settings) -> sitk.Image:
    """An empty image whose voxels are to be filled with a scan in a pose."""
    fine = np.array([settings.in_plane_mm, settings.in_plane_mm, settings.slice_mm / SUBSLICES])
    count = np.ceil(space.size / fine).astype(int)
    count[2] += -count[2] % SUBSLICES
    axes = Rotation.from_euler("xyz", pose.degrees, degrees=True).as_matrix()
    if pose.mirrored:
        axes = axes * [-1.0, 1.0, 1.0]  # the first column: along x
    first = space.centre + pose.shift_mm - axes @ ((count - 1) / 2 * fine)
    image = sitk.Image([int(n) for n in count], sitk.sitkUInt8)
    image.SetSpacing([float(v) for v in fine])
    image.SetOrigin([float(v) for v in first])
    image.SetDirection([float(v) for v in axes.ravel()])
    return image


def with_bone(volume: Volume, working: WorkingImage) -> np.ndarray:
    """HU (z, y, x) in which bone is bright, also where a window cut it off.

    Between bone of 100 HU and brain a voxel that is interpolated is as bright as blood, all along the skull; between
    bone as it is and brain it is bone.
    """
    top = float(volume.hu.max())
    if top >= WINDOW_TOP_HU:
        return volume.hu
    inside = image_on_working_grid(working.intracranial.astype(np.uint8), volume, working.grid)
    grid = to_itk(np.zeros(volume.hu.shape, np.uint8), volume)
    cavity = sitk.GetArrayFromImage(sitk.Resample(inside, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)) > 0
    return np.where((volume.hu >= top - 0.5) & ~cavity, np.float32(BONE_HU), volume.hu)


def pose_probabilities(
    volume: Volume,
    working: WorkingImage,
    space: HalfwaySpace,
    followup: bool,
    model: Model,
    poses: tuple[Pose, ...] = POSES,
) -> Iterator[np.ndarray]:
    """For each pose the network's answer, on the scan's own working grid; float32 (z, y, x).

    Components that are certain nowhere (`Manifest.min_peak`) are left out in each pose, as `hemseg segment` does.

    Args:
        working: the scan on its working grid, in the orientation that it was stored in.
        followup: whether it is the follow-up, and not the baseline.
    """
    manifest = model.manifest
    to_scan = space.to_followup if followup else space.to_baseline
    scan = to_itk(with_bone(volume, working), volume)
    own = image_on_working_grid(np.zeros(working.grid.shape, np.uint8), volume, working.grid)
    for pose in poses:
        grid = frame(space, pose, manifest.preprocessing)
        hu = sitk.Resample(scan, grid, to_scan, sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
        turned = Volume(sitk.GetArrayFromImage(hu), grid.GetSpacing())  # as if it had been stored so
        seen = working_image(turned, manifest.preprocessing, model.strip)
        found = drop_uncertain_components(working_probability(seen, model), manifest.threshold, manifest.min_peak)
        answer = sitk.GetImageFromArray(found)
        fine, slab = np.array(grid.GetSpacing()), seen.grid.slab
        axes = np.array(grid.GetDirection()).reshape(3, 3)
        answer.SetSpacing([float(v) for v in (fine[0], fine[1], fine[2] * slab)])
        answer.SetOrigin([float(v) for v in np.array(grid.GetOrigin()) + axes[:, 2] * fine[2] * (slab - 1) / 2])
        answer.SetDirection(grid.GetDirection())
        back = sitk.Resample(answer, own, to_scan.GetInverse(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
        yield sitk.GetArrayFromImage(back)
