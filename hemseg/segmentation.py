"""A scan in, a mask out: working grid, U-Net, threshold, back to the scan's grid (the paper's testing phase)."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from hemseg.errors import HemsegError
from hemseg.io.masks import write_mask
from hemseg.io.result_writers import RESULT_WRITERS
from hemseg.kinds import CODES, UNSURE_CODE, Kind, classify_lesions
from hemseg.lesions import Lesion, MeasuredLesion, components, lesions_of, measured_lesions, sides_are_known
from hemseg.manifest import Manifest
from hemseg.model import Model
from hemseg.postprocessing import doubtful_slices, keep_confirmed_components, postprocessed_mask
from hemseg.preprocessing import WorkingImage, working_image
from hemseg.sanity import implausible
from hemseg.second_opinion import ClassifierOutput, Opinion, SliceClassifier
from hemseg.sliding_window import working_probability
from hemseg.upright import turned
from hemseg.volume import Volume


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for one scan.

    Attributes:
        mask: uint8 (z, y, x) of 0 and 1 on the scan's own grid.
        volume_ml: hemorrhage in mL (what the voxel spacing in the header makes of it).
        lesions: the connected components, largest first.
        seconds: wall time.
        slice_probability: float32 (slice,), the network's largest probability in each slice of the scan, before
            the threshold, from inferior to superior.
        working: the scan as the network saw it.
        working_probability: float32 (z, y, x), the network's answer on the working grid; None for a given mask.
        implausible: what cannot be about the result, in sentences (`hemseg.sanity`); empty for almost all.
        mask_path: the file that a given mask was read from (`hemseg.measure`).
        range_ml: lowest and highest volume (`hemseg.volume_range`), where it was asked for.
        opinion: what the slice classifier said; None where it was not asked.
        doubtful_slices: slices of the scan from inferior to superior, counted from 0, in which the slice classifier
            sees hemorrhage and nothing is outlined (`hemseg.postprocessing`).
        kinds: the kind of each of ``lesions`` and how probable it is; empty where the weights name none.
    """

    volume: Volume
    mask: np.ndarray
    volume_ml: float
    lesions: tuple[Lesion, ...]
    seconds: float
    slice_probability: np.ndarray
    working: WorkingImage
    working_probability: np.ndarray | None
    implausible: tuple[str, ...] = ()
    mask_path: Path | None = None
    range_ml: tuple[float, float] | None = None
    kinds: tuple[Kind, ...] = ()
    opinion: Opinion | None = None
    doubtful_slices: tuple[int, ...] = ()

    @property
    def headline(self) -> str:
        """What was found, in a few words; never that there is nothing where slices are doubtful."""
        count = len(self.lesions)
        found = f"{self.volume_ml:.1f} mL in {count} lesion{'s' * (count != 1)}"
        if not self.doubtful_slices:
            return found if count else "no hemorrhage found"
        return f"{found if count else 'nothing outlined'}, doubtful: {slice_numbers(self.doubtful_slices)}"

    @property
    def sides_are_known(self) -> bool:
        """Whether right and left in pictures are the patient's (`hemseg.lesions.sides_are_known`)."""
        return sides_are_known(self.volume, self.working)

    @cached_property
    def kind_mask(self) -> np.ndarray:
        """The mask with each lesion's kind, uint8 (z, y, x): `hemseg.kinds.CODES`, `UNSURE_CODE`, 0 elsewhere.

        Raises:
            HemsegError: the weights name no kinds.
        """
        if len(self.kinds) != len(self.lesions):
            raise HemsegError("these weights name no kinds of hemorrhage; use others.")
        result = np.zeros_like(self.mask)
        for voxels, kind in zip(components(self.mask), self.kinds, strict=True):
            result[tuple(voxels.T)] = CODES.get(kind.name, UNSURE_CODE)
        return result

    @cached_property
    def probability(self) -> np.ndarray:
        """Probability of hemorrhage on the scan's own grid, float32 (z, y, x).

        Raises:
            HemsegError: the mask was given, no network made it.
        """
        if self.working_probability is None:
            raise HemsegError("a mask that was given has no probability; segment the scan for it.")
        shape = self.working.grid.scan_shape
        whole = self.working.grid.to_scan(self.working_probability, slice(0, shape[1]), slice(0, shape[2]))
        return np.ascontiguousarray(self.volume.from_lps(whole), dtype=np.float32)

    @cached_property
    def measured(self) -> tuple[MeasuredLesion, ...]:
        """The lesions with all their measurements, ABC/2 among them, in the order of ``lesions``."""
        return measured_lesions(self.mask, self.volume, self.working, self.working_probability)

    def save(self, path: str | Path) -> Path:
        """Write the mask with the scan's geometry; ``.dcm`` makes a DICOM segmentation of a DICOM scan.

        Raises:
            HemsegError: it cannot be written, not in this format, or is the scan itself.
        """
        path = Path(path)
        for suffix, write in RESULT_WRITERS.items():
            if path.name.lower().endswith(suffix):
                write(self, path)
                return path
        return write_mask(self.mask, self.volume, path)


