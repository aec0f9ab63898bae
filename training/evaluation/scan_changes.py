"""What exports and scanners do to a scan: windows, shifted HU, turns, noise, streaks, JPEG, few slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from hemseg.volume import Volume

from ..data.painted import add_streaks

WINDOWS = ((-20.0, 100.0), (0.0, 80.0), (-10.0, 70.0), (0.0, 75.0), (-5.0, 85.0), (0.0, 100.0))
SHIFTS = (-10.0, -5.0, 5.0, 10.0)


@dataclass(frozen=True)
class ScanChange:
    """What is done to a scan before it is segmented."""

    kind: str
    name: str
    apply: Callable[[Volume], Volume]
    carry: Callable[[np.ndarray], np.ndarray] = np.asarray  # brings masks (z, y, x) of the scan along


def window_change(low: float, high: float) -> ScanChange:
    """Clip to a window."""
    return ScanChange("window", f"{low:g}..{high:g}", lambda v: replace(v, hu=v.hu.clip(low, high)))


def hu_shift(hu: float) -> ScanChange:
    """Shift tissue by some HU; what is saturated stays saturated, air stays air."""

    def apply(volume: Volume) -> Volume:
        low, high = float(volume.hu.min()), float(volume.hu.max())
        inner = (volume.hu > low) & (volume.hu < high)
        return replace(volume, hu=np.where(inner, volume.hu + hu, volume.hu).clip(low, high).astype(np.float32))

    return ScanChange("shift", f"{hu:+g}", apply)


def quarter_turn(quarters: int) -> ScanChange:
    """Turn in the picture by quarters of a circle, without interpolation: a patient who lies on the side."""

    def turn(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(array, quarters, axes=(1, 2)))

    return ScanChange("roll", f"{90 * quarters}", lambda v: replace(v, hu=turn(v.hu), path=None), turn)


def in_plane_blur(pixels: float) -> ScanChange:
    """Smooth in plane, as a soft kernel does."""
    return ScanChange("artefact", f"blur {pixels:g} px", lambda v: replace(v, hu=_each(v.hu, _blur, pixels), path=None))


def white_noise(hu: float) -> ScanChange:
    """White noise of so many HU more."""

    def apply(volume: Volume) -> Volume:
        grain = np.random.default_rng(0).standard_normal(volume.hu.shape, dtype=np.float32) * np.float32(hu)
        low, high = float(volume.hu.min()), float(volume.hu.max())
        return replace(volume, hu=(volume.hu + grain).clip(low, high), path=None)

    return ScanChange("artefact", f"noise {hu:g} HU", apply)


def streak_artefact(hu: float) -> ScanChange:
    """Beams of up to so many HU through a few slices."""

    def apply(volume: Volume) -> Volume:
        low, high = float(volume.hu.min()), float(volume.hu.max())
        changed = add_streaks(volume.hu, np.random.default_rng(volume.hu.shape), hu)
        return replace(volume, hu=changed.clip(low, high).astype(np.float32), path=None)

    return ScanChange("artefact", f"streaks {hu:g} HU", apply)


def jpeg_round_trip(quality: int) -> ScanChange:
    """Stored as 8-bit JPEG of the window -20..100 HU and read back."""
    return ScanChange("artefact", f"JPEG {quality}", lambda v: replace(v, hu=_each(v.hu, _jpeg, quality), path=None))


def _each(hu: np.ndarray, change: Callable[..., np.ndarray], value: float) -> np.ndarray:
    return np.stack([change(s, value) for s in np.asarray(hu, np.float32)])


def _blur(hu: np.ndarray, pixels: float) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(hu, (0, 0), pixels))


def _jpeg(hu: np.ndarray, quality: float) -> np.ndarray:
    low, high = WINDOWS[0]
    gray = ((hu.clip(low, high) - low) / (high - low) * 255).round().astype(np.uint8)
    _, code = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    read_back = cv2.imdecode(code, cv2.IMREAD_GRAYSCALE)
    assert read_back is not None
    return read_back.astype(np.float32) / 255 * (high - low) + low


CHANGES = (
    *(window_change(*w) for w in WINDOWS),
    *(hu_shift(hu) for hu in SHIFTS),
    quarter_turn(1),
    in_plane_blur(1.5),
    white_noise(5.0),
    streak_artefact(100.0),
    *(jpeg_round_trip(q) for q in (20, 75)),
)


def cut_slices(volume: Volume, part: slice) -> Volume:
    """Some slices of a scan (of the array's first axis), with the geometry that they have in it."""
    step = volume.cosines[:, 2] * volume.spacing[2] * part.start
    x, y, z = (float(v) for v in np.array(volume.origin) + step)
    return replace(volume, hu=np.ascontiguousarray(volume.hu[part]), origin=(x, y, z), path=None)
