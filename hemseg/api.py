"""hemseg for Python: `segment`, for paths, arrays, SimpleITK images and volumes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk

import hemseg.mask_formats  # noqa: F401  Segmentation.save knows DICOM by it
from hemseg.checks import check_scan
from hemseg.dicom.reading import read_series
from hemseg.dicom.source import Source, is_dicom
from hemseg.errors import HemsegError
from hemseg.io.images import NOT_FINITE, VOXEL_BYTES, from_itk
from hemseg.manifest import MANIFEST, Manifest, default_weights
from hemseg.model import Model, load
from hemseg.scan import read
from hemseg.segmentation import Segmentation, require_plausible
from hemseg.segmentation import segment as segment_volume
from hemseg.volume import Volume


class NiftiImage(Protocol):
    """An image of nibabel."""

    affine: Any
    dataobj: Any


Scan = str | os.PathLike[str] | bytes | Sequence[Any] | np.ndarray | sitk.Image | Volume | NiftiImage


def segment(
    scan: Scan,
    spacing: Sequence[float | str] | np.ndarray | None = None,
    *,
    series: str = "",
    weights: str | Path | None = None,
    device: str = "auto",
    strict: bool = False,
    operating_point: str = "",
) -> Segmentation:
    """Find and outline intracranial hemorrhage on one scan. The weights are loaded once and kept.

    Args:
        scan: a file (NIfTI, MetaImage, NRRD), a folder, zip archive or list of files of DICOM, a SimpleITK or nibabel
            image, a `Volume`, or an array of HU (z, y, x), or what numpy makes one of, whose axes run to superior,
            posterior and the patient's left.
        spacing: of an array, (x, y, z) in mm.
        series: of a DICOM study, see `hemseg.read`.
        weights: folder with manifest.json; by default those that came with hemseg.
        device: ``auto`` (CUDA where it works, else CPU), ``cpu``, or ``cuda`` (CUDA or an error).
        strict: refuse a scan that looks odd, and a result that cannot be; otherwise that stands in
            ``result.volume.warnings`` and ``result.implausible``.
        operating_point: of the weights: ``sensitive`` finds more, and more that is none; '' is ``balanced``.

    Returns:
        ``mask`` uint8 and ``probability`` float32 (z, y, x) on the scan's grid, ``volume_ml``, ``lesions``, ``save()``.

    Raises:
        HemsegError: the scan or the weights cannot be read, or are not what they should be; with ``strict``, also
            what looks odd or cannot be.
    """
    for name, value in (("series", series), ("device", device), ("operating_point", operating_point)):
        if value is not None and not isinstance(value, str | int):
            raise HemsegError(f"{name} is a text, not a {type(value).__name__}.")
    if not isinstance(weights, str | os.PathLike | None):
        raise HemsegError(f"weights is the path of a folder, not a {type(weights).__name__}.")
    volume = _to_volume(scan, spacing, series)
    folder = Path(weights) if weights is not None else default_weights()
    model = _load_model(folder.resolve(), device, _weights_state(folder)).at(operating_point)
    volume, working = check_scan(volume, model.manifest.preprocessing, strict, model.strip)
    result = segment_volume(volume, model, working)
    if strict:
        require_plausible(result)
    return result


@lru_cache(maxsize=2)
def _load_model(folder: Path, device: str, state: str) -> Model:
    return load(folder, device)


def _weights_state(folder: Path) -> str:
    """Identifies the contents of a folder of weights: a cached model must not outlive a change of its files."""
    manifest = Manifest.read(folder)
    optional_files = (manifest.strip_file, manifest.classifier_file, manifest.kinds_file)
    names = (manifest.file, *optional_files)
    files = [folder / name for name in (MANIFEST, *names) if name]
    try:
        stats = [path.stat() for path in files]
    except OSError:  # loading them says what is wrong
        return ""
    return repr((manifest, [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]))


def _to_volume(scan: Scan, spacing: Sequence[float | str] | np.ndarray | None, series: str) -> Volume:
    if isinstance(scan, str | os.PathLike | bytes | list | tuple) and spacing is not None and not _is_array(scan):
        raise HemsegError("spacing is for arrays; this scan has its own.")
    if isinstance(scan, bytes):
        scan = os.fsdecode(scan)
    if isinstance(scan, str) and not scan:
        raise HemsegError("an empty path is no scan.")
    if isinstance(scan, str | os.PathLike):
        return read(Path(scan), series)  # looks at the voxels itself
    if isinstance(scan, list | tuple) and not _is_array(scan):
        return _dicom_files_to_volume(scan, series)
    if _is_array(scan):
        volume = _array_to_volume(scan, spacing)
    elif spacing is not None:
        raise HemsegError("spacing is for arrays; this scan has its own.")
    elif isinstance(scan, sitk.Image):
        volume = _validated_volume(_itk_to_volume(scan))
    elif isinstance(scan, Volume):
        volume = _validated_volume(scan)
    elif type(scan).__module__.startswith("nibabel."):
        volume = _nibabel_to_volume(scan)
    else:
        raise HemsegError(
            f"a {type(scan).__name__} is not a scan; give a path, an array with spacing, a SimpleITK or nibabel image, "
            "a list of DICOM files, or a hemseg.Volume."
        )
    if not np.isfinite(volume.hu).all():
        raise HemsegError(f"the scan {NOT_FINITE}")
    return volume


def _is_array(scan: object) -> bool:
    """Whether something is an array, or what numpy makes one of: nested lists of numbers, a tensor of torch."""
    if isinstance(scan, list | tuple):
        return bool(scan) and isinstance(scan[0], list | tuple | np.ndarray)
    return isinstance(scan, np.ndarray) or (
        hasattr(scan, "__array__")
        and not isinstance(scan, sitk.Image)
        and not type(scan).__module__.startswith("nibabel.")
    )


def _array_to_volume(scan: Any, spacing: Sequence[float | str] | np.ndarray | None) -> Volume:
    if spacing is None:
        raise HemsegError("an array does not know the size of its voxels: give spacing=(x, y, z) in mm.")
    return Volume(_to_numbers(scan).astype(np.float32), _to_spacing(spacing))


def _itk_to_volume(image: sitk.Image) -> Volume:
    """What a file's header must say, an image must be, too; of a label map SimpleITK would end the process."""
    kind = image.GetPixelID()
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1 or kind not in VOXEL_BYTES:
        what = f"{image.GetDimension()}D of type {sitk.GetPixelIDValueAsString(kind)}"
        raise HemsegError(f"the image is not one 3D volume of numbers, but {what}; give a scan in HU.")
    return from_itk(image)