def require_plausible(result: Segmentation) -> None:
    """For those who want no result rather than one that cannot be.

    Raises:
        HemsegError: the result is implausible.
    """
    if result.implausible:
        name = result.volume.path or "the scan"
        raise HemsegError(f"{name}: is refused, as its result is implausible: {' '.join(result.implausible)}")


def segment(volume: Volume, model: Model, working: WorkingImage | None = None) -> Segmentation:
    """Segment one scan. A mask is never invented: an empty one is a valid answer.

    Args:
        working: the scan on the working grid, where that was made already; the time it took is not counted then.
    """
    start = time.perf_counter()
    working = working or working_image(volume, model.manifest.preprocessing, model.strip)
    probability = working_probability(working, model)
    opinion = second_opinion(probability, working, model)
    result = postprocess(volume, working, probability, model.manifest, opinion)
    kinds = lesion_kinds(result.mask, volume, working, model, opinion)
    return replace(result, kinds=kinds, seconds=time.perf_counter() - start)


def lesion_kinds(
    mask: np.ndarray, volume: Volume, working: WorkingImage, model: Model, opinion: Opinion | None = None
) -> tuple[Kind, ...]:
    """The kinds of a mask's lesions, in the order of `hemseg.lesions.lesions_of`; none where the weights name none.

    Args:
        mask: (z, y, x) on the scan's grid; what is not 0 is hemorrhage.
        opinion: what the slice classifier said already; it is asked about what else is needed.
    """
    lesions = [working.grid.nearest(volume.indices_in_lps(voxels)) for voxels in components(mask)]
    if model.kinds is None or not lesions:
        return ()
    masks = []
    for voxels in lesions:
        lesion = np.zeros(working.hu.shape, bool)
        lesion[tuple(voxels.T)] = True
        masks.append(turned(lesion, working.quarters))
    settings, output = model.manifest.preprocessing, opinion.output if opinion else None
    hu, inside = working.leveled_upright(settings)
    if model.kinds.has_maps and model.classifier is not None:
        touched = np.unique(np.concatenate([voxels[:, 0] for voxels in lesions]))
        if output is None or not set(touched.tolist()) <= set(output.kind_maps):
            output = model.classifier.classify(touched, hu, inside, settings.hu_range[0])
    return tuple(classify_lesions(masks, hu, inside, working.grid.spacing, model.kinds, output))


def second_opinion(probability: np.ndarray, working: WorkingImage, model: Model) -> Opinion | None:
    """What the slice classifier says of what the U-Net marks (`hemseg.second_opinion`).

    Args:
        probability: (z, y, x; working grid), the U-Net's.

    Returns:
        None where these weights, or their operating point, do not ask it.
    """
    manifest = model.manifest
    if model.classifier is None or not manifest.min_slice_probability:
        return None
    output = model.classifier.classify_marked(probability, manifest.threshold, working, manifest.preprocessing)
    return opinion_from_output(output, probability, working, model.classifier, manifest)


