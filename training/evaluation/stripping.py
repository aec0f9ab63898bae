"""How well the skull is stripped: is brain lost, is muscle or bone kept?

    python -m training stripping --data phe-sich --data phe-sich-heads --data ct-ich --out docs/results/stripping

Two measures, neither of which needs an outline that somebody drew:

*Lost brain*, on any scan. The brain of a slice is what is not air inside the slice's filled bone contour (`brain_of`).
A slice in which more than 5 % of it is lost counts.

*Whole heads*, where a data set has the same scans with everything outside the skull taken away (``--stripped FOLDER``,
phe-sich beside phe-sich-heads): what share of the intracranial volume is lost, how much extracranial tissue is kept on
slices of the skull base, how many voxels of the reference masks are lost.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track
from scipy import ndimage

from hemseg.model import load, load_strip
from hemseg.preprocessing import working_image
from hemseg.scan import read
from hemseg.strip import AIR_HU, MAX_LOST_SHARE, brain_of, disc, saturation
from hemseg.volume import Volume

from ..console import console
from ..data.datasets import Case, DataSet
from ..data.references import read_reference
from .tables import write_table

Strip = Callable[[Volume], np.ndarray]  # a scan -> its intracranial mask, bool (z, y, x) in LPS order on its own grid

ENCLOSED_CM2, ENCLOSING_MM = 3.0, 2.0
INSIDE_BONE_MM = 1.0  # a voxel so close to bone is half bone; neither measure counts it


def lost_brain(volume: Volume, kept: np.ndarray) -> list[dict[str, Any]]:
    """One row per slice with brain: its area in cm² and the share of it that ``kept`` (z, y, x; LPS) lacks."""
    hu, spacing = volume.in_lps()
    top = saturation(hu)
    rows = []
    for z, plane in enumerate(hu):
        brain = brain_of(np.ascontiguousarray(plane), top, spacing[1])
        if brain.any():
            share = float((brain & ~kept[z]).sum() / brain.sum())
            rows.append({"slice": z, "brain_cm2": float(brain.sum() * spacing[1] * spacing[2] / 100), "lost": share})
    return rows


def lost_brain_table(dataset: DataSet, strip: Strip) -> list[dict[str, Any]]:
    """Rows of `lost_brain` for every case of a data set."""
    rows = []
    for case in track(dataset.cases, f"lost brain, {dataset.name}", console=console):
        volume = read(case.image)
        own = {"dataset": dataset.name, "split": case.split, "case": case.name}
        rows += [own | row for row in lost_brain(volume, strip(volume))]
    return rows


def strip_predictor(weights: Path | None, strip: str = "") -> Strip:
    """The strip of weights as scans meet it, by way of the working grid.

    Args:
        weights: folder with a manifest; hemseg's own when None.
        strip: an ONNX file in place of the weights' own strip, or ``paper`` for the paper's steps.
    """
    model = load(weights, "cpu")
    learned = model.strip
    if strip:
        path = Path(strip)
        learned = None if strip == "paper" else load_strip(path, hashlib.sha256(path.read_bytes()).hexdigest())

    def mask(volume: Volume) -> np.ndarray:
        working = working_image(volume, model.manifest.preprocessing, learned)
        grid = working.grid
        whole = slice(0, grid.scan_shape[1]), slice(0, grid.scan_shape[2])
        return grid.to_scan(working.intracranial.astype(np.float32), *whole) >= 0.5

    return mask


def kept_slices(folder: Path) -> dict[tuple[str, int], str]:
    """What a stripped data set's ``slices.csv`` says of each slice: vault, base, vertex, blanked, empty."""
    with (folder / "slices.csv").open(newline="") as stream:
        return {(row["case"], int(row["slice"])): row["kept"] for row in csv.DictReader(stream)}


