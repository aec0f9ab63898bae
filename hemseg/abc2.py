"""ABC/2 of a lesion: the bedside estimate of its volume, measured as a reader would. Arrays in, measurements out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from hemseg.components import without_holes

FULL_SLICE, HALF_SLICE = 0.75, 0.25  # of the largest area: from where a slice counts whole, and half
STEPS_PER_PIXEL = 4  # of the lines along which B is measured
SMOOTHING_PIXELS = 0.8  # of the outline whose diameters are measured; standard deviation
MARGIN = 4  # pixels around a shape that is smoothed
Point = tuple[float, float]


@dataclass(frozen=True)
class Abc2:
    """ABC/2 of a lesion, the bedside estimate of its volume (Kothari et al., Stroke 1996;27:1304-1305).

    Attributes:
        a_cm: largest diameter on the axial slice where the lesion's area is largest.
        b_cm: longest line at right angles to it that runs within the lesion's outline, on the same slice.
        c_cm: thickness of the slices, each weighted by its area: 1 above 75 % of the largest, 0.5 from 25 to 75 %,
            0 below 25 %.
        slice: that slice, 0-based, from inferior to superior.
        a_line, b_line: both ends of either line, (y, x) in pixels of that slice in LPS order; the middle of pixel 0 is
            at 0.
    """

    a_cm: float
    b_cm: float
    c_cm: float
    slice: int
    a_line: tuple[Point, Point]
    b_line: tuple[Point, Point]

    @property
    def volume_ml(self) -> float:
        """A times B times C, halved."""
        return self.a_cm * self.b_cm * self.c_cm / 2

    def moved(self, first: np.ndarray) -> Abc2:
        """The same, measured in a box that begins at ``first`` (z, y, x) of a scan, in the coordinates of the scan."""
        z, y, x = (int(index) for index in first)
        a_line, b_line = (((ya + y, xa + x), (yb + y, xb + x)) for (ya, xa), (yb, xb) in (self.a_line, self.b_line))
        return replace(self, slice=self.slice + z, a_line=a_line, b_line=b_line)


def abc2(lesion: np.ndarray, spacing: tuple[float, float, float]) -> Abc2:
    """ABC/2 of one lesion.

    Diameters run from edge to edge of the pixels, not between their middles. The outline is smoothed by less than a
    pixel: the largest of many diameters of a staircase would always be one from corner to corner.

    Args:
        lesion: bool (z, y, x) in LPS order, not empty.
        spacing: (z, y, x) mm.
    """
    mm_z, *mm = spacing
    areas = lesion.sum(axis=(1, 2), dtype=np.int64)
    z = int(areas.argmax())
    shares = areas / areas[z]
    c = mm_z * float((shares > FULL_SLICE).sum() + 0.5 * ((shares >= HALF_SLICE) & (shares <= FULL_SLICE)).sum())
    pixels = np.array(mm)
    shape = _smoothed_shape(lesion[z])
    a_line = _longest_diameter((_outline(shape) - MARGIN) * pixels)
    b_line = _longest_line_across(shape, pixels, a_line)
    a, b = (float(np.linalg.norm(line[1] - line[0])) for line in (a_line, b_line))
    ends = [tuple((float(y), float(x)) for y, x in line / pixels) for line in (a_line, b_line)]
    return Abc2(a / 10, b / 10, c / 10, z, ends[0], ends[1])  # type: ignore[arg-type]


def _smoothed_shape(plane: np.ndarray) -> np.ndarray:
    """A shape bool (y, x) as a field that is positive inside its outline, with a margin around it; holes are filled."""
    filled = np.pad(without_holes(plane), MARGIN).astype(np.float32)
    field = cv2.GaussianBlur(filled, (2 * MARGIN - 1, 2 * MARGIN - 1), SMOOTHING_PIXELS, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(field - 0.5 * field.max())  # of what is thinner than a pixel, something is left


def _outline(field: np.ndarray) -> np.ndarray:
    """Where a field (y, x) changes its sign between neighbouring pixels: float (n, 2), in pixels, (y, x)."""
    points = []
    for axis in (0, 1):
        ends = np.moveaxis(field, axis, 0)
        low, high = ends[:-1], ends[1:]
        index = np.argwhere((low > 0) != (high > 0))
        at = tuple(index.T)
        index = index.astype(float)
        index[:, 0] += low[at] / (low[at] - high[at])
        points.append(index[:, ::-1] if axis else index)
    return np.concatenate(points)


def _longest_diameter(points: np.ndarray) -> np.ndarray:
    """The two of points (n, 2) that lie farthest apart, (2, 2)."""
    hull = cv2.convexHull(points.astype(np.float32))[:, 0].astype(float)
    apart = np.linalg.norm(hull[:, None] - hull, axis=2)
    return hull[list(np.unravel_index(int(apart.argmax()), apart.shape))]


def _longest_line_across(field: np.ndarray, mm: np.ndarray, a_line: np.ndarray) -> np.ndarray:
    """The longest line at right angles to A along which a field (y, x; with margin) is positive; (2, 2) in mm."""
    along = a_line[1] - a_line[0]
    length = float(np.linalg.norm(along))
    along /= length
    across = np.array([-along[1], along[0]])
    step = float(mm.min()) / STEPS_PER_PIXEL
    inner = (np.argwhere(field > 0) - MARGIN) * mm
    reach = np.ceil(np.abs((inner - a_line[0]) @ across).max() / step) + 2 * STEPS_PER_PIXEL * mm.max() / mm.min()
    offsets = np.arange(-int(reach), int(reach) + 1) * step
    starts = np.linspace(0.0, length, max(3, int(length / step)) | 1)  # their middle is A's
    at = a_line[0] + starts[:, None, None] * along + offsets[None, :, None] * across
    outside = float(field.min())
    values = _interpolated(np.pad(field, 1, constant_values=outside), at / mm + MARGIN + 1)
    change = np.diff((values > 0).astype(np.int8), axis=1)
    row, first = np.nonzero(change == 1)  # steps into the shape, and out of it, in pairs
    last = np.nonzero(change == -1)[1]
    longest = int((last - first).argmax())
    line = values[row[longest]]
    middle = a_line[0] + starts[row[longest]] * along
    ends = [offsets[i] + line[i] / (line[i] - line[i + 1]) * step for i in (first[longest], last[longest])]
    return np.array([middle + end * across for end in ends])


def _interpolated(field: np.ndarray, at: np.ndarray) -> np.ndarray:
    """A field (y, x) between its pixels, linearly, at points (..., 2); beyond the outermost pixels as in the nearest.

    OpenCV rounds such points to 32nds of a pixel, and importing SciPy takes longer than all else that is done here.
    """
    at = np.clip(at, 0, np.array(field.shape) - 1)
    corner = np.minimum(at.astype(int), np.array(field.shape) - 2)
    (y, x), (dy, dx) = np.moveaxis(corner, -1, 0), np.moveaxis(at - corner, -1, 0)
    above, below = (field[y + n, x] * (1 - dx) + field[y + n, x + 1] * dx for n in (0, 1))
    return np.asarray(above * (1 - dy) + below * dy)
