"""Images with the geometry of a scan, to the last bit: with its own header where the format has one to copy.

ITK recomputes the qform and sform of NIfTI (they change by up to 6e-8) and the space directions of NRRD; so these two
are written with the scan's header. MetaImage holds any geometry as it is.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from hemseg.io.image_header import nrrd_header
from hemseg.volume import Volume

_NRRD_TYPES = {np.dtype(np.uint8): (b"type: uint8",), np.dtype(np.float32): (b"type: float", b"endian: little")}
_NRRD_GEOMETRY = (  # fields by the names of `nrrd_header`, in which ITK looks for size, spacing, origin and direction
    "dimension",
    "sizes",
    "space",
    "spacedimension",
    "spacedirections",
    "spaceorigin",
    "spacings",
    "axismins",
    "axismaxs",
    "centers",
    "centerings",
    "kinds",
)


def to_itk(voxels: np.ndarray, volume: Volume) -> sitk.Image:
    """An array (z, y, x) as a SimpleITK image with a volume's geometry."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction)
    return image


def mask_to_itk(mask: np.ndarray, volume: Volume) -> sitk.Image:
    """A mask (z, y, x) as a SimpleITK image of uint8 with its scan's geometry."""
    return to_itk(np.ascontiguousarray(mask, dtype=np.uint8), volume)


def write_itk(voxels: np.ndarray, volume: Volume, path: Path, text: str, key: str = "Comment") -> None:
    """Through ITK, with the volume's geometry and a description.

    Args:
        key: under which ITK keeps a description in this format.
    """
    image = to_itk(voxels, volume)
    image.SetMetaData(key, text)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_nifti(voxels: np.ndarray, scan: Path, path: Path, text: str) -> None:
    """The scan's header with another data type and description: pixdim, qform, sform and units stay bit for bit."""
    import nibabel  # imported here because it takes a while and only NIfTI needs it

    header: Any = nibabel.load(scan).header.copy()  # type: ignore[attr-defined]
    header.set_data_dtype(voxels.dtype)
    header["cal_min"], header["cal_max"] = 0, 1
    header["descrip"] = text.encode()
    header.extensions.clear()  # notes about the scan's voxels do not hold for others, nor do texts, which may be names
    for field in ("aux_file", "db_name", "intent_name"):
        header[field] = b""
    shape = header.get_data_shape()  # may carry trailing axes of length 1
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0).reshape(shape), None, header)
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, path)


def write_nrrd(voxels: np.ndarray, scan: Path, path: Path, text: str) -> None:
    """The scan's geometry fields byte for byte, with another type (uint8 or float32) and encoding."""
    magic, fields = nrrd_header(scan)
    kept = [line for name, line in fields.items() if name in _NRRD_GEOMETRY]
    lines = [magic, f"# {text}".encode(), *_NRRD_TYPES[voxels.dtype], *kept, b"encoding: gzip", b"", b""]
    path.write_bytes(b"\n".join(lines) + gzip.compress(voxels.tobytes()))
