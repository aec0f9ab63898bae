"""Two scans of one patient in, what changed out: alignment, masks on each scan's own grid, volumes, lesions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hemseg.checks import check_scan
from hemseg.compare.acquisition import different_patients, hours_between
from hemseg.compare.change import (
    EXPANSION_ML,
    EXPANSION_PERCENT,
    Change,
    LesionPair,
    match_lesions,
    numbered_lesions,
)
from hemseg.compare.poses import POSES, HalfwaySpace, Pose, halfway, pose_probabilities
from hemseg.compare.registration import Registration, register
from hemseg.compare.retest_limits import RetestLimits, read_limits
from hemseg.errors import HemsegError
from hemseg.io.writers import to_itk
from hemseg.lesions import sides_are_known
from hemseg.model import Model
from hemseg.postprocessing import doubtful_slices
from hemseg.preprocessing import WorkingImage
from hemseg.segmentation import doubtful_slices_warning, postprocess, second_opinion
from hemseg.sliding_window import working_probability
from hemseg.volume import Volume

MATCHING_MM = 1.5  # cubes on which lesions are matched
BOTH_LABELS = ("baseline", "follow-up")


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan that is compared.

    Attributes:
        working: what the networks see of it.
        given: a mask that somebody gives for it, (z, y, x) on its grid, in place of hemseg's.
    """

    volume: Volume
    working: WorkingImage
    given: np.ndarray | None = None


@dataclass(frozen=True)
class Options:
    """How to compare.

    Attributes:
        least_ml, least_percent: of expansion, see `hemseg.compare.change.Change`.
        hours: between the scans; None: what their headers say.
        any_patient: also where the headers name two patients.
        poses: in which both are segmented.
    """

    least_ml: float = EXPANSION_ML
    least_percent: float = EXPANSION_PERCENT
    hours: float | None = None
    any_patient: bool = False
    poses: tuple[Pose, ...] = POSES


@dataclass(frozen=True, eq=False)
class MeasuredScan:
    """One scan of a comparison.

    Attributes:
        mask: uint8 (z, y, x) on the scan's own grid.
        numbers: int16 (z, y, x), its lesions by number, see `hemseg.compare.change.numbered_lesions`.
        lesions_ml: their volumes, the largest first.
        given: whether the mask was given.
        implausible: what cannot be about it, in sentences.
        sides_are_known: whether right and left are the patient's (`hemseg.lesions.sides_are_known`).
    """

    volume: Volume
    mask: np.ndarray
    numbers: np.ndarray
    lesions_ml: list[float]
    given: bool
    implausible: tuple[str, ...] = ()
    sides_are_known: bool = True

    @property
    def volume_ml(self) -> float:
        """Hemorrhage in mL, as the voxel spacing in the header has it."""
        return int(np.count_nonzero(self.mask)) * self.volume.voxel_ml


@dataclass(frozen=True, eq=False)
class Comparison:
    """Baseline and follow-up, and what changed.

    Attributes:
        hours: from the one to the other; None where it is not known.
        limits: what `Change.band` comes from; None where it does not hold for these masks.
        warnings: of the comparison itself, in sentences; those of the scans stand in their volumes.
    """

    baseline: MeasuredScan
    followup: MeasuredScan
    registration: Registration
    change: Change
    lesions: list[LesionPair]
    hours: float | None
    limits: RetestLimits | None
    warnings: tuple[str, ...] = ()


def prepare_scan(volume: Volume, model: Model, given: np.ndarray | None = None, strict: bool = False) -> Scan:
    """Prepare a scan for comparison; arguments and errors as for `hemseg.checks.check_scan`."""
    volume, working = check_scan(volume, model.manifest.preprocessing, strict, model.strip)
    return Scan(volume, working, given)


def compare(baseline: Scan, followup: Scan, model: Model, options: Options = Options()) -> Comparison:
    """Align two scans, measure both, and report what changed.

    Args:
        model: segments what has no mask; its skull strip is used for the alignment.

    Raises:
        HemsegError: they cannot be aligned, or are of two patients.
    """
    names = f"{_name(baseline, 0)} and {_name(followup, 1)}"
    if not options.any_patient and different_patients(baseline.volume, followup.volume):
        raise HemsegError(
            f"{names}: their DICOM headers name two different patients; if it is one all the same, give --any-patient."
        )
    pair = ((baseline.volume, baseline.working), (followup.volume, followup.working))
    registration = register(*pair)
    if registration.problem:
        raise HemsegError(
            f"{names}: could not be aligned, {registration.problem}; are they whole head CT of one patient?"
        )
    space = halfway(registration.transform, *pair)
    measured = [
        replace(
            _measure(scan, space, later, model, options.poses),
            sides_are_known=sides_are_known(scan.volume, scan.working),
        )
        for scan, later in ((baseline, False), (followup, True))
    ]
    before, after = measured
    limits, doubts = _limits(measured, model)
    volumes = before.volume_ml, after.volume_ml
    band = limits.band(*volumes) if limits else None
    hours = hours_between(baseline.volume, followup.volume) if options.hours is None else options.hours
    return Comparison(
        before,
        after,
        registration=registration,
        change=Change(*volumes, options.least_ml, options.least_percent, band),
        lesions=_match(before, after, registration.transform),
        hours=hours,
        limits=limits,
        warnings=(*_pair_warnings(baseline.volume, followup.volume, registration, hours), *doubts),
    )