def _validated_volume(volume: Volume) -> Volume:
    """A caller's volume, checked to be what `Volume` documents: voxels as float32, geometry as numbers.

    Whether it can be a head is looked at by `hemseg.checks`.

    Raises:
        HemsegError: it is something else.
    """
    if not isinstance(volume.hu, np.ndarray):
        raise HemsegError(f"hu of a Volume is an array (z, y, x) of HU, not a {type(volume.hu).__name__}.")
    if not isinstance(volume.path, str | os.PathLike | None):
        raise HemsegError(f"path of a Volume is the path of a file, not a {type(volume.path).__name__}.")
    origin, direction = _to_floats(volume.origin), _to_floats(volume.direction)
    if len(origin) != 3:
        raise HemsegError(f"origin {volume.origin!r} is not three numbers of mm (x, y, z).")
    if len(direction) != 9:
        raise HemsegError(f"direction {volume.direction!r} is not nine numbers, the 3x3 cosines row by row.")
    return replace(
        volume,
        hu=_to_numbers(volume.hu).astype(np.float32, copy=False),
        spacing=_to_spacing(volume.spacing),
        origin=origin,
        direction=direction,
        path=None if volume.path is None else Path(volume.path),
    )


def _to_numbers(scan: Any) -> np.ndarray:
    """An array, or what numpy makes one of, as one of numbers (z, y, x) of any type.

    Raises:
        HemsegError: it is none.
    """
    if np.ma.is_masked(scan):
        raise HemsegError("a masked array does not say what its masked voxels are; fill them (with -1024, say).")
    try:
        array = np.asarray(scan)
        if array.dtype == object:
            array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise HemsegError("the array is not one of numbers in three even dimensions (z, y, x).") from None
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise HemsegError(f"an array of shape {array.shape} and type {array.dtype} is not a volume (z, y, x) of HU.")
    if array.size == 0:
        raise HemsegError(f"an array of shape {array.shape} holds no voxels.")
    return array


def _to_spacing(values: Any) -> tuple[float, float, float]:
    """Three sizes of a voxel (x, y, z) in mm.

    Raises:
        HemsegError: they are something else.
    """
    numbers = _to_floats(values)
    if len(numbers) != 3 or min(numbers) <= 0:
        raise HemsegError(f"spacing {values!r} is not three positive numbers of mm (x, y, z).")
    x, y, z = numbers
    return x, y, z


def _to_floats(values: Any) -> tuple[float, ...]:
    """Numbers in whatever holds them, row by row; none where one of them is no finite number."""
    try:
        numbers = [] if isinstance(values, str) else np.asarray(list(values), dtype=float).ravel().tolist()
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last of torch
        return ()
    return tuple(numbers) if np.isfinite(numbers).all() else ()


def _dicom_files_to_volume(paths: Sequence[Any], series: str) -> Volume:
    """The DICOM files of one scan."""
    if not paths or not all(isinstance(path, str | os.PathLike | bytes) for path in paths):
        raise HemsegError("a list is neither one of DICOM files nor of numbers (z, y, x).")
    files = [Path(os.fsdecode(path)) for path in paths]
    if missing := [path for path in files if not path.is_file()]:
        raise HemsegError(f"{missing[0]}: there is no such file.")
    if other := [path for path in files if not is_dicom(path)]:
        raise HemsegError(f"{other[0]}: is not a DICOM file; a list is for those of one scan, give others singly.")
    return read_series([Source(path) for path in files], Path(os.path.commonpath([p.parent for p in files])), series)


def _nibabel_to_volume(image: Any) -> Volume:
    """A NIfTI image of nibabel; what its header must say is looked at as in a file (`hemseg.io.image_header`)."""
    import nibabel

    try:
        shape = tuple(image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3:
            raise HemsegError(f"the image has the shape {image.shape}; give one 3D volume.")
        with tempfile.TemporaryDirectory(prefix="hemseg-") as folder:
            path = Path(folder) / "image.nii"
            nibabel.Nifti1Image.from_image(image).to_filename(path)
            volume = read(path)
    except HemsegError as error:
        raise HemsegError(f"the nibabel image: {str(error).rsplit('image.nii: ', 1)[-1]}") from None
    except Exception as error:  # nibabel's own are many
        raise HemsegError(f"the nibabel image cannot be read ({type(error).__name__}).") from None
    return replace(volume, path=None)
