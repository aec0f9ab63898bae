"""Write masks and probability images with the geometry of their scan, to the last bit, and read them back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hemseg.errors import HemsegError, OutputError
from hemseg.io.files import atomic_write
from hemseg.io.fingerprint import scan_files
from hemseg.io.formats import FORMATS, METAIMAGE, SUFFIXES, ImageFormat, suffix
from hemseg.io.images import check_name, itk_error, read_back
from hemseg.io.marks import mark, voxel_hash
from hemseg.io.writers import write_itk
from hemseg.volume import Volume


def write_mask(mask: np.ndarray, volume: Volume, path: str | Path) -> Path:
    """Write a mask with its scan's geometry: under a temporary name, read back and checked, then renamed.

    Args:
        mask: array (z, y, x) of 0 and 1, shaped like ``volume.hu``.
        volume: the scan.
        path: the file to write, of the scan's own format (`mask_name`), or MetaImage, which holds any geometry. It is
            replaced if it exists; missing folders are made.

    Raises:
        OutputError: the file cannot be written, or what was written is not what was meant.
        HemsegError: ``path`` has another format than the scan, which could not hold its geometry to the last bit.
    """
    if mask.shape != volume.hu.shape:
        raise ValueError(f"mask {mask.shape} and scan {volume.hu.shape} differ in shape")
    return write_image(np.ascontiguousarray(mask, dtype=np.uint8), volume, Path(path), "the mask")


def write_image(voxels: np.ndarray, volume: Volume, path: Path, what: str) -> Path:
    """As `write_mask`, of uint8 or float32 voxels.

    Args:
        what: that is written, for a sentence.
    """
    check_name(path)
    refuse_own_scan(path, volume)
    form, scan = image_format(path, volume)
    text = mark(volume.content, voxel_hash(voxels))
    try:
        with atomic_write(path) as partial:
            if scan and form.write_like:
                form.write_like(voxels, scan, partial, text)
            else:
                write_itk(voxels, volume, partial, text, form.comment)
            check_written(partial, voxels, volume, exact=bool(scan) or form.holds_any_geometry)
    except (RuntimeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else itk_error(error)
        raise OutputError(f"{path}: {what} could not be written ({reason}).") from None
    return path


def refuse_own_scan(path: Path, volume: Volume) -> None:
    """Refuse to write a result over the scan that it comes from, by whatever name.

    Raises:
        HemsegError: the path is one of the scan's files.
    """
    if volume.path is not None and path.exists() and any(path.samefile(own) for own in scan_files(volume.path)):
        raise HemsegError(f"{path}: is the scan itself, or one of its files; give the mask another name.")


def image_format(path: Path, volume: Volume) -> tuple[ImageFormat, Path | None]:
    """In which format an image of the scan's geometry is written to a path, and the file whose header it takes, if any.

    Raises:
        HemsegError: ``path`` has no suffix of an image, or of another format than the scan.
    """
    writable = [s for s in SUFFIXES if s not in FORMATS[s].in_two_files]
    if suffix(path) not in writable:
        raise HemsegError(f"{path}: a mask's name must end in one of {', '.join(writable)}.")
    image = volume.path is not None and suffix(volume.path) and volume.stack is None  # a folder's name may end so, too
    scan = volume.path if image else None  # a file whose header counts
    if scan:
        require_exact_geometry(path, scan)
    return FORMATS[suffix(path)], scan


def require_exact_geometry(path: Path, scan: Path) -> None:
    """Refuse to write a mask in another format than its scan's that holds positions with fewer digits.

    Raises:
        HemsegError: it is one.
    """
    form, own = FORMATS[suffix(path)], FORMATS[suffix(scan)]
    if form is not own and not form.holds_any_geometry:
        exact = " or ".join(dict.fromkeys((own.name, METAIMAGE.name)))
        raise HemsegError(
            f"{path}: the mask of {scan.name} is written as {exact}; {form.name} would round its geometry."
        )


def check_written(path: Path, voxels: np.ndarray, volume: Volume, exact: bool) -> None:
    """Read it back. Not exact: NIfTI holds 32-bit numbers, and there is no header of the scan to copy from."""
    try:
        image = read_back(path)
    except HemsegError as error:  # it names the temporary file, which the user does not know
        raise RuntimeError(f"read back, {str(error).rpartition(f'{path.name}: ')[2]}") from None
    geometry: list[tuple[tuple[float, ...], tuple[float, ...]]] = [
        (image.GetSpacing(), volume.spacing),
        (image.GetOrigin(), volume.origin),
        (image.GetDirection(), volume.direction),
    ]
    same = all(a == b if exact else np.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in geometry)
    same = same and np.array_equal(sitk.GetArrayViewFromImage(image), voxels)
    if not same:
        raise RuntimeError("read back, it differs from what was written")