def _measure(scan: Scan, space: HalfwaySpace, later: bool, model: Model, poses: tuple[Pose, ...]) -> MeasuredScan:
    """A scan with the mask that was given for it, or with that of the mean of its poses."""
    if scan.given is not None:
        return _measure_mask(scan.volume, scan.given, given=True)
    answers = pose_probabilities(scan.volume, scan.working, space, later, model, poses)
    mean = np.stack(list(answers)).mean(axis=0, dtype=np.float32)
    return _warn_of_doubtful_slices(_measure_probability(scan, np.asarray(mean), model), scan, model)


def _measure_probability(scan: Scan, probability: np.ndarray, model: Model) -> MeasuredScan:
    """A scan's mask of the probability (z, y, x) on its working grid, as `hemseg segment` outlines it."""
    opinion = second_opinion(probability, scan.working, model)
    result = postprocess(scan.volume, scan.working, probability, replace(model.manifest, min_peak=0.0), opinion)
    return replace(_measure_mask(scan.volume, result.mask, given=False), implausible=result.implausible)


def _warn_of_doubtful_slices(measured: MeasuredScan, scan: Scan, model: Model) -> MeasuredScan:
    """A scan in which nothing is outlined, with a warning of slices that are doubtful in it as it lies; from the poses'
    answers, what is certain nowhere is gone. It takes one more run of the network.
    """
    if measured.mask.any():
        return measured
    probability = working_probability(scan.working, model)
    opinion = second_opinion(probability, scan.working, model)
    doubtful = doubtful_slices(measured.mask, scan.volume, scan.working, probability, model.manifest, opinion)
    doubts = doubtful_slices_warning(doubtful, scan.working.grid.scan_shape[0])
    return replace(measured, volume=replace(scan.volume, warnings=(*scan.volume.warnings, *doubts)))


def _measure_mask(volume: Volume, mask: np.ndarray, given: bool) -> MeasuredScan:
    mask = np.ascontiguousarray(mask != 0, np.uint8)
    return MeasuredScan(volume, mask, *numbered_lesions(mask, volume.voxel_ml), given)


def _name(scan: Scan, which: int) -> str:
    path: Path | None = scan.volume.path
    return f"{path} ({BOTH_LABELS[which]})" if path else f"the {BOTH_LABELS[which]}"


def _limits(measured: list[MeasuredScan], model: Model) -> tuple[RetestLimits | None, list[str]]:
    """The limits that hold for both masks, and a warning where none do."""
    if any(one.given for one in measured):
        return None, ["Masks were given: how much they would differ without any change is not known."]
    limits = read_limits()
    if limits is None or not limits.hold_for(model.manifest):
        return None, ["How much two scans differ without any change was not measured with these weights."]
    return limits, []


def _pair_warnings(baseline: Volume, followup: Volume, registration: Registration, hours: float | None) -> list[str]:
    """Warnings about the pair, in sentences."""
    warnings = [registration.doubt] if registration.doubt else []
    if baseline.hu.shape == followup.hu.shape and np.array_equal(baseline.hu, followup.hu):
        warnings.append("Both scans hold the same voxels: is it one scan, given twice?")
    elif hours == 0:
        warnings.append("Both scans have the same time: is it one scan, given twice?")
    if hours is not None and hours < 0:
        warnings.append(f"The follow-up was taken {-hours:.1f} hours before the baseline: are they exchanged?")
    thick = [volume.in_lps()[1][0] for volume in (baseline, followup)]
    if max(thick) > 1.5 * min(thick):
        warnings.append(
            f"Slices of {thick[0]:.3g} mm are compared with slices of {thick[1]:.3g} mm: volumes differ by that alone."
        )
    return warnings


def _match(baseline: MeasuredScan, followup: MeasuredScan, transform: sitk.Transform) -> list[LesionPair]:
    """Match the lesions of both on cubes in the space of the baseline."""
    baseline_image = to_itk(baseline.numbers, baseline.volume)
    followup_image = to_itk(followup.numbers, followup.volume)
    points = [
        *_corners(baseline_image, baseline.mask, sitk.Transform()),
        *_corners(followup_image, followup.mask, transform.GetInverse()),
    ]
    if not points:
        return []
    low, high = np.min(points, axis=0) - 2 * MATCHING_MM, np.max(points, axis=0) + 2 * MATCHING_MM
    cubes = sitk.Image([int(np.ceil(extent / MATCHING_MM)) + 1 for extent in high - low], sitk.sitkInt16)
    cubes.SetSpacing([MATCHING_MM] * 3)
    cubes.SetOrigin([float(v) for v in low])
    numbers = [
        sitk.GetArrayFromImage(sitk.Resample(image, cubes, transformation, sitk.sitkNearestNeighbor, 0))
        for image, transformation in ((baseline_image, sitk.Transform()), (followup_image, transform))
    ]
    return match_lesions(numbers[0], numbers[1], (MATCHING_MM,) * 3, (baseline.lesions_ml, followup.lesions_ml))


def _corners(image: sitk.Image, mask: np.ndarray, transform: sitk.Transform) -> list[tuple[float, ...]]:
    """The corners (mm) of the box around a mask, moved."""
    if not mask.any():
        return []
    spans = [np.flatnonzero(mask.any(axis=axes))[[0, -1]] + (-0.5, 0.5) for axes in ((0, 1), (0, 2), (1, 2))]
    return [
        transform.TransformPoint(image.TransformContinuousIndexToPhysicalPoint([float(v) for v in corner]))
        for corner in itertools.product(*spans)
    ]