def intracranial_reference(stripped: np.ndarray, kind: str) -> np.ndarray:
    """The intracranial part of a slice from which everything outside the skull was taken away.

    Args:
        stripped: float (y, x), HU; -20 outside.
        kind: of the slice: on ``vault`` and ``vertex`` slices scalp is left around the bone, on ``base`` slices
            there is nothing but the intracranial part and bone.

    Returns:
        bool (y, x); without bone.
    """
    bone = stripped >= saturation(stripped)
    if kind == "base":
        return ndimage.binary_fill_holes(stripped > -20) & ~bone
    return ndimage.binary_fill_holes(bone) & ~bone


def enclosed_below_brain(
    plane: np.ndarray, reference: np.ndarray, above: np.ndarray, top: float, mm: float
) -> np.ndarray:
    """Tissue that the stripped copy lacks though bone encloses it and it lies below brain: the poles of temporal lobes.

    Args:
        plane: float (y, x), HU, of the whole head.
        reference, above: (y, x), share of the pixel that is intracranial: in this slice, and in the one above.
        top: HU from which on voxels are bone.
        mm: pixel size.

    Returns:
        bool (y, x).
    """
    bone = plane >= top
    closed = cv2.morphologyEx(bone.astype(np.uint8), cv2.MORPH_CLOSE, disc(ENCLOSING_MM, mm))
    labels, n = ndimage.label(ndimage.binary_fill_holes(closed) & ~bone & (plane > 5) & (reference < 0.5))
    result = np.zeros(plane.shape, bool)
    for i in range(1, n + 1):
        part = labels == i
        large = part.sum() * mm * mm / 100 >= ENCLOSED_CM2
        if large and (part & (above > 0.5)).sum() >= 0.5 * part.sum():
            result |= part
    return result


def whole_head(case: Case, stripped: Path, kinds: dict[tuple[str, int], str], strip: Strip) -> dict[str, Any]:
    """How the skull of one whole head is stripped, measured against the same scan as its data set strips it.

    Voxels within 1 mm of bone count neither as lost nor as kept: they are half bone. Of the extracranial tissue, what
    bone encloses below brain is given apart: the stripped copies lack the poles of many temporal lobes.
    """
    volume = read(case.image)
    hu, spacing = volume.in_lps()
    kept = strip(volume)
    bare, _ = read(stripped).in_lps()
    factor = bare.shape[1] // hu.shape[1]
    inside_ml = lost_ml = muscle_ml = enclosed_ml = 0.0
    voxel_ml = volume.voxel_ml
    top = saturation(hu)
    references = [_shrunk(intracranial_reference(part, kinds[case.name, z]), factor) for z, part in enumerate(bare)]
    for z, (plane, reference) in enumerate(zip(hu, references, strict=True)):
        kind = kinds[case.name, z]
        if kind in ("blanked", "empty"):
            continue
        bone = cv2.dilate((plane >= top).astype(np.uint8), disc(INSIDE_BONE_MM, spacing[1])).astype(bool)
        inside = (reference >= 1) & ~bone
        inside_ml += inside.sum() * voxel_ml
        lost_ml += (inside & ~kept[z]).sum() * voxel_ml
        if kind == "base":
            muscle = kept[z] & (reference <= 0) & ~bone & (plane > AIR_HU)
            muscle_ml += muscle.sum() * voxel_ml
            above = _nearest_brain_above(references, z)
            enclosed_ml += (muscle & enclosed_below_brain(plane, reference, above, top, spacing[1])).sum() * voxel_ml
    row = {
        "case": case.name,
        "split": case.split,
        "inside_ml": inside_ml,
        "lost_share": lost_ml / max(inside_ml, 1e-6),
        "extracranial_ml": muscle_ml,
        "of_this_enclosed_ml": enclosed_ml,
    }
    if case.reference:
        blood = read_reference(case.reference)
        lps = np.asarray(Volume(blood, volume.spacing, volume.origin, volume.direction).in_lps()[0]) > 0
        row |= {"reference_voxels": int(lps.sum()), "reference_lost": int((lps & ~kept).sum())}
    return row


