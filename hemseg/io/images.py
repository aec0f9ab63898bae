"""Read one image file (NIfTI, MetaImage, NRRD) as a `Volume`. `hemseg.scan` reads these and DICOM."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hemseg.errors import HemsegError
from hemseg.io.formats import FORMATS, NIFTI, SUFFIXES, suffix
from hemseg.io.image_header import MAX_SHEAR, TILTED, HeaderError, Orientation, voxel_crc
from hemseg.io.integrity import voxel_files
from hemseg.names import name_problem
from hemseg.resources import check_memory
from hemseg.volume import Volume

os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = "1"  # how far axes may lean is checked here (`hemseg.io.image_header`)
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own chatter; real errors arrive as exceptions

VOXEL_BYTES = {  # of one voxel, by ITK's types: those that are read
    **dict.fromkeys((sitk.sitkInt8, sitk.sitkUInt8), 1),
    **dict.fromkeys((sitk.sitkInt16, sitk.sitkUInt16), 2),
    **dict.fromkeys((sitk.sitkInt32, sitk.sitkUInt32, sitk.sitkFloat32), 4),
    **dict.fromkeys((sitk.sitkInt64, sitk.sitkUInt64, sitk.sitkFloat64), 8),
}
_GZIP, _PLAIN_NIFTI = b"\x1f\x8b", (b"\x5c\x01\0\0", b"\0\0\x01\x5c")  # how they begin
_FLOATS = (sitk.sitkFloat32, sitk.sitkFloat64)
NOT_FINITE = "has voxels that are NaN or infinite; replace them (with -1024, say) and try again."
MAX_VOXELS = 2**31  # a declared size beyond this is a broken header, not a head CT


def read_image(path: Path) -> Volume:
    """Read a NIfTI, MetaImage or NRRD file.

    Raises:
        HemsegError: the file is missing, unreadable, damaged, or not one 3D volume of numbers.
    """
    image, orientation = _read_image(path)
    volume = replace(from_itk(image, path), warnings=orientation.warnings, oriented=orientation.known)
    if image.GetPixelID() in _FLOATS and not np.isfinite(volume.hu).all():
        raise HemsegError(f"{path}: {NOT_FINITE}")
    return volume


def from_itk(image: sitk.Image, path: Path | None = None) -> Volume:
    """A 3D SimpleITK image of HU as a `Volume`."""
    hu = np.asarray(sitk.GetArrayViewFromImage(image)).astype(np.float32)
    return Volume(hu, image.GetSpacing(), image.GetOrigin(), image.GetDirection(), path)


def read_back(path: Path) -> sitk.Image:
    """The image of a file that was just written, turned as its header says."""
    image = _reader(path).Execute()
    _turn(image, _orientation(path))
    return image


def check_name(path: Path) -> None:
    """Raise HemsegError for a name that is no UTF-8: ITK takes no other, and ends the process over it."""
    if problem := name_problem(path):
        raise HemsegError(f"{path}: {problem}")


def _read_image(path: Path) -> tuple[sitk.Image, Orientation]:
    if not os.path.exists(path):  # for a name that is too long pathlib raises
        raise HemsegError(f"{path}: there is no such file.")
    if not path.is_file():
        raise HemsegError(f"{path}: is not a file.")
    kind = suffix(path)
    if not kind:
        raise HemsegError(f"{path}: is not an image that hemseg reads; give one of {', '.join(SUFFIXES)}.")
    if not os.access(path, os.R_OK):
        raise HemsegError(f"{path}: may not be read; check its permissions.")
    if path.stat().st_size == 0:
        raise HemsegError(f"{path}: is empty (0 bytes); copy or export it again.")
    check_name(path)
    form = FORMATS[kind]
    if form.upper_or_lower and path.name[-len(kind) :] not in (kind, kind.upper()):
        raise HemsegError(f"{path}: its suffix has capitals and small letters, which ITK does not read; rename it.")
    _check_compression(path, kind)
    reader = _reader(path)
    try:
        voxel_files(path)  # they must lie in its folder
        orientation = _orientation(path)
        inflated = form.inflated(path) if form.inflated else None
        held = inflated[0] if inflated else form.stored_bytes(path) if form.stored_bytes else None
        reader.ReadImageInformation()
        _check_header(path, reader)
        check_memory(path, int(np.prod(reader.GetSize())), VOXEL_BYTES[reader.GetPixelID()])
        need = int(np.prod(reader.GetSize())) * _bytes_per_voxel(reader)
        if held is not None and held < need:
            raise EOFError(f"it holds {max(held, 0)} of {need} bytes")
        image = reader.Execute()
        if inflated and inflated != (need, voxel_crc(sitk.GetArrayViewFromImage(image), path)):
            raise ValueError("two ways to inflate its voxels give two results")
        if image.GetPixelID() in _FLOATS and form.is_finite and not form.is_finite(path):
            raise HemsegError(f"{path}: {NOT_FINITE}")
    except (RuntimeError, EOFError, OSError, ValueError, zlib.error) as error:
        raise HemsegError(
            f"{path}: cannot be read as {kind}; it is damaged, cut short or of another format ({itk_error(error)})."
        ) from None
    _turn(image, orientation)
    return image, orientation


def _check_compression(path: Path, kind: str) -> None:
    """Raise HemsegError for a file that is compressed as a whole, or not, against what its suffix says."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin[:2] == _GZIP and kind != ".nii.gz":
        called = ", or call it .nii.gz" if kind == ".nii" else ""
        raise HemsegError(f"{path}: is compressed with gzip, and its name says otherwise; unpack it{called}.")
    if begin in _PLAIN_NIFTI and kind == ".nii.gz":
        raise HemsegError(f"{path}: is not compressed, and its name says otherwise; call it .nii.")


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(FORMATS[suffix(path)].itk)
    reader.SetFileName(str(path))
    return reader


