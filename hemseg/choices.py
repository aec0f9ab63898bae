"""What can be chosen by name, as types: command lines list the names, and answer ``--help`` without heavy libraries."""

from __future__ import annotations

from typing import Literal

MaskFormat = Literal["same", "mha", "nii.gz", "dicom-seg", "dicom"]
SAME: MaskFormat = "same"  # as the scan; MetaImage for DICOM
DICOM: MaskFormat = "dicom"  # a segmentation with a segment for each lesion, and a structured report beside it
# the others, and the suffix of each
MASK_FORMATS = {"mha": ".mha", "nii.gz": ".nii.gz", "dicom-seg": ".dcm", DICOM: ".dcm"}

Device = Literal["auto", "cpu", "cuda"]  # CUDA where it works, else CPU; CPU; CUDA or an error
