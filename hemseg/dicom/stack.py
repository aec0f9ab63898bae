"""An even volume of a CT series, and the way back to its slices.

A CT series is a stack of slices, and nothing says that it is a regular one. With a tilted gantry each slice is shifted
in its own plane against the one before; gaps differ where the base of the skull was scanned more finely, or slices are
missing. The network wants an even volume: slices are shifted back by whole pixels (nothing is blurred, and the way back
is exact) and interpolated linearly to even steps along their normal. `Stack.to_slices` brings a mask back to the slices
as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hemseg.dicom.codestream import check_bits, check_codestreams, decode_pixels
from hemseg.dicom.header import redacted_error
from hemseg.dicom.stacks import Instance, Series
from hemseg.errors import HemsegError
from hemseg.resources import check_memory
from hemseg.volume import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

GAP_TOLERANCE = 0.05  # gaps that differ by less than this share of the median count as even
COINCIDENT_GAP, MISSING_GAP = 0.3, 1.7  # gaps, as shares of the median, that are worth a warning
SPARSE = 1.9  # thicknesses between slices that are worth a warning
MAX_STACK_MM = 3000.0  # of what is scanned at once
PADDING_HU = -1024.0
_ALL_FAILED = "exceptions were raised by all available plugins"  # pydicom, of decoders that are there


@dataclass(frozen=True, eq=False)
class Stack:
    """How the slices of a series lie in the even volume that was made of them.

    Attributes:
        series: the slices.
        nearest: for each of them the slice of the volume that is nearest to it.
        corner: (slice, 2), row and column of the volume where its first pixel lies.
        size: rows and columns of a slice.
    """

    series: Series
    nearest: np.ndarray
    corner: np.ndarray
    size: tuple[int, int]

    def to_slices(self, mask: np.ndarray) -> np.ndarray:
        """A mask (z, y, x) of the even volume on the slices as they are, (slice, row, column)."""
        rows, columns = self.size
        return np.stack([mask[z, y : y + rows, x : x + columns] for z, (y, x) in zip(self.nearest, self.corner)])


def build_volume(series: Series, path: Path) -> Volume:
    """The even volume of a series, in HU; its `Volume.stack` leads back to the slices.

    Args:
        path: what the sentences of errors name, and `Volume.path`.

    Raises:
        HemsegError: slices cannot be decoded, or lie so that no volume can be made of them.
    """
    first = series.instances[0]
    along_row, along_column = first.orientation
    if abs(along_row @ along_column) > 1e-3 or np.abs(np.linalg.norm(first.orientation, axis=1) - 1).max() > 1e-3:
        raise HemsegError(f"{path}: ImageOrientationPatient is not two perpendicular unit vectors; fix the header.")
    normal = np.cross(along_row, along_column)
    mm_y, mm_x = first.header["PixelSpacing"]
    positions = np.stack([i.position for i in series.instances])
    depth = positions @ normal
    gaps = np.diff(depth)
    thickness = first.header.get("SliceThickness", 0.0)
    alone = first.header.get("SpacingBetweenSlices", 0.0)  # of a single slice; some scanners give it a sign
    step = _step(gaps) if len(gaps) else alone if alone > 0 else thickness
    if not len(gaps) and step <= 0:
        raise HemsegError(f"{path}: holds one slice, and its header does not say how thick it is (SliceThickness).")
    if np.ptp(depth) > MAX_STACK_MM:
        raise HemsegError(f"{path}: its slices lie over more than {MAX_STACK_MM / 1000:g} m; fix ImagePositionPatient.")
    if not np.isfinite(positions).all() or min(step, mm_x, mm_y) <= 0:
        raise HemsegError(f"{path}: the positions or the pixel size of its slices make no sense; fix the headers.")
    warnings = list(series.warnings) + _gap_warnings(gaps, step, depth)
    if len(gaps) and thickness > 0 and step >= SPARSE * thickness:
        warnings.append(
            f"Its slices are {step:.1f} mm apart and {thickness:.1f} mm thick: was every second one left out?"
        )
    even = bool((np.abs(gaps - step) <= GAP_TOLERANCE * step).all())
    count = len(depth) if even else int(np.floor((depth[-1] - depth[0]) / step + 0.5)) + 1
    rows, columns = first.header["Rows"], first.header["Columns"]
    moved = positions - positions[0]
    shift = np.stack([moved @ along_column / mm_y, moved @ along_row / mm_x], axis=1)
    if (drift := np.abs(shift - shift.mean(axis=0)).max()) > max(rows, columns):
        raise HemsegError(f"{path}: its slices are shifted by up to {drift:.0f} pixels; they do not form one volume.")
    corner = np.round(shift - shift.min(axis=0)).astype(int)  # whole pixels: row, column
    canvas = (rows + int(corner[:, 0].max())) * (columns + int(corner[:, 1].max()))
    check_memory(path, max(len(positions), count) * canvas, np.dtype(np.float32).itemsize)
    depths = depth if even else depth[0] + step * np.arange(count)
    hu = np.stack(list(_planes(series)))
    if corner.any():
        in_plane_slope = np.polyfit(depth, moved @ first.orientation.T, 1)[0]  # along a row, along a column
        tilt = np.degrees(np.arctan(np.linalg.norm(in_plane_slope)))
        warnings.append(f"The gantry was tilted by {tilt:.1f} degrees; slices were shifted back.")
        hu = _shift_slices(hu, corner)
    if not even:
        warnings.append(
            f"Gaps between slices go from {gaps.min():.1f} to {gaps.max():.1f} mm; made even, {step:.2f} mm."
        )
        hu = _interpolate(hu, depth, np.minimum(depths, depth[-1]))
    origin = positions[0]
    if corner.any():
        low = shift.min(axis=0)
        origin = origin + along_column * (low[0] * mm_y) + along_row * (low[1] * mm_x)
    return Volume(
        hu=hu,
        spacing=(mm_x, mm_y, step),
        origin=tuple(float(v) for v in origin),  # type: ignore[arg-type]
        direction=tuple(float(v) for v in np.stack([along_row, along_column, normal], axis=1).ravel()),
        path=path,
        warnings=tuple(warnings),
        stack=Stack(series, np.abs(depth[:, None] - depths).argmin(axis=1), corner, (rows, columns)),
    )


def _step(gaps: np.ndarray) -> float:
    """The usual gap (mm). Where slices come in pairs that nearly coincide, it is the one between the pairs."""
    step, large = float(np.median(gaps)), float(np.percentile(gaps, 75))
    return float(np.median(gaps[gaps >= COINCIDENT_GAP * large])) if step < COINCIDENT_GAP * large else step


def _gap_warnings(gaps: np.ndarray, step: float, depth: np.ndarray) -> list[str]:
    """Sentences about slices that nearly coincide or are missing; positions in mm along the normal."""
    warnings: list[str] = []
    if not len(gaps):
        return warnings
    around = _running_median(gaps)  # the plan may change on the way, from 4 to 7 mm, say
    odd = (
        (gaps < COINCIDENT_GAP * step, "nearly coincide"),
        (gaps > MISSING_GAP * around, "have others missing between them"),
    )
    for near, what in odd:
        if near.any():
            places = ", ".join(f"{depth[k]:.1f} and {depth[k + 1]:.1f} mm" for k in np.flatnonzero(near)[:3])
            more = f" and {near.sum() - 3} more pairs" if near.sum() > 3 else ""
            warnings.append(f"Slices at {places}{more} {what}.")
    return warnings


def _running_median(values: np.ndarray, width: int = 5) -> np.ndarray:
    """The median of each value (n,) and its neighbours; beyond the ends the values are mirrored. Of two values alone,
    the lower."""
    if len(values) < 3:
        return np.full_like(values, values.min())
    padded = np.pad(values, width // 2, mode="reflect")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, width), axis=-1))


def _planes(series: Series) -> Iterator[np.ndarray]:
    """The slices in HU; a file with several is opened once."""
    source, dataset = None, None
    for instance in series.instances:
        if dataset is None or instance.source != source:
            source, dataset = instance.source, instance.source.read()
            try:
                check_bits(dataset)
                check_codestreams(dataset)
            except Exception as error:  # of many kinds where the frames are damaged
                raise HemsegError(
                    f"{source}: its pixels cannot be decoded ({redacted_error(error, dataset)})."
                ) from None
        yield _pixels(instance, dataset)


def _pixels(instance: Instance, dataset: Dataset) -> np.ndarray:
    """A slice in HU, float32 (row, column); padding becomes air."""
    try:
        stored = decode_pixels(dataset) if instance.frame is None else decode_pixels(dataset)[instance.frame]
    except (NotImplementedError, RuntimeError, ImportError) as error:
        name = getattr(dataset.file_meta.TransferSyntaxUID, "name", "unknown")
        first, *others = str(error).splitlines() or [""]
        if _ALL_FAILED in first:
            decoder_lines = (line.strip() for line in others if "NoneType" not in line)  # GDCM gives no reason
            reasons = (redacted_error(RuntimeError(line), dataset, 80) for line in decoder_lines)
            raise HemsegError(
                f"{instance.source}: its pixels ({name}) cannot be decoded; they are damaged, or of a kind that the "
                f"decoders do not know ({next(reasons, 'no reason given')}). Copy it again, or convert it to NIfTI."
            ) from None
        raise HemsegError(
            f"{instance.source}: its pixels ({name}) cannot be decoded; `pip install 'hemseg[dicom]'` brings the "
            f"decoders ({redacted_error(error, dataset, 80)})."
        ) from None
    except Exception as error:  # cut short, or not what the header says
        reason = redacted_error(error, dataset)
        raise HemsegError(f"{instance.source}: its pixels cannot be decoded ({reason}).") from None
    shape = instance.header["Rows"], instance.header["Columns"]
    if stored.shape != shape:
        raise HemsegError(f"{instance.source}: holds pixels of shape {stored.shape} instead of {shape}.")
    unused = int(dataset.get("HighBit") or 0) + 1 - int(dataset.get("BitsStored") or 0)
    if unused > 0 and stored.dtype.kind in "iu" and not (stored & ((1 << unused) - 1)).any():
        raise HemsegError(f"{instance.source}: its pixels are stored in the upper bits, {2**unused} times too large.")
    slope, intercept = instance.header.get("RescaleSlope"), instance.header.get("RescaleIntercept")
    if slope == 0:
        raise HemsegError(f"{instance.source}: its rescale slope is 0; its pixels are not HU.")
    if slope is None or intercept is None:
        raise HemsegError(f"{instance.source}: has no rescale slope and intercept; its pixels are not HU.")
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = instance.header.get("PixelPaddingValue")
    if padding is not None:
        low, high = sorted((padding, instance.header.get("PixelPaddingRangeLimit", padding)))
        hu[(stored >= low) & (stored <= high)] = PADDING_HU
    return np.maximum(hu, PADDING_HU, out=hu)  # outside the field of view some scanners store -2000 and less


def _shift_slices(hu: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Slices (slice, row, column) on one canvas, each with its first pixel at its corner; air around them."""
    rows, columns = hu.shape[1:]
    canvas = np.full((len(hu), rows + corner[:, 0].max(), columns + corner[:, 1].max()), PADDING_HU, np.float32)
    for plane, slice_, (y, x) in zip(canvas, hu, corner):
        plane[y : y + rows, x : x + columns] = slice_
    return canvas


def _interpolate(hu: np.ndarray, depth: np.ndarray, target_depths: np.ndarray) -> np.ndarray:
    """Slices at the wanted depths, linearly between their neighbours."""
    above = np.clip(np.searchsorted(depth, target_depths), 1, len(depth) - 1)
    share = ((target_depths - depth[above - 1]) / (depth[above] - depth[above - 1])).astype(np.float32)
    return hu[above - 1] * (1 - share)[:, None, None] + hu[above] * share[:, None, None]
