"""The image files of a data set: which case each is of, its header, and what to do about one that cannot be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import SimpleITK as sitk

from hemseg.errors import HemsegError
from hemseg.io.formats import stem, suffix

from .tables import join_names

LEFT_OUT = "left_out.txt"
DO_WITHOUT = f"Fix it, or name its case in {LEFT_OUT}, in the data set's folder, to do without."


def files_by_case(folder: Path, what: str, faults: list[str]) -> dict[str, Path]:
    """The image files of a folder by case; two of one case are a fault.

    Args:
        what: the files are, for a sentence (``images``).
        faults: gets what is wrong, a sentence each.
    """
    files = [path for path in sorted(folder.glob("*")) if suffix(path) and not path.name.startswith(".")]
    if twice := sorted(name for name, count in Counter(map(stem, files)).items() if count > 1):
        faults.append(f"cases with two {what} in {folder.name}: {join_names(twice)}")
    return {stem(path): path for path in files}


def image_header(path: Path) -> sitk.ImageFileReader:
    """An image's size and geometry, without its voxels.

    Raises:
        HemsegError: it cannot be read, or is not 3D.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise HemsegError(f"{path}: cannot be read; it is damaged or not an image.") from None
    if reader.GetDimension() != 3:
        raise HemsegError(f"{path}: is a {reader.GetDimension()}D image; give one 3D volume per file.")
    return reader
