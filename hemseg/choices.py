"""What can be chosen by name, as types: command lines list the names, and answer ``--help`` without heavy libraries."""

from __future__ import annotations

from typing import Literal

MaskFormat = Literal["same", "mha", "nii.gz", "dicom-seg"]
SAME: MaskFormat = "same"  # as the scan; MetaImage for DICOM
MASK_FORMATS = {"mha": ".mha", "nii.gz": ".nii.gz", "dicom-seg": ".dcm"}  # the others, and the suffix of each

Device = Literal["auto", "cpu", "cuda"]  # CUDA where it works, else CPU; CPU; CUDA or an error
