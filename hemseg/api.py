"""hemseg for Python: `segment`, for paths, arrays, SimpleITK images and volumes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hemseg.checks import checked
from hemseg.errors import HemsegError
from hemseg.model import MANIFEST, Manifest, Model, default_weights, load
from hemseg.sanity import refuse_implausible
from hemseg.segmentation import Segmentation
from hemseg.segmentation import segment as segment_volume
from hemseg.volume import Volume, from_itk, read


def segment(
    scan: str | Path | np.ndarray | sitk.Image | Volume,
    spacing: tuple[float, float, float] | None = None,
    *,
    series: str = "",
    weights: str | Path | None = None,
    device: str = "auto",
    strict: bool = False,
) -> Segmentation:
    """Find and outline intracranial hemorrhage on one scan. The weights are loaded once and kept.

    Args:
        scan: a file (NIfTI, MetaImage, NRRD), a folder or zip archive of DICOM, a SimpleITK image, a `Volume`, or an
            array of HU (z, y, x) whose axes run to superior, posterior and the patient's left.
        spacing: of an array, (x, y, z) in mm.
        series: of a DICOM study, see `hemseg.read`.
        weights: folder with manifest.json; by default those that came with hemseg.
        device: ``auto`` (CUDA where it works, else CPU), ``cpu``, or ``cuda`` (CUDA or an error).
        strict: refuse a scan that looks odd, and a result that cannot be; otherwise that stands in
            ``result.volume.warnings`` and ``result.implausible``.

    Returns:
        ``mask`` uint8 and ``probability`` float32 (z, y, x) on the scan's grid, ``volume_ml``, ``lesions``, ``save()``.

    Raises:
        HemsegError: the scan or the weights cannot be read, or are not what they should be; with ``strict``, also
            what looks odd or cannot be.
    """
    volume = _volume(scan, spacing, series)
    folder = Path(weights) if weights is not None else default_weights()
    model = _model(folder.resolve(), device, _state(folder))
    volume, working = checked(volume, model.manifest.preprocessing, strict, model.strip)
    result = segment_volume(volume, model, working)
    if strict:
        refuse_implausible(result)
    return result


@lru_cache(maxsize=2)
def _model(folder: Path, device: str, state: str) -> Model:
    return load(folder, device)


def _state(folder: Path) -> str:
    """Of weights: other contents under the same path are other weights, which a model that is kept knows nothing of."""
    manifest = Manifest.read(folder)
    files = [folder / name for name in (MANIFEST, manifest.file, manifest.strip_file) if name]
    try:
        stats = [path.stat() for path in files]
    except OSError:  # loading them says what is wrong
        return ""
    return repr((manifest, [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats]))


def _volume(
    scan: str | Path | np.ndarray | sitk.Image | Volume, spacing: tuple[float, float, float] | None, series: str
) -> Volume:
    if isinstance(scan, np.ndarray):
        if spacing is None:
            raise HemsegError("an array does not know the size of its voxels: give spacing=(x, y, z) in mm.")
        if scan.ndim != 3 or not np.issubdtype(scan.dtype, np.number) or np.iscomplexobj(scan):
            raise HemsegError(f"an array of shape {scan.shape} and type {scan.dtype} is no volume (z, y, x) of HU.")
        if len(spacing) != 3 or not np.isfinite(spacing).all() or min(spacing) <= 0:
            raise HemsegError(f"spacing {spacing} is not three positive numbers of mm (x, y, z).")
        volume = Volume(scan.astype(np.float32), (float(spacing[0]), float(spacing[1]), float(spacing[2])))
    elif spacing is not None:
        raise HemsegError("spacing is for arrays; this scan has its own.")
    elif isinstance(scan, sitk.Image):
        if scan.GetDimension() != 3 or scan.GetNumberOfComponentsPerPixel() != 1:
            raise HemsegError("the image is not one 3D volume of numbers.")
        volume = from_itk(scan)
    elif isinstance(scan, Volume):
        volume = scan
    else:
        return read(scan, series)  # looks at the voxels itself
    if not np.isfinite(volume.hu).all():
        raise HemsegError("the scan has voxels that are NaN or infinite; replace them (with -1024, say) and try again.")
    return volume
