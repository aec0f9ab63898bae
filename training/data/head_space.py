"""Points in the frame of a phantom's head, and shapes and noise as functions of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

_HIGHEST_NOISE = 8.0  # standard deviations; smooth noise stays below, so it need not be known where it cannot matter


IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """Sampling grid: ``shape`` (z, y, x); ``spacing`` (x, y, z) mm; ``direction`` row-major 3x3, LPS.

    Its centre lies 12 mm above the head's centre, or ``lower_mm`` deeper, where it shows more of jaw and neck; and
    ``left_mm`` to the patient's left, as a second head does.
    """

    shape: tuple[int, int, int] = (28, 256, 256)
    spacing: tuple[float, float, float] = (0.9, 0.9, 5.0)
    direction: tuple[float, ...] = IDENTITY
    lower_mm: float = 0.0
    left_mm: float = 0.0

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of voxel 0 (x, y, z; mm)."""
        middle = (np.array(self.shape[::-1]) - 1) / 2 * self.spacing
        x, y, z = np.array([self.left_mm, 0.0, 12.0 - self.lower_mm]) - np.array(self.direction).reshape(3, 3) @ middle
        return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class Space:
    """Coordinates of points in the head's frame, and the fields derived from them (all float32, one shape).

    Attributes:
        x, y, z: mm, LPS; of a child's head as if it were an adult's.
        vault: mm below the inner table of the vault; negative outside.
        depth: mm below the inner table of vault or base, whichever is nearer; negative outside.
        seed: of `wobble`.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    vault: np.ndarray
    depth: np.ndarray
    seed: int

    def at(self, where: np.ndarray) -> Space:
        """Some of the points, as a list."""
        return Space(self.x[where], self.y[where], self.z[where], self.vault[where], self.depth[where], self.seed)

    def wobble(self, key: int, mm: float, where: np.ndarray) -> np.ndarray:
        """Smooth noise of unit variance and length ``mm``, where it is wanted; 0 elsewhere."""
        noise = np.zeros(self.x.shape, np.float32)
        if where.any():
            noise[where] = _smooth_noise(self.seed, key, mm, self.x[where], self.y[where], self.z[where])
        return noise

    def ellipsoid(
        self, center: tuple[float, ...], radii: tuple[float, ...], rough: float = 0.0, key: int = 0
    ) -> np.ndarray:
        """Bool inside an ellipsoid whose radius is modulated by noise of relative amplitude ``rough``."""
        r2 = sum(((c - c0) / r) ** 2 for c, c0, r in zip((self.x, self.y, self.z), center, radii, strict=True))
        r = np.sqrt(r2)
        edge = 1.0 + rough * self.wobble(key, 12.0, r < 1 + rough * _HIGHEST_NOISE) if rough else 1.0
        return r < edge


def rotation(axis: int, angle: float) -> np.ndarray:
    """Matrix (3, 3) that turns by ``angle`` (radians) about a coordinate axis."""
    i, j = [a for a in range(3) if a != axis]
    turn = np.eye(3)
    turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return turn


def radial(offset: tuple[np.ndarray, ...], radii: tuple[float, ...]) -> np.ndarray:
    """Distance (mm) below the surface of an ellipsoid (or cylinder: two axes) along its radius; negative outside."""
    r = np.sqrt(sum((o / n) ** 2 for o, n in zip(offset, radii, strict=True)))
    length = np.sqrt(sum(o * o for o in offset))
    return np.where(r > 1e-3, length / np.maximum(r, 1e-3) - length, min(radii)).astype(np.float32)


def _smooth_noise(seed: int, key: int, mm: float, *at: np.ndarray) -> np.ndarray:
    """Smooth noise as a function of position: random values on a lattice of ``mm``, interpolated linearly.

    Being a function of position, it is the same field on every grid and in every slice.
    """
    lattice = _lattice(seed, key)
    index = np.stack([(c / mm) % (len(lattice) - 1) for c in at])
    return ndimage.map_coordinates(lattice, index, order=1) * 1.6  # interpolation lowers the variance


@lru_cache(maxsize=24)
def _lattice(seed: int, key: int, n: int = 48) -> np.ndarray:
    return np.random.default_rng([seed, 4, key + 1000]).standard_normal((n, n, n), dtype=np.float32)
