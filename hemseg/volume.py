"""Volume = voxels in HU + geometry. The only module that knows about files, axis order and orientation.

Arrays are (z, y, x); ``spacing``, ``origin`` and ``direction`` are (x, y, z) as in ITK, in mm and LPS.
Masks are written with the geometry of their scan, to the last bit: MetaImage by SimpleITK's
``CopyInformation``; NIfTI and NRRD with the scan's own header, because ITK recomputes the qform and sform of the
one (they change by up to 6e-8) and the space directions of the other.
"""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from hemseg.errors import HemsegError, OutputError
from hemseg.io import image_header
from hemseg.io.files import atomic_write
from hemseg.io.integrity import all_finite, check_stays_in_folder, stored_bytes
from hemseg.io.marks import mark, voxel_hash
from hemseg.names import name_problem
from hemseg.resources import check_memory

if TYPE_CHECKING:
    from hemseg.dicom.stack import Stack
    from hemseg.io.fingerprint import Fingerprint

os.environ["ITK_NIFTI_SFORM_PERMISSIVE"] = "1"  # how far axes may lean is checked here (`hemseg.io.image_header`)
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's own chatter; real errors arrive as exceptions

FORMATS = {".nii.gz": "NIfTI", ".nii": "NIfTI", ".mha": "MetaImage", ".mhd": "MetaImage", ".nrrd": "NRRD"}
SUFFIXES = tuple(FORMATS)
_READERS = {"NIfTI": "NiftiImageIO", "MetaImage": "MetaImageIO", "NRRD": "NrrdImageIO"}  # whatever case a suffix has
_VOXEL_BYTES = {
    **dict.fromkeys((sitk.sitkInt8, sitk.sitkUInt8), 1),
    **dict.fromkeys((sitk.sitkInt16, sitk.sitkUInt16), 2),
    **dict.fromkeys((sitk.sitkInt32, sitk.sitkUInt32, sitk.sitkFloat32), 4),
    **dict.fromkeys((sitk.sitkInt64, sitk.sitkUInt64, sitk.sitkFloat64), 8),
}
_FLOATS = (sitk.sitkFloat32, sitk.sitkFloat64)
NOT_FINITE = "has voxels that are NaN or infinite; replace them (with -1024, say) and try again."
MAX_VOXELS = 2**31  # a declared size beyond this is a broken header, not a head CT


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan.

    Attributes:
        hu: float32 array (z, y, x) in HU.
        spacing: voxel size (x, y, z) in mm.
        origin: position of voxel 0 (x, y, z) in mm, LPS.
        direction: row-major 3x3 direction cosines, LPS.
        path: the file that it was read from, if any.
        warnings: what looks odd about it, in sentences.
        oriented: whether it is known which of its sides is the patient's left.
        stack: how the slices of a DICOM series lie in it, see `hemseg.dicom.stack`.
        chosen: which series of a DICOM study this is, and why.
        fingerprint: of the files that it was read from.
    """

    hu: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    path: Path | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    stack: Stack | None = field(default=None, repr=False)
    chosen: str = ""
    fingerprint: Fingerprint | None = field(default=None, repr=False)
    oriented: bool = True

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in mL."""
        return float(np.prod(self.spacing)) / 1000.0

    @property
    def content(self) -> str:
        """The content hash of its files; empty where they are not known."""
        return self.fingerprint.content if self.fingerprint else ""

    def with_voxels(self, array: np.ndarray) -> Volume:
        """Another array of the same shape (a mask, say) with this volume's geometry."""
        if array.shape != self.hu.shape:
            raise ValueError(f"array {array.shape} and scan {self.hu.shape} differ in shape")
        return replace(self, hu=array)

    def _to_lps(self) -> tuple[tuple[int, int, int], tuple[int, ...]]:
        """Which array axis runs along patient z, y, x, and which of those axes (afterwards) must be flipped."""
        cosines = np.asarray(self.direction, dtype=float).reshape(3, 3)  # [patient axis, image axis], (x, y, z)
        image_axis = [-1, -1, -1]
        left = np.abs(cosines)
        for _ in range(3):  # greedy assignment: the best-aligned pair first, each axis once
            patient, image = np.unravel_index(int(np.argmax(left)), left.shape)
            image_axis[patient] = int(image)
            left[patient, :] = -1
            left[:, image] = -1
        axes = (2 - image_axis[2], 2 - image_axis[1], 2 - image_axis[0])
        flips = tuple(i for i, p in enumerate((2, 1, 0)) if cosines[p, image_axis[p]] < 0)
        return axes, flips

    def in_lps(self) -> tuple[np.ndarray, tuple[float, float, float]]:
        """The voxels with axes permuted and flipped (never interpolated) so that z runs to superior, y to
        posterior, x to the patient's left, as nearly as the scan's own axes allow.

        Returns:
            A view (z, y, x) of ``hu`` and its spacing (z, y, x) in mm.
        """
        axes, flips = self._to_lps()
        spacing = self.spacing[::-1]
        return np.flip(self.hu.transpose(axes), flips), tuple(spacing[a] for a in axes)  # type: ignore[return-value]

    def lps_frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the voxels of `in_lps` lie: (x, y, z; mm, LPS) of its voxel (0, 0, 0), and a 3x3 matrix whose columns
        are the steps (mm) from a voxel to the next along its z, y and x.
        """
        axes, flips = self._to_lps()
        steps = (np.array(self.direction).reshape(3, 3) * self.spacing)[:, ::-1][:, list(axes)]
        start = np.array(self.origin, dtype=float)
        for axis in flips:
            start = start + steps[:, axis] * (self.hu.shape[axes[axis]] - 1)
            steps[:, axis] *= -1
        return start, steps

    def from_lps(self, array: np.ndarray) -> np.ndarray:
        """Undo `in_lps` for an array of the same shape: back to the scan's own axes (a view)."""
        axes, flips = self._to_lps()
        return np.flip(array, flips).transpose(np.argsort(axes))

    def indices_in_lps(self, voxels: np.ndarray) -> np.ndarray:
        """Where voxels (n, 3) of this volume, (z, y, x), lie in the array of `in_lps`."""
        axes, flips = self._to_lps()
        moved = voxels[:, axes]
        for axis in flips:
            moved[:, axis] = self.hu.shape[axes[axis]] - 1 - moved[:, axis]
        return moved


