"""Measurements of a mask that is given: one that somebody corrected or drew, in place of the network's.

The same functions as for the network's own masks measure it, so an unchanged mask gives the same measurements.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from hemseg.errors import HemsegError
from hemseg.io.images import read_image
from hemseg.lesions import lesions_of
from hemseg.preprocessing import WorkingImage
from hemseg.sanity import implausible
from hemseg.segmentation import Segmentation
from hemseg.volume import Volume

SAME_MM = 0.05  # two grids are the same if their corners lie so close: what rounded headers come to, no pixel does
NAMED_LABELS = 10


def measure(volume: Volume, mask: np.ndarray, working: WorkingImage, path: Path | None = None) -> Segmentation:
    """The result that a mask of a scan is. Every connected component counts, however small.

    Args:
        mask: (z, y, x) on the scan's grid; what is not 0 is hemorrhage.
        working: the scan on the working grid (`hemseg.checks.check_scan`).
        path: the file that it was read from.
    """
    start = time.perf_counter()
    mask = np.ascontiguousarray(mask != 0).view(np.uint8)
    ml = int(mask.sum()) * volume.voxel_ml
    return Segmentation(
        volume=volume,
        mask=mask,
        volume_ml=ml,
        lesions=lesions_of(mask, volume, working),
        seconds=time.perf_counter() - start,
        slice_probability=np.zeros(0, np.float32),
        working=working,
        working_probability=None,
        implausible=implausible(mask, ml, volume, working),
        mask_path=path,
    )


def read_given_mask(path: Path, volume: Volume, label: int = 0) -> tuple[np.ndarray, str]:
    """A mask of a scan from a file of any format, on the scan's own grid.

    Args:
        label: the value that counts; with 0 every value above 0 does.

    Returns:
        uint8 (z, y, x) of 0 and 1, and what looks odd about it: a sentence, or ''.

    Raises:
        HemsegError: the file cannot be read, holds no labels, or lies on another grid than the scan.
    """
    if path.suffix.lower() == ".dcm":
        raise HemsegError(
            f"{path}: is DICOM; give a mask in NIfTI, MetaImage or NRRD: convert it (dcmqi's segimage2itkimage does), "
            "or segment with --format mha."
        )
    given = read_image(path)
    scan, scan_mm = volume.in_lps()
    values, mm = given.in_lps()
    if values.shape != scan.shape:
        sizes = [" x ".join(map(str, array.shape[::-1])) for array in (values, scan)]
        raise HemsegError(f"{path}: has {sizes[0]} voxels, its scan {sizes[1]}; give the mask of this very scan.")
    apart = corners_apart(given, volume)
    if apart > SAME_MM:
        raise HemsegError(
            f"{path}: does not lie on the grid of its scan (its corners are up to {apart:.3g} mm away: spacing "
            f"{' x '.join(f'{v:.4g}' for v in mm[::-1])} and {' x '.join(f'{v:.4g}' for v in scan_mm[::-1])} mm, "
            "origin or direction); resample it onto the scan, or give the scan that it was drawn on."
        )
    if not np.array_equal(values, np.round(values)) or values.min() < 0:
        raise HemsegError(f"{path}: holds other values than labels (0, 1, 2, ...); is it a mask?")
    mask = (values == label) if label else (values > 0)
    message = ""
    if label and not mask.any() and values.any():
        labels = [f"{v:.0f}" for v in np.unique(values[values > 0])]
        more = ", ..." * (len(labels) > NAMED_LABELS)
        message = f"The mask holds no label {label}, but {', '.join(labels[:NAMED_LABELS])}{more}."
    return np.ascontiguousarray(volume.from_lps(mask).astype(np.uint8)), message


def corners_apart(a: Volume, b: Volume) -> float:
    """The largest distance between the same corners of two volumes of one shape in LPS order, in mm."""
    return float(np.linalg.norm(_corners(a) - _corners(b), axis=1).max())


def _corners(volume: Volume) -> np.ndarray:
    """Positions of the middles of the corner voxels, (8, 3) in mm, in LPS order."""
    n = np.array(volume.hu.shape)
    voxels = np.array(np.meshgrid(*((0, k - 1) for k in n), indexing="ij")).reshape(3, -1).T
    places = np.array(volume.origin) + (voxels[:, ::-1] * volume.spacing) @ volume.cosines.T
    order = np.lexsort(volume.indices_in_lps(voxels).T[::-1])
    return np.asarray(places[order])
