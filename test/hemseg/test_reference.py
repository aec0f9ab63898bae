"""The fast paths against a plain implementation of the same steps: whole volumes, float64, loops, nothing cropped."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from scipy import ndimage

from hemseg.model import Model
from hemseg.preprocessing import Settings, WorkingImage, equalized, leveled, working_image
from hemseg.scan import read
from hemseg.segmentation import segment
from hemseg.sliding_window import working_probability
from hemseg.volume import Volume
from hemseg.working_grid import WorkingGrid

CASES = sorted((ROOT / "test" / "cases").iterdir())


def tents(n_in: int, mm_in: float, n_out: int, mm_out: float, centered: bool = True) -> list[list[tuple[int, float]]]:
    """For each output pixel, the input pixels and weights of a tent as wide as the coarser of the two pixels."""
    shift = (n_in * mm_in - n_out * mm_out) / 2 if centered else 0.0
    made = []
    for i in range(n_out):
        at = min(max((i + 0.5) * mm_out + shift, 0.5 * mm_in), (n_in - 0.5) * mm_in)
        near = [(j, 1 - abs((j + 0.5) * mm_in - at) / max(mm_in, mm_out)) for j in range(n_in)]
        near = [(j, w) for j, w in near if w > 0]
        total = sum(w for _, w in near)
        made.append([(j, w / total) for j, w in near])
    return made


def along(array: np.ndarray, axis: int, weights: list[list[tuple[int, float]]]) -> np.ndarray:
    """Resample one axis, one output plane after the other."""
    array = np.moveaxis(array, axis, 0)
    planes = [sum(array[j] * w for j, w in near) for near in weights]
    return np.moveaxis(np.stack(planes), 0, axis)


def plain_working(volume: Volume, settings: Settings) -> tuple[np.ndarray, WorkingGrid]:
    hu, spacing = volume.in_lps()
    grid = WorkingGrid.of(hu.shape, spacing, settings.spacing)
    hu = hu.astype(np.float64)
    slabs = [hu[z : z + grid.slab].mean(axis=0) for z in range(0, len(hu), grid.slab)]
    result = np.clip(np.stack(slabs), *settings.hu_range)
    for axis in (1, 2):
        result = along(result, axis, tents(hu.shape[axis], spacing[axis], grid.shape[axis], grid.spacing[axis]))
    return result, grid


def plain_probability(hu: np.ndarray, inside: np.ndarray, model: Model) -> np.ndarray:
    """Tile the inside of the skull and blend, voxel weights from first principles."""
    settings, patch = model.manifest.preprocessing, model.manifest.patch
    low, high = settings.hu_range
    brain = hu[inside & (hu > 0) & (hu < 65)]
    level = np.median(brain[abs(brain - np.median(brain)) < 15])
    hu = np.clip(hu + np.clip(settings.level_hu - level, -15, 15), low, high).astype(np.float32)
    channels = {"hu": np.where(inside, (hu - low) / (high - low), 0), "equalized": equalized(hu, inside, settings)}
    image = np.stack([channels[name] for name in settings.channels]).astype(np.float32)
    where = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(w[0], w[-1] + 1) for w in where)
    box = (slice(max(0, box[0].start - 1), min(len(hu), box[0].stop + 1)), *box[1:])  # what comes beyond the brain
    image = image[(slice(None), *box)]
    shape = image.shape[1:]
    before = [max(0, (p - n) // 2) for n, p in zip(shape, patch)]
    size = [max(n, p) for n, p in zip(shape, patch)]
    canvas = np.zeros((len(image), *size), np.float32)
    canvas[(slice(None), *(slice(b, b + n) for b, n in zip(before, shape)))] = image
    first, last = before[0], before[0] + shape[0] - 1
    for z in range(size[0]):  # the outermost slices go on
        canvas[:, z] = canvas[:, min(max(z, first), last)]
    starts = []
    for n, p in zip(size, patch):
        count = 1 if n == p else 1 + int(np.ceil((n - p) / (0.75 * p)))
        starts.append([round(i * (n - p) / max(1, count - 1)) for i in range(count)])
    total, weight = np.zeros(size), np.zeros(size)
    tent = np.fromfunction(
        lambda *at: np.prod([1 - abs(i - (p - 1) / 2) / ((p + 1) / 2) for i, p in zip(at, patch)], axis=0), patch
    )
    for corner in itertools.product(*starts):
        tile = tuple(slice(c, c + p) for c, p in zip(corner, patch))
        total[tile] += tent * model(canvas[(None, slice(None), *tile)])[0, 0]
        weight[tile] += tent
    result = np.zeros(hu.shape)
    result[box] = (total / weight)[tuple(slice(b, b + n) for b, n in zip(before, shape))]
    return np.where(inside, result, 0)


def plain_unseen(working: WorkingImage, pieces: list[np.ndarray], model: Model) -> list[bool]:
    """Of each piece, whether the classifier, the others painted over, misses it; the largest come first."""
    settings, (high, wide) = model.manifest.preprocessing, model.classifier.field  # type: ignore[union-attr]
    hu, inside = leveled(working.hu, working.intracranial, settings), working.intracranial
    brain = hu[inside & (hu > 0) & (hu < 65)]
    level = np.median(brain[abs(brain - np.median(brain)) < 15])
    near = np.array([[c == "#" for c in row] for row in ("..#..", "#####", "#####", "#####", "..#..")])  # 2 mm
    y, x = (np.flatnonzero(inside.any(axis=(0, 3 - a)))[[0, -1]] for a in (1, 2))
    top, left = (y[0] + y[1] + 1) // 2 - high // 2, (x[0] + x[1] + 1) // 2 - wide // 2

    def ask(z: int, gone: np.ndarray, kept: np.ndarray) -> float:
        painted = ndimage.binary_dilation(gone[z], near) & ~kept[z]
        plane = np.where(inside[z], np.where(painted, level, hu[z]), settings.hu_range[0])
        wider = np.pad(plane, 400, constant_values=settings.hu_range[0])
        window = wider[top + 400 : top + 400 + high, left + 400 : left + 400 + wide]
        return float(model.classifier.network(window[None].astype(np.float32))[0])  # type: ignore[union-attr]

    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    every = np.any(pieces, axis=0) if pieces else np.zeros(inside.shape, bool)
    nothing = np.zeros(inside.shape, bool)
    result = []
    for i, piece in enumerate(pieces):
        own = piece.any(axis=(1, 2))
        alone = not any((own & other.any(axis=(1, 2))).any() for other in pieces[:i])
        if alone or piece.sum() * np.prod(working.grid.spacing) / 1000 < model.manifest.min_lesion_ml / 2:
            result.append(False)
            continue
        slices = sorted(np.flatnonzero(own), key=lambda z: -piece[z].sum())[:2]
        found = {z: ask(z, every & ~piece, piece) for z in slices}
        fallen = {z: logit(f) - logit(ask(z, every, nothing)) for z, f in found.items()}
        least = model.manifest.min_slice_probability
        result.append(not any(f >= 0.9 or (f >= least and fallen[z] >= 0.5) for z, f in found.items()))
    return result


def plain_mask(
    volume: Volume, probability: np.ndarray, opinion: np.ndarray, working: WorkingImage, model: Model
) -> np.ndarray:
    manifest, grid = model.manifest, working.grid
    pieces, n = ndimage.label(probability >= manifest.threshold, np.ones((3, 3, 3)))
    for i in range(1, n + 1):
        certain = probability[pieces == i].max() >= manifest.min_peak
        if not certain or opinion[(pieces == i).any(axis=(1, 2))].max() < manifest.min_slice_probability:
            probability = np.where(pieces == i, 0, probability)
    left = [pieces == i for i in np.unique(pieces[(pieces > 0) & (probability > 0)])]
    left.sort(key=lambda piece: -piece.sum())
    for piece, unseen in zip(left, plain_unseen(working, left, model), strict=True):
        probability = np.where(piece & unseen, 0, probability)
    for i in range(1, n + 1):
        core = (probability >= manifest.outline_threshold) & (pieces == i)
        if core.sum() * np.prod(grid.spacing) / 1000 >= manifest.outline_ml:
            ratio = manifest.threshold / manifest.outline_threshold
            probability = np.where(pieces == i, probability * ratio, probability)
    _, spacing = volume.in_lps()
    for axis in (1, 2):
        weights = tents(grid.shape[axis], grid.spacing[axis], grid.scan_shape[axis], spacing[axis])
        probability = along(probability, axis, weights)
    if grid.slab > 1:
        weights = tents(grid.shape[0], grid.spacing[0], grid.scan_shape[0], spacing[0], centered=False)
        probability = along(probability, 0, weights)
    mask = volume.from_lps(probability >= manifest.threshold).copy()
    pieces, n = ndimage.label(mask, np.ones((3, 3, 3)))
    for i in range(1, n + 1):
        small = (pieces == i).sum() * volume.voxel_ml < manifest.min_lesion_ml
        if small or np.median(volume.hu[pieces == i]) > manifest.max_median_hu:
            mask[pieces == i] = False
    return mask


def turned(volume: Volume) -> Volume:
    """The same head, stored back to front and upside down."""
    return Volume(
        np.ascontiguousarray(volume.hu[::-1, ::-1, :]),
        volume.spacing,
        direction=(1, 0, 0, 0, -1, 0, 0, 0, -1),
    )


def thin(volume: Volume) -> Volume:
    """The same head in slices of a third of the thickness."""
    x, y, z = volume.spacing
    return Volume(np.repeat(volume.hu, 3, axis=0), (x, y, z / 3))


@pytest.mark.parametrize(("scan", "made"), [*((scan, Volume) for scan in CASES), (CASES[1], turned), (CASES[1], thin)])
def test_fast_and_plain_agree(scan: Path, made: Callable[[Volume], Volume], model: Model) -> None:
    volume = read(scan) if made is Volume else made(read(scan))
    settings = model.manifest.preprocessing
    hu, grid = plain_working(volume, settings)
    working = working_image(volume, settings, model.strip)
    assert np.abs(working.hu - hu).max() < 1e-3  # HU
    assert model.strip is not None
    inside = model.strip(hu.astype(np.float32), grid.spacing)
    assert (inside != working.intracranial).mean() < 1e-3  # air is at the clip value but for rounding
    # from here on both start from the same voxels: the mask must be the same
    probability = plain_probability(working.hu, working.intracranial, model)
    assert np.abs(working_probability(working, model) - probability).max() < 1e-4
    result = segment(volume, model)
    assert model.classifier is not None
    opinion = model.classifier.classify_marked(np.ones_like(working.hu), 0.5, working, settings)
    mask = plain_mask(volume, probability, opinion.probability, working, model)
    doubtful = np.count_nonzero(result.mask != mask)
    assert doubtful <= 1e-5 * mask.size  # float32 against float64 at the very threshold
    assert abs(result.volume_ml - mask.sum() * volume.voxel_ml) < 0.01


def test_nothing_found_is_the_same_in_both(model: Model) -> None:
    volume = read(CASES[0])
    empty = replace(volume, hu=np.full_like(volume.hu, -1000))
    assert not segment(empty, model).mask.any()
