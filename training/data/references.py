"""Reference masks of a data set: which image each belongs to, and that it lies on its grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hemseg.errors import HemsegError
from hemseg.io.images import read_image

from .dataset_files import DO_WITHOUT, files_by_case, image_header
from .tables import join_names

MASKS = ("masks", "reference", "label")


def references_of(folder: Path, images: dict[str, Path], left_out: set[str], faults: list[str]) -> dict[str, Path]:
    """Masks by case; a mask without image or of another geometry is a fault, and so are two of one case."""
    place = next((folder / name for name in MASKS if (folder / name).is_dir()), None)
    if place is None:
        return {}
    masks = files_by_case(place, "masks", faults)
    if alone := sorted(set(masks) - set(images) - left_out):
        faults.append(f"masks without an image: {join_names(alone)}")
    both = {name: path for name, path in masks.items() if name in images}
    other = []
    for name, path in both.items():
        try:
            if not _same_grid(images[name], path):
                other.append(name)
        except HemsegError as error:
            faults.append(f"{error} {DO_WITHOUT}")
    if other:
        faults.append(f"masks whose size, spacing, origin or direction is not their image's: {join_names(other)}")
    return both


def _same_grid(a: Path, b: Path) -> bool:
    """Same size, and geometry equal but for what a float32 header rounds (a hundredth of a millimetre)."""
    x, y = image_header(a), image_header(b)
    close = (np.allclose(getattr(x, f)(), getattr(y, f)(), atol=1e-2) for f in ("GetOrigin", "GetDirection"))
    return x.GetSize() == y.GetSize() and np.allclose(x.GetSpacing(), y.GetSpacing(), atol=1e-3) and all(close)


def labels_of_masks(references: dict[str, Path], faults: list[str]) -> dict[str, tuple[int, ...]]:
    """Slice labels by case, 1 where a reference mask has a voxel; in the file's order of slices.

    Args:
        faults: gets the masks that cannot be read, a sentence each; their cases get no labels.
    """
    labels = {}
    for name, path in references.items():
        try:
            labels[name] = tuple(read_reference(path).max(axis=(1, 2)).tolist())
        except HemsegError as error:
            faults.append(f"{error} {DO_WITHOUT}")
    return labels


def read_reference(path: Path) -> np.ndarray:
    """A reference mask, uint8 (z, y, x) in the file's own order; any class counts as hemorrhage.

    Raises:
        HemsegError: it is damaged, cut short (ITK alone would take what is missing for background), or not 3D.
    """
    return (read_image(path).hu > 0).astype(np.uint8)