def _nearest_brain_above(references: list[np.ndarray], z: int, most: int = 3) -> np.ndarray:
    """The intracranial space of the next slices above, as a union: a lobe's pole can be lacking in several."""
    above = references[z + 1 : z + 1 + most] or [references[z]]
    return np.maximum.reduce(above)


def _shrunk(mask: np.ndarray, factor: int) -> np.ndarray:
    """Means of ``factor`` x ``factor`` pixels, float32 (y, x)."""
    y, x = (n // factor for n in mask.shape)
    return mask[: y * factor, : x * factor].reshape(y, factor, x, factor).mean(axis=(1, 3), dtype=np.float32)


def whole_heads_table(dataset: DataSet, stripped: Path, strip: Strip) -> list[dict[str, Any]]:
    """Rows of `whole_head` for every case of ``dataset`` (whole heads) that ``stripped`` (a folder) has, too."""
    kinds = kept_slices(stripped)
    rows = []
    for case in track(dataset.cases, f"whole heads, {dataset.name}", console=console):
        path = stripped / "images" / case.image.name
        if path.exists():
            rows.append(whole_head(case, path, kinds, strip))
    return rows


def lost_summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per data set and split: slices with brain, those that lose more than 5 %, the worst one."""
    result = []
    for key in dict.fromkeys((row["dataset"], row["split"]) for row in rows):
        own = [row for row in rows if (row["dataset"], row["split"]) == key]
        losing = [row for row in own if row["lost"] > MAX_LOST_SHARE]
        result.append(
            {
                "dataset": key[0],
                "split": key[1],
                "scans": len({row["case"] for row in own}),
                "slices_with_brain": len(own),
                "slices_losing_5_percent": len(losing),
                "scans_losing": len({row["case"] for row in losing}),
                "most_lost": max(row["lost"] for row in own),
            }
        )
    return result


def heads_summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per split: shares of the intracranial volume lost, mL of extracranial tissue kept, reference lost."""
    result = []
    for split in dict.fromkeys(row["split"] for row in rows):
        own = [row for row in rows if row["split"] == split]
        lost = np.array([row["lost_share"] for row in own])
        muscle = np.array([row["extracranial_ml"] for row in own])
        enclosed = np.array([row["of_this_enclosed_ml"] for row in own])
        blood = [(row["reference_lost"], row["reference_voxels"]) for row in own if row.get("reference_voxels")]
        result.append(
            {
                "split": split,
                "scans": len(own),
                "lost_mean": float(lost.mean()),
                "lost_most": float(lost.max()),
                "extracranial_ml_median": float(np.median(muscle)),
                "extracranial_ml_95": float(np.percentile(muscle, 95)),
                "extracranial_ml_most": float(muscle.max()),
                "not_enclosed_ml_median": float(np.median(muscle - enclosed)),
                "not_enclosed_ml_95": float(np.percentile(muscle - enclosed, 95)),
                "not_enclosed_ml_most": float((muscle - enclosed).max()),
                "reference_lost": sum(a for a, _ in blood) / max(1, sum(b for _, b in blood)),
                "reference_lost_most": max((a / b for a, b in blood), default=float("nan")),
            }
        )
    return result


def stripping(
    datasets: list[DataSet], stripped: dict[str, Path], strip: Strip, out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Measure both; writes ``lost_brain.csv`` (slices that lose more than 5 %), ``whole_heads.csv`` and summaries.

    Args:
        stripped: folder of the stripped scans, by the name of the data set of whole heads.
    """
    lost = [row for dataset in datasets for row in lost_brain_table(dataset, strip)]
    tables = {
        "lost_brain_summary": lost_summary(lost),
        "lost_brain": [row for row in lost if row["lost"] > MAX_LOST_SHARE],
    }
    heads = [row for d in datasets if d.name in stripped for row in whole_heads_table(d, stripped[d.name], strip)]
    if heads:
        tables |= {"whole_heads_summary": heads_summary(heads), "whole_heads": heads}
    for name, rows in tables.items():
        write_table(rows, out / f"{name}.csv")
    return tables