def suffix(path: Path) -> str:
    """The image suffix of a path in lower case (``.nii.gz`` counts as one), or '' if it has none that we read."""
    name = path.name.lower()
    return next((s for s in SUFFIXES if name.endswith(s) and len(name) > len(s)), "")


def stem(path: Path) -> str:
    """File name without its image suffix."""
    return path.name[: len(path.name) - len(suffix(path))]


def mask_name(path: Path) -> str:
    """File name of a scan's mask: the scan's own, except that ``.mhd`` (two files) becomes ``.mha`` (one)."""
    return f"{stem(path)}.mha" if suffix(path) == ".mhd" else path.name


def read(path: str | Path, series: str = "") -> Volume:
    """Read a NIfTI, MetaImage or NRRD file, or the CT series of a DICOM folder, zip archive or file.

    Args:
        series: of a DICOM study: a SeriesInstanceUID (or its end) or number, in place of the rule of
            `hemseg.dicom.reading`.

    Raises:
        HemsegError: the file is missing, unreadable, damaged, or not one 3D volume of numbers.
    """
    path = Path(path)
    if holds_dicom(path):
        from hemseg.dicom.reading import read_series, sources_of

        return read_series(sources_of(path), path, series)
    image, orientation = _read_image(path)
    volume = replace(from_itk(image, path), warnings=orientation.warnings, oriented=orientation.known)
    if image.GetPixelID() in _FLOATS and not np.isfinite(volume.hu).all():
        raise HemsegError(f"{path}: {NOT_FINITE}")
    return volume


def holds_dicom(path: Path) -> bool:
    """Whether a path is a folder, a zip archive, or a file without an image's suffix that begins as DICOM does."""
    if path.is_dir() or path.suffix.lower() == ".zip":
        return path.is_dir() or path.is_file()
    if suffix(path) or not path.is_file():
        return False
    from hemseg.dicom.reading import is_dicom

    return is_dicom(path)


def from_itk(image: sitk.Image, path: Path | None = None) -> Volume:
    """A 3D SimpleITK image of HU as a `Volume`."""
    hu = np.asarray(sitk.GetArrayViewFromImage(image)).astype(np.float32)
    return Volume(hu, image.GetSpacing(), image.GetOrigin(), image.GetDirection(), path)


def mask_to_itk(mask: np.ndarray, volume: Volume) -> sitk.Image:
    """A mask (z, y, x) as a SimpleITK image of uint8 with its scan's geometry."""
    return to_itk(np.ascontiguousarray(mask, dtype=np.uint8), volume)