def _orientation(path: Path) -> Orientation:
    try:
        return FORMATS[suffix(path)].orientation(path)
    except HeaderError as error:
        raise HemsegError(f"{path}: its header {error}.") from None


def _turn(image: sitk.Image, orientation: Orientation) -> None:
    if orientation.direction:
        image.SetDirection(orientation.direction)


def _check_header(path: Path, reader: sitk.ImageFileReader) -> None:
    dimension, size = reader.GetDimension(), reader.GetSize()
    if dimension != 3:
        raise HemsegError(f"{path}: is a {dimension}D image ({'x'.join(map(str, size))}); give one 3D volume per file.")
    if reader.GetNumberOfComponents() != 1:
        raise HemsegError(
            f"{path}: has {reader.GetNumberOfComponents()} values per voxel; give a scan in HU, one value."
        )
    if reader.GetPixelID() not in VOXEL_BYTES:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise HemsegError(f"{path}: has voxels of type {kind}; give a scan in HU, one number per voxel.")
    if min(size) < 1:
        raise HemsegError(f"{path}: its header declares {'x'.join(map(str, size))} voxels: none.")
    if int(np.prod(size, dtype=object)) > MAX_VOXELS:
        raise HemsegError(f"{path}: its header declares {'x'.join(map(str, size))} voxels, too many for a head CT.")
    spacing = np.array(reader.GetSpacing())
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        sizes = " x ".join(f"{mm:g}" for mm in spacing)
        raise HemsegError(f"{path}: its voxel spacing of {sizes} mm is not positive; fix the header.")
    cosines = np.array(reader.GetDirection()).reshape(3, 3)
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > MAX_SHEAR and FORMATS[suffix(path)] is not NIFTI:
        raise HemsegError(f"{path}: its axes {TILTED}.")


def _bytes_per_voxel(reader: sitk.ImageFileReader) -> int:
    """As stored: ITK gives the type of a NIfTI after its slope and intercept, so its header's bitpix counts."""
    if reader.HasMetaDataKey("bitpix"):
        return int(reader.GetMetaData("bitpix")) // 8
    return VOXEL_BYTES[reader.GetPixelID()]


def itk_error(error: BaseException) -> str:
    """What ITK says of an error, in a few words for a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.split("): ", 1)[-1].rstrip(".")[:160]
