"""Probability images: how likely the network holds each voxel of a scan to be hemorrhage, before the threshold."""

from __future__ import annotations

from pathlib import Path

from hemseg.io.formats import suffix
from hemseg.io.masks import write_image
from hemseg.mask_formats import format_of
from hemseg.segmentation import Segmentation


def probability_path(mask: Path, own: Path) -> Path:
    """Where the probability image of a mask goes: NIfTI beside NIfTI, DICOM beside DICOM, else MetaImage.

    Args:
        own: the mask's path without its suffix, or what stands in for it.
    """
    form = format_of(mask)
    if form and form.write_probability:
        ending = form.suffix
    else:
        ending = ".nii.gz" if suffix(mask).startswith(".nii") else ".mha"
    return own.with_name(f"{own.name}_probability{ending}")


def write_probability(result: Segmentation, path: Path) -> Path:
    """Write the probability (float32, 0 to 1) with the scan's geometry, all or nothing.

    Args:
        path: its suffix says the format: NIfTI for a NIfTI scan, MetaImage for any, ``.dcm`` (a parametric map that
            refers to the slices) for DICOM.

    Raises:
        OutputError: it cannot be written.
        HemsegError: this format cannot hold the scan's geometry, or highdicom is not installed.
    """
    form = format_of(path)
    if form and form.write_probability:
        return form.write_probability(result, path)
    return write_image(result.probability, result.volume, path, "the probability image")