def to_itk(voxels: np.ndarray, volume: Volume) -> sitk.Image:
    """An array (z, y, x) as a SimpleITK image with a volume's geometry."""
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction)
    return image


def _read_image(path: Path) -> tuple[sitk.Image, image_header.Orientation]:
    if not path.exists():
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
    _check_name(path)
    if FORMATS[kind] == "NIfTI" and path.name[-len(kind) :] not in (kind, kind.upper()):
        raise HemsegError(f"{path}: its suffix has capitals and small letters, which ITK does not read; rename it.")
    reader = _reader(path)
    try:
        check_stays_in_folder(path, kind)
        orientation = _orientation(path, kind)
        inflated = image_header.inflated(path) if FORMATS[kind] == "MetaImage" else None
        held = inflated[0] if inflated else stored_bytes(path, kind)
        reader.ReadImageInformation()
        _check_header(path, reader)
        check_memory(path, int(np.prod(reader.GetSize())), _VOXEL_BYTES[reader.GetPixelID()])
        need = int(np.prod(reader.GetSize())) * _bytes_a_voxel(reader)
        if held is not None and held < need:
            raise EOFError(f"it holds {max(held, 0)} of {need} bytes")
        image = reader.Execute()
        if inflated and inflated != (need, image_header.crc_of(sitk.GetArrayViewFromImage(image), path)):
            raise ValueError("two ways to inflate its voxels give two results")
        if image.GetPixelID() in _FLOATS and not all_finite(path, kind):
            raise HemsegError(f"{path}: {NOT_FINITE}")
    except (RuntimeError, EOFError, OSError, ValueError, zlib.error) as error:
        raise HemsegError(
            f"{path}: cannot be read as {kind}; it is damaged, cut short or of another format ({_reason(error)})."
        ) from None
    _turn(image, orientation)
    return image, orientation


def _check_name(path: Path) -> None:
    """ITK takes names in UTF-8 alone, and ends the process over others."""
    if problem := name_problem(path):
        raise HemsegError(f"{path}: {problem}")


def _reader(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[FORMATS[suffix(path)]])
    reader.SetFileName(str(path))
    return reader


def _orientation(path: Path, kind: str) -> image_header.Orientation:
    try:
        return image_header.orientation(path, kind)
    except image_header.HeaderError as error:
        raise HemsegError(f"{path}: its header {error}.") from None


def _turn(image: sitk.Image, orientation: image_header.Orientation) -> None:
    if orientation.direction:
        image.SetDirection(orientation.direction)


def _check_header(path: Path, reader: sitk.ImageFileReader) -> None:
    dimension, size = reader.GetDimension(), reader.GetSize()
    if dimension != 3:
        raise HemsegError(f"{path}: is a {dimension}D image ({'x'.join(map(str, size))}); give one 3D volume a file.")
    if reader.GetNumberOfComponents() != 1:
        raise HemsegError(f"{path}: has {reader.GetNumberOfComponents()} values a voxel; give a scan in HU, one value.")
    if reader.GetPixelID() not in _VOXEL_BYTES:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise HemsegError(f"{path}: has voxels of type {kind}; give a scan in HU, one number a voxel.")
    if min(size) < 1:
        raise HemsegError(f"{path}: its header declares {'x'.join(map(str, size))} voxels: none.")
    if int(np.prod(size, dtype=object)) > MAX_VOXELS:
        raise HemsegError(f"{path}: its header declares {'x'.join(map(str, size))} voxels, too many for a head CT.")
    spacing = np.array(reader.GetSpacing())
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        sizes = " x ".join(f"{mm:g}" for mm in spacing)
        raise HemsegError(f"{path}: its voxel spacing of {sizes} mm is not positive; fix the header.")
    cosines = np.array(reader.GetDirection()).reshape(3, 3)
    if np.abs(cosines.T @ cosines - np.eye(3)).max() > image_header.SHEAR and suffix(path) not in (".nii", ".nii.gz"):
        raise HemsegError(f"{path}: its axes {image_header.TILTED}.")


