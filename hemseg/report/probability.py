"""Probability images: how likely the network holds each voxel of a scan to be hemorrhage, before the threshold."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from hemseg.dicom_out.seg import equipment, header_sentence, referenced_images, remove_free_text, require_highdicom
from hemseg.errors import HemsegError
from hemseg.io.files import write_with
from hemseg.io.formats import suffix
from hemseg.io.marks import mark
from hemseg.io.masks import write_image
from hemseg.segmentation import Segmentation


def probability_path(mask: Path, own: Path) -> Path:
    """Where the probability image of a mask goes: NIfTI beside NIfTI, DICOM beside DICOM, else MetaImage.

    Args:
        own: the mask's path without its suffix, or what stands in for it.
    """
    nifti, dicom = suffix(mask).startswith(".nii"), mask.suffix.lower() == ".dcm"
    kind = ".nii.gz" if nifti else ".dcm" if dicom else ".mha"
    return own.with_name(f"{own.name}_probability{kind}")


def write_probability(result: Segmentation, path: Path) -> Path:
    """Write the probability (float32, 0 to 1) with the scan's geometry, all or nothing.

    Args:
        path: its suffix says the format: NIfTI for a NIfTI scan, MetaImage for any, ``.dcm`` (a parametric map that
            refers to the slices) for DICOM.

    Raises:
        OutputError: it cannot be written.
        HemsegError: this format cannot hold the scan's geometry, or highdicom is not installed.
    """
    if path.suffix.lower() == ".dcm":
        return _write_parametric_map(result, path)
    return write_image(result.probability, result.volume, path, "the probability image")


def _write_parametric_map(result: Segmentation, path: Path) -> Path:
    hd, codes, stack = require_highdicom(path, result, "a DICOM parametric map")
    sources, frames, _ = referenced_images(stack, result.probability)  # what is ill-formed, the mask's writer says
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="PROBABILITY",
        lut_explanation="Probability of intracranial hemorrhage",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=codes.DCM.Probability if hasattr(codes.DCM, "Probability") else None,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values in the source headers that bend the standard
            written = hd.pm.ParametricMap(
                source_images=sources,
                pixel_array=np.ascontiguousarray(frames, dtype=np.float32),
                **equipment(series_number=9001),
                contains_recognizable_visual_features=False,
                real_world_value_mappings=[mapping],
                voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
                series_description="Probability of hemorrhage (research only)",
                content_label="PROBABILITY",
                content_description=mark(result.volume.content),
            )
            remove_free_text(written)
            write_with(written.save_as, path, "the probability image")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise HemsegError(header_sentence(path, "a parametric map", error, sources[0])) from None
    return path
