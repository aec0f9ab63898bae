"""The image formats that hemseg reads and writes, each in one entry.

`hemseg.io.images` reads and `hemseg.io.masks` writes by these entries; `hemseg.mask_formats` has those of
``--format``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hemseg.io.image_header import Orientation, inflated, metaimage_orientation, nifti_orientation, nrrd_orientation
from hemseg.io.integrity import metaimage_bytes, nifti_bytes, nifti_is_finite
from hemseg.io.writers import write_nifti, write_nrrd


@dataclass(frozen=True)
class ImageFormat:
    """How files of one format are read and written.

    Attributes:
        name: as people know it.
        suffixes: in lower case.
        itk: the name of ITK's reader: it is chosen by suffix, whatever case that has, never by content.
        comment: ITK's key for a description.
        orientation: looks at the header before ITK does, see `hemseg.io.image_header`.
        stored_bytes: how many bytes of voxels the file holds; None where ITK looks itself.
        is_finite: whether floats are numbers alone, where ITK would replace NaN in silence.
        inflated: size and CRC-32 of compressed voxels, where ITK's own reader is not to be trusted alone.
        write_like: (voxels, scan, path, text) writes with the header of the scan, where ITK would round its geometry.
        in_two_files: suffixes of headers whose voxels lie in another file: they are read, but not written.
        upper_or_lower: whether ITK wants a suffix in capitals or in small letters, and no mixture.
    """

    name: str
    suffixes: tuple[str, ...]
    itk: str
    orientation: Callable[[Path], Orientation]
    comment: str = "Comment"
    stored_bytes: Callable[[Path], int | None] | None = None
    is_finite: Callable[[Path], bool] | None = None
    inflated: Callable[[Path], tuple[int, int] | None] | None = None
    write_like: Callable[[np.ndarray, Path, Path, str], None] | None = None
    in_two_files: tuple[str, ...] = ()
    upper_or_lower: bool = False

    @property
    def holds_any_geometry(self) -> bool:
        """Whether ITK writes any scan's geometry to the last bit."""
        return self.write_like is None


NIFTI = ImageFormat(
    "NIfTI",
    (".nii.gz", ".nii"),
    "NiftiImageIO",
    nifti_orientation,
    comment="ITK_FileNotes",
    stored_bytes=nifti_bytes,
    is_finite=nifti_is_finite,
    write_like=write_nifti,
    upper_or_lower=True,
)
METAIMAGE = ImageFormat(
    "MetaImage",
    (".mha", ".mhd"),
    "MetaImageIO",
    metaimage_orientation,
    stored_bytes=metaimage_bytes,
    inflated=inflated,
    in_two_files=(".mhd",),
)
NRRD = ImageFormat("NRRD", (".nrrd",), "NrrdImageIO", nrrd_orientation, write_like=write_nrrd)

FORMATS = {suffix: form for form in (NIFTI, METAIMAGE, NRRD) for suffix in form.suffixes}
SUFFIXES = tuple(FORMATS)


def suffix(path: Path) -> str:
    """The image suffix of a path in lower case (``.nii.gz`` counts as one), or '' if it has none that we read."""
    name = path.name.lower()
    return next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), "")


def stem(path: Path) -> str:
    """File name without its image suffix."""
    return path.name[: len(path.name) - len(suffix(path))]


def mask_name(path: Path) -> str:
    """File name of a scan's mask: the scan's own, except that ``.mhd`` (two files) becomes ``.mha`` (one)."""
    form = FORMATS.get(suffix(path))
    return f"{stem(path)}{form.suffixes[0]}" if form and suffix(path) in form.in_two_files else path.name