def _bytes_a_voxel(reader: sitk.ImageFileReader) -> int:
    """As stored: ITK gives the type of a NIfTI after its slope and intercept, so its header's bitpix counts."""
    if reader.HasMetaDataKey("bitpix"):
        return int(reader.GetMetaData("bitpix")) // 8
    return _VOXEL_BYTES[reader.GetPixelID()]


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.split("): ", 1)[-1].rstrip(".")[:160]


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
    path = Path(path)
    _check_name(path)
    kind, scan = image_format(path, volume)
    if mask.shape != volume.hu.shape:
        raise ValueError(f"mask {mask.shape} and scan {volume.hu.shape} differ in shape")
    mask = np.ascontiguousarray(mask, dtype=np.uint8)
    text = mark(volume.content, voxel_hash(mask))
    try:
        with atomic_write(path) as partial:
            if scan and kind == "NIfTI":
                write_nifti(mask, scan, partial, text)
            elif scan and kind == "NRRD":
                _write_nrrd(mask, scan, partial, text)
            else:
                write_itk(mask, volume, partial, text)
            check_written(partial, mask, volume, exact=bool(scan) or kind == "MetaImage")
    except (RuntimeError, OSError) as error:
        raise OutputError(f"{path}: the mask could not be written ({_reason(error)}).") from None
    return path


def image_format(path: Path, volume: Volume) -> tuple[str, Path | None]:
    """In which format an image of the scan's geometry is written to a path, and the file whose header it takes, if any.

    Raises:
        HemsegError: ``path`` has no suffix of an image, or of another format than the scan.
    """
    if suffix(path) in ("", ".mhd"):
        raise HemsegError(f"{path}: a mask's name must end in one of {', '.join(s for s in SUFFIXES if s != '.mhd')}.")
    kind = FORMATS[suffix(path)]
    scan = volume.path if volume.path is not None and suffix(volume.path) else None  # a file whose header counts
    own = FORMATS[suffix(scan)] if scan else ""
    if scan and kind not in ("MetaImage", own):
        raise HemsegError(
            f"{path}: the mask of {scan.name} is written as {own} or MetaImage, {kind} would round its geometry."
        )
    return kind, scan


def write_itk(voxels: np.ndarray, volume: Volume, path: Path, text: str) -> None:
    """Through ITK, with the volume's geometry and a description."""
    image = to_itk(voxels, volume)
    image.SetMetaData("ITK_FileNotes" if FORMATS[suffix(path)] == "NIfTI" else "Comment", text)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_nifti(voxels: np.ndarray, scan: Path, path: Path, text: str) -> None:
    """The scan's header with another data type and description: pixdim, qform, sform and units stay bit for bit."""
    import nibabel  # imported here because it takes a while and only NIfTI needs it

    header: Any = nibabel.load(scan).header.copy()  # type: ignore[attr-defined]
    header.set_data_dtype(voxels.dtype)
    header["cal_min"], header["cal_max"] = 0, 1
    header["descrip"] = text.encode()
    header.extensions.clear()  # notes about the scan's voxels do not hold for others
    shape = header.get_data_shape()  # may carry trailing axes of length 1
    image = nibabel.Nifti1Image(voxels.transpose(2, 1, 0).reshape(shape), None, header)
    image.header.set_slope_inter(1, 0)
    nibabel.save(image, path)


def _write_nrrd(mask: np.ndarray, scan: Path, path: Path, text: str) -> None:
    """The scan's geometry fields word for word, with another type and encoding."""
    geometry = (
        "dimension",
        "sizes",
        "space",
        "space dimension",
        "space directions",
        "space origin",
        "spacings",
        "kinds",
    )
    with scan.open("rb") as file:
        magic = file.readline().decode().strip()
        lines = [line.decode().strip() for line in itertools.takewhile(bytes.strip, file)]
    kept = [line for line in lines if line.split(":", 1)[0] in geometry]
    header = "\n".join([magic, f"# {text}", "type: uint8", *kept, "encoding: gzip", "", ""])
    path.write_bytes(header.encode() + gzip.compress(mask.tobytes()))


def check_written(path: Path, voxels: np.ndarray, volume: Volume, exact: bool) -> None:
    """Read it back. Not exact: NIfTI holds 32-bit numbers, and there is no header of the scan to copy from."""
    image = _reader(path).Execute()
    if suffix(path) in (".nii", ".nii.gz"):
        _turn(image, _orientation(path, suffix(path)))
    geometry: list[tuple[tuple[float, ...], tuple[float, ...]]] = [
        (image.GetSpacing(), volume.spacing),
        (image.GetOrigin(), volume.origin),
        (image.GetDirection(), volume.direction),
    ]
    same = all(a == b if exact else np.allclose(a, b, rtol=1e-5, atol=1e-4) for a, b in geometry)
    same = same and np.array_equal(sitk.GetArrayViewFromImage(image), voxels)
    if not same:
        raise RuntimeError("read back, it differs from what was written")
