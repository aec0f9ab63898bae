"""DICOM out: the probability of each voxel as a parametric map that refers to the source slices one by one."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from hemseg.dicom_out.seg import equipment, header_sentence, referenced_images, remove_free_text, require_highdicom
from hemseg.errors import HemsegError
from hemseg.io.files import write_with
from hemseg.io.marks import mark
from hemseg.segmentation import Segmentation


def write_parametric_map(result: Segmentation, path: Path) -> Path:
    """Write the probability (float32, 0 to 1) as a DICOM parametric map.

    Raises:
        HemsegError: the scan is no DICOM series, highdicom is not installed, or the headers do not allow it.
        OutputError: it cannot be written.
    """
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