def opinion_from_output(
    output: ClassifierOutput,
    probability: np.ndarray,
    working: WorkingImage,
    classifier: SliceClassifier,
    manifest: Manifest,
) -> Opinion:
    """A second opinion at an operating point; ``output`` is `SliceClassifier.classify_marked`."""
    first = Opinion(output.probability, np.zeros(probability.shape, bool), output)
    confirmed = keep_confirmed_components(probability, manifest, first)
    threshold, least, settings = manifest.threshold, manifest.min_slice_probability, manifest.preprocessing
    least_ml = manifest.min_lesion_ml / 2  # on another grid it may be more
    unconfirmed = classifier.unconfirmed_components(confirmed, threshold, least, least_ml, working, settings)
    return replace(first, unconfirmed=unconfirmed)


def postprocess(
    volume: Volume,
    working: WorkingImage,
    probability: np.ndarray,
    manifest: Manifest,
    opinion: Opinion | None = None,
) -> Segmentation:
    """The network's answer as a mask and lesions on the scan's own grid; ``seconds`` are those of this step alone.

    The arguments are those of `hemseg.postprocessing.postprocessed_mask`.
    """
    start = time.perf_counter()
    mask = postprocessed_mask(volume, working, probability, manifest, opinion)
    doubtful = doubtful_slices(mask, volume, working, probability, manifest, opinion)
    left_out = _second_opinion_warning(mask, volume, working, probability, manifest, opinion)
    doubts = doubtful_slices_warning(doubtful, working.grid.scan_shape[0])
    volume = replace(volume, warnings=(*volume.warnings, *left_out, *doubts))
    result = Segmentation(
        volume=volume,
        mask=mask,
        volume_ml=int(mask.sum()) * volume.voxel_ml,
        lesions=lesions_of(mask, volume, working),
        seconds=time.perf_counter() - start,
        slice_probability=np.repeat(probability.max(axis=(1, 2)), working.grid.slab)[: working.grid.scan_shape[0]],
        working=working,
        working_probability=probability,
        opinion=opinion,
        doubtful_slices=doubtful,
    )
    return replace(result, implausible=implausible(mask, result.volume_ml, volume, working))


def _second_opinion_warning(
    mask: np.ndarray,
    volume: Volume,
    working: WorkingImage,
    probability: np.ndarray,
    manifest: Manifest,
    opinion: Opinion | None,
) -> tuple[str, ...]:
    """A sentence on what the second opinion took out of a mask, if it did."""
    if opinion is None or not ((opinion.slices < manifest.min_slice_probability).any() or opinion.unconfirmed.any()):
        return ()
    unfiltered = postprocessed_mask(volume, working, probability, manifest)
    milliliters = (int(unfiltered.sum()) - int(mask.sum())) * volume.voxel_ml
    if not milliliters:
        return ()
    return (
        f"{milliliters:.1f} mL that the U-Net marked was left out: the slice classifier does not confirm it. "
        "The heat map shows where.",
    )


def doubtful_slices_warning(slices: tuple[int, ...], count: int) -> tuple[str, ...]:
    """A sentence on the doubtful ones of a scan's slices, if there are any."""
    if not slices:
        return ()
    where = (
        f"in {slice_numbers(slices)} of {count}, counted from inferior, where"
        if count > 1
        else "in its slice, in which"
    )
    return (f"The slice classifier sees hemorrhage {where} nothing is outlined: look there.",)


def slice_numbers(slices: tuple[int, ...]) -> str:
    """Slices in words, ``slices 3, 7-9``; given in order, counted from 0, and written as people count."""
    runs: list[list[int]] = []
    for z in slices:
        if runs and z == runs[-1][-1] + 1:
            runs[-1].append(z)
        else:
            runs.append([z])
    words = [f"{run[0] + 1}" if len(run) == 1 else f"{run[0] + 1}-{run[-1] + 1}" for run in runs]
    return f"slice{'s' * (len(slices) > 1)} {', '.join(words)}"
