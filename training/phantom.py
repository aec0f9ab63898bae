"""Head CT phantoms in full HU with known hemorrhage: anyone may have them, nobody is in them.

    python -m training phantoms FOLDER --cases 20 --seed 1     a data set with slice labels, masks and a split
    python -m training samples                                 the scans of test/cases and their truth

A phantom is a function of its seed and its grid. Anatomy (head size and tilt, skull thickness, ventricles,
sulci, calcifications, headrest) is drawn first and hemorrhage afterwards from a generator of its own, so one
seed with and without hemorrhage is the same head. What is bright without being blood (calcified basal ganglia and
falx, dense sinuses, a shunt, tubes outside the head) has a generator of its own, too.

Structures are painted in patient coordinates (mm, LPS, origin near the third ventricle), on five sub-slices or more
per 5 mm slice, whose average gives the partial volume. HU after Hounsfield's scale and the usual figures of head CT:
CSF 8, white matter 29, gray matter 37, acute blood 55-78, falx and sinus 50, calcification 75-400, diploe 500,
cortical bone 1200.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.progress import track
from scipy import ndimage

from hemseg.volume import Volume
from training.stages import console

KINDS = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
_SUBSLICE_MM = 1.25
_HIGHEST_NOISE = 8.0  # standard deviations; smooth noise stays below, so it need not be known where it cannot matter


@dataclass(frozen=True)
class Grid:
    """Sampling grid: ``shape`` (z, y, x); ``spacing`` (x, y, z) mm; ``direction`` row-major 3x3, LPS."""

    shape: tuple[int, int, int] = (28, 256, 256)
    spacing: tuple[float, float, float] = (0.9, 0.9, 5.0)
    direction: tuple[float, ...] = IDENTITY

    @property
    def origin(self) -> tuple[float, float, float]:
        """Position of voxel 0 so that the grid's centre is 12 mm above the head's centre."""
        middle = (np.array(self.shape[::-1]) - 1) / 2 * self.spacing
        x, y, z = np.array([0.0, 0.0, 12.0]) - np.array(self.direction).reshape(3, 3) @ middle
        return float(x), float(y), float(z)


@dataclass(frozen=True, eq=False)
class Phantom:
    """``volume`` in HU, and ``truth`` by kind: bool (z, y, x) where blood fills half of the voxel or more."""

    volume: Volume
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def mask(self) -> np.ndarray:
        """All kinds together, uint8 (z, y, x)."""
        empty = np.zeros(self.volume.hu.shape, bool)
        return np.logical_or.reduce([empty, *self.truth.values()]).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _Space:
    """Coordinates of a block of points in the head's frame, and the fields derived from them (all float32)."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    depth: np.ndarray  # mm below the inner table of the skull; negative outside
    wobble: Callable[
        [int, float, np.ndarray], np.ndarray
    ]  # smooth noise of unit variance: (key, its length in mm, where)

    def ellipsoid(
        self, center: tuple[float, ...], radii: tuple[float, ...], rough: float = 0.0, key: int = 0
    ) -> np.ndarray:
        """Bool inside an ellipsoid whose radius is modulated by noise of relative amplitude ``rough``."""
        r2 = sum(((c - c0) / r) ** 2 for c, c0, r in zip((self.x, self.y, self.z), center, radii, strict=True))
        r = np.sqrt(r2)
        edge = 1.0 + rough * self.wobble(key, 12.0, r < 1 + rough * _HIGHEST_NOISE) if rough else 1.0
        return r < edge


def make_phantom(
    seed: int, kinds: tuple[str, ...] = (), grid: Grid | None = None, headrest: bool = True, noise_hu: float = 4.0
) -> Phantom:
    """Make one phantom.

    Args:
        seed: of anatomy, hemorrhage and noise.
        kinds: the hemorrhages that it has, of `KINDS`; none for a healthy head.
        grid: where it is sampled.
        headrest: paint the scanner's headrest behind the head.
        noise_hu: standard deviation of the (spatially correlated) noise.

    Raises:
        ValueError: an unknown kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kinds of hemorrhage {sorted(unknown)}; known: {', '.join(KINDS)}")
    grid = grid or Grid()
    head = _Head.drawn(seed)
    sub = max(1, round(grid.spacing[2] / _SUBSLICE_MM))
    hu = np.zeros(grid.shape, np.float32)
    truth = {kind: np.zeros(grid.shape, bool) for kind in kinds}
    for z in range(grid.shape[0]):
        space = head.space(grid, z, sub)
        tissue = head.tissue(space, headrest)
        for kind in kinds:
            blood, attenuation = head.hemorrhage(kind, space)
            if kind == "intraparenchymal":  # edema around it
                near = ndimage.binary_dilation(blood, np.ones((1, 3, 3)), max(1, round(3 / grid.spacing[0])))
                tissue[near & ~blood & (tissue > 15) & (tissue < 45)] -= 8.0
            tissue[blood] = attenuation
            truth[kind][z] = blood.mean(axis=0) >= 0.5
        hu[z] = tissue.mean(axis=0)
    hu = _acquired(hu, np.random.default_rng([seed, 3]), grid, noise_hu)
    return Phantom(Volume(hu, grid.spacing, grid.origin, grid.direction), truth)


def _acquired(hu: np.ndarray, rng: np.random.Generator, grid: Grid, noise_hu: float) -> np.ndarray:
    """In-plane blur of the scanner, noise with its grain, whole HU as a scanner stores them."""
    blur = 0.45 / grid.spacing[0]
    hu = ndimage.gaussian_filter(hu, (0, blur, blur))
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0, 0.8, 0.8))
    noisy = hu + grain * np.where(hu > -500, noise_hu, 0.0) / grain.std()
    return np.clip(np.round(noisy), -1024, 3071).astype(np.float32)


@dataclass(frozen=True)
class _Bright:
    """What looks like blood to a threshold and is none. HU; 0 where a head does not have it. Radii in mm."""

    ganglia: float  # calcified basal ganglia, both sides
    ganglia_mm: float
    falx: float  # a calcified plaque
    sinus: float  # transverse sinuses
    shunt: float  # a catheter from the back into a lateral ventricle
    tube: float  # oxygen tubing or a ventilator's, beside the face

    @classmethod
    def drawn(cls, seed: int) -> _Bright:
        rng = np.random.default_rng([seed, 6])

        def sometimes(share: float, low: float, high: float) -> float:
            value, present = rng.uniform(low, high), rng.random() < share
            return float(value) if present else 0.0

        return cls(
            ganglia=sometimes(0.35, 75, 170),
            ganglia_mm=float(rng.uniform(4, 8)),
            falx=sometimes(0.3, 120, 400),
            sinus=sometimes(0.6, 48, 64),
            shunt=sometimes(0.15, 150, 400),
            tube=sometimes(0.3, 80, 250),
        )


@dataclass(frozen=True, eq=False)
class _Head:
    """What the seed decides. Radii and lengths in mm."""

    seed: int
    radii: tuple[float, float, float]  # outer table: x, y, z
    skull_mm: float
    scalp_mm: float
    tilt: np.ndarray
    ventricle: float
    side: int  # of one-sided hemorrhage: -1 or 1
    calcified: tuple[bool, bool]  # choroid plexus, pineal gland
    bright: _Bright

    @classmethod
    def drawn(cls, seed: int) -> _Head:
        rng = np.random.default_rng([seed, 1])
        size = rng.normal(1.0, 0.03)
        angles = np.deg2rad(rng.normal(0, (4.0, 3.0, 5.0)))
        tilt = np.eye(3)
        for axis, angle in enumerate(angles):
            i, j = [a for a in range(3) if a != axis]
            turn = np.eye(3)
            turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
            tilt = turn @ tilt
        return cls(
            seed=seed,
            radii=(size * rng.uniform(69, 76), size * rng.uniform(86, 95), size * rng.uniform(84, 90)),
            skull_mm=rng.uniform(5.0, 8.0),
            scalp_mm=rng.uniform(4.0, 7.0),
            tilt=tilt,
            ventricle=rng.uniform(0.8, 1.5),
            side=int(rng.choice([-1, 1])),
            calcified=(bool(rng.random() < 0.7), bool(rng.random() < 0.7)),
            bright=_Bright.drawn(seed),
        )

    def space(self, grid: Grid, z: int, sub: int) -> _Space:
        """The points of slice ``z``, at ``sub`` levels within its thickness."""
        levels = z + (np.arange(sub) + 0.5) / sub - 0.5
        index = np.stack(np.meshgrid(levels, np.arange(grid.shape[1]), np.arange(grid.shape[2]), indexing="ij")[::-1])
        matrix = self.tilt @ np.array(grid.direction).reshape(3, 3) * np.array(grid.spacing)
        at = np.tensordot(matrix, index, axes=1) + (self.tilt @ grid.origin)[:, None, None, None]
        x, y, z_mm = at.astype(np.float32)
        a, b, c = self.radii
        r = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (np.where(z_mm > 0, z_mm / c, z_mm / (1.25 * c))) ** 2)
        length = np.sqrt(x * x + y * y + z_mm * z_mm)
        depth = length / np.maximum(r, 1e-3) - length - self.skull_mm

        def wobble(key: int, mm: float, where: np.ndarray) -> np.ndarray:
            noise = np.zeros(x.shape, np.float32)
            if where.any():
                noise[where] = _smooth_noise(self.seed, key, mm, x[where], y[where], z_mm[where])
            return noise

        return _Space(x, y, z_mm, depth, wobble)

    def tissue(self, s: _Space, headrest: bool) -> np.ndarray:
        """HU of a head without hemorrhage."""
        outer = -s.depth - self.skull_mm  # mm outside the outer table
        hu = np.full(s.x.shape, -1000.0, np.float32)
        if headrest:
            a, b, _ = self.radii
            ring = (np.sqrt((s.x / a) ** 2 + (s.y / b) ** 2) - 1) * (a + b) / 2 - self.scalp_mm
            arc = s.y > 0.15 * b
            hu[arc & (ring > 6) & (ring < 22)] = -950.0  # foam
            hu[arc & (ring > 19) & (ring < 22)] = 60.0  # shell
        hu[(outer > 0) & (outer < self.scalp_mm)] = -85.0  # fat
        hu[(outer > self.scalp_mm - 2.0) & (outer < self.scalp_mm)] = 40.0  # skin
        self._paint_face(s, hu)
        bone = (s.depth <= 0) & (outer <= 0)
        diploe = bone & (np.abs(s.depth + self.skull_mm / 2) < self.skull_mm * 0.22)
        hu[bone] = 1200.0
        hu[diploe] = 500.0
        if self.bright.tube:
            along = np.sqrt((s.x + self.side * 60) ** 2 + (s.y + 0.9 * self.radii[1]) ** 2)
            hu[(along > 3) & (along < 5) & (s.z < 10) & (hu < -500)] = self.bright.tube
        self._paint_brain(s, hu)
        self._paint_bright(s, hu)
        self._paint_base(s, hu)
        return hu

    def _paint_face(self, s: _Space, hu: np.ndarray) -> None:
        b = self.radii[1]
        face = s.ellipsoid((0, -0.72 * b, -75), (48, 42, 52)) & (hu < -500)
        hu[face] = 35.0
        hu[s.ellipsoid((0, -1.1 * b, -70), (14, 16, 22)) & (hu < -500)] = 30.0  # nose

    def _paint_brain(self, s: _Space, hu: np.ndarray) -> None:
        inside = s.depth > 0
        fold = s.wobble(1, 7.0, inside)
        hu[inside] = 37.0
        white = (
            (s.depth > 9 + 4 * fold) & ~s.ellipsoid((19, 0, 3), (8, 14, 10)) & ~s.ellipsoid((-19, 0, 3), (8, 14, 10))
        )
        hu[inside & white] = 29.0
        hu[self._csf(s)] = 8.0
        falx = inside & ((s.z > 25) | (np.abs(s.y) > 45)) & (s.z > -15)
        falx &= np.abs(s.x + 1.5 * s.wobble(7, 40.0, falx)) < 0.9
        hu[falx] = 50.0
        hu[inside & (s.depth < 5) & (np.abs(s.x) < 4) & (s.y > 0) & (s.z > -20)] = 52.0  # sagittal sinus
        if self.calcified[0]:
            for side in (-1, 1):
                hu[s.ellipsoid((side * 19 * self.ventricle**0.5, 27, 9), (2.5, 4, 4), 0.4, 11 + side)] = 220.0
        if self.calcified[1]:
            hu[s.ellipsoid((0.5, 17, 2), (2.5, 3, 3), 0.3, 10)] = 180.0

    def _paint_bright(self, s: _Space, hu: np.ndarray) -> None:
        inside, bright = s.depth > 0, self.bright
        if bright.sinus:
            band = inside & (s.depth < 6) & (s.y > 10) & (np.abs(s.x) > 6)
            band &= np.abs(s.z + 18 + 2 * s.wobble(26, 20.0, band)) < 4
            hu[band] = bright.sinus
        if bright.ganglia:
            for side in (-1, 1):
                radii = (0.6 * bright.ganglia_mm, bright.ganglia_mm, 0.8 * bright.ganglia_mm)
                hu[inside & s.ellipsoid((side * 21, -2, 4), radii, 0.5, 34 + side)] = bright.ganglia
        if bright.falx:
            plaque = s.ellipsoid((0, -22, 48), (2.2, 16, 9), 0.4, 37)
            hu[inside & plaque] = bright.falx
        if bright.shunt:
            across = np.sqrt((s.x - self.side * 16) ** 2 + (s.z - 20 - 0.2 * s.y) ** 2)
            hu[inside & (across < 1.6) & (s.y > -5)] = bright.shunt

    def _paint_base(self, s: _Space, hu: np.ndarray) -> None:
        b = self.radii[1]
        for side in (-1, 1):
            along = (s.x * side - 38) * 0.80 + (s.y - 10) * 0.60
            across = -(s.x * side - 38) * 0.60 + (s.y - 10) * 0.80
            petrous = (np.abs(along) < 28) & (np.abs(across) < 7) & (np.abs(s.z + 42) < 9) & (s.depth > -self.skull_mm)
            hu[petrous] = 1000.0
            hu[petrous & (s.wobble(20 + side, 3.0, petrous) > 1.0)] = -600.0  # mastoid air cells
            orbit = s.ellipsoid((side * 31, -0.72 * b, -42), (18, 22, 15))
            hu[orbit] = -80.0
            hu[s.ellipsoid((side * 31, -0.80 * b, -42), (12, 12, 12))] = 18.0
        base = (s.depth > 0) & (s.y < 5)
        base &= np.abs(s.z + 52 - 0.25 * (s.y + 0.5 * b) + 3 * s.wobble(24, 15.0, base)) < 1.2
        hu[base] = 800.0
        hu[s.ellipsoid((0, -0.45 * b, -48), (13, 12, 9))] = -1000.0  # sphenoid sinus

    def _csf(self, s: _Space) -> np.ndarray:
        """Ventricles, sulci, cisterns and the rim below the skull."""
        return self._ventricles(s) | self._subarachnoid(s)

    def _ventricles(self, s: _Space) -> np.ndarray:
        v = self.ventricle
        lateral = np.zeros(s.x.shape, bool)
        for side in (-1, 1):
            body = s.ellipsoid((side * (9 + 3 * v), -6 + 0.2 * s.z.mean(), 18), (5 * v, 28, 7 * v), 0.1, 31)
            horn = s.ellipsoid((side * (14 + 5 * v), 30, 10), (6 * v, 14, 8 * v), 0.1, 32)
            lateral |= body | horn
        third = s.ellipsoid((0, 2, 2), (2.2 * v, 13, 10))
        fourth = s.ellipsoid((0, 32, -38), (6, 5, 8))
        return (lateral | third | fourth) & (s.depth > 8)

    def _subarachnoid(self, s: _Space) -> np.ndarray:
        inside = s.depth > 0
        rim = inside & (s.depth < 1.5)
        sulci = inside & (s.depth < 14) & (s.z > -25)
        sulci &= np.abs(s.wobble(2, 6.0, sulci)) < 0.16
        sylvian = inside & (np.abs(s.y + 8 + 0.25 * s.z) < 3) & (np.abs(s.x) > 32) & (np.abs(s.z + 2) < 12)
        cistern = s.ellipsoid((0, -8, -22), (13, 10, 8), 0.25, 33)
        return rim | sulci | sylvian | cistern

    def hemorrhage(self, kind: str, s: _Space) -> tuple[np.ndarray, float]:
        """Bool where the blood is, and its HU."""
        rng = np.random.default_rng([self.seed, 2, zlib.crc32(kind.encode())])
        attenuation = float(rng.uniform(60, 78))
        inside = s.depth > 0
        if kind == "intraparenchymal":
            center = (self.side * rng.uniform(18, 34), rng.uniform(-20, 22), rng.uniform(2, 34))
            radius = rng.uniform(9, 19)
            stretch = rng.uniform(0.75, 1.3, 3)
            return inside & s.ellipsoid(center, tuple(radius * stretch), 0.18, 41), attenuation
        if kind == "intraventricular":  # blood settles in the back of a supine patient's ventricles
            level = rng.uniform(0, 24)
            return self._ventricles(s) & (s.y > level) & (np.abs(s.x) > 3), attenuation - 4
        if kind == "subarachnoid":
            middle = rng.uniform(-0.9, 0.5)
            angle = np.arctan2(s.y, self.side * s.x + 1e-6)
            where = (np.abs(angle - middle) < rng.uniform(0.4, 0.8)) & (s.z > -28) & (s.z < rng.uniform(18, 45))
            fat = inside & (s.depth < 16)
            fat &= np.abs(s.wobble(2, 6.0, fat)) < 0.30
            cistern = s.ellipsoid((0, -8, -22), (13, 10, 8), 0.25, 33)
            return (where & fat) | cistern, attenuation - 8
        middle, top = rng.uniform(-0.6, 0.6), rng.uniform(12, 35)
        angle = np.arctan2(s.y, self.side * s.x + 1e-6)
        if kind == "subdural":  # a crescent along the hemisphere
            thick = rng.uniform(7, 13)
            profile = 1 - ((angle - middle) / rng.uniform(0.9, 1.25)) ** 2 - ((s.z - top) / 42) ** 2
        else:  # epidural: a lens between sutures
            thick = rng.uniform(14, 24)
            profile = 1 - ((angle - middle) / rng.uniform(0.38, 0.55)) ** 2 - ((s.z - top) / 28) ** 2
        return inside & (s.depth < thick * np.maximum(profile, 0)) & (self.side * s.x > 0), attenuation


def _smooth_noise(seed: int, key: int, mm: float, *at: np.ndarray) -> np.ndarray:
    """Smooth noise as a function of position: random values on a lattice of ``mm``, interpolated linearly.

    Being a function of position, it is the same field on every grid and in every slice.
    """
    lattice = _lattice(seed, key)
    index = np.stack([(c / mm) % (len(lattice) - 1) for c in at])
    return ndimage.map_coordinates(lattice, index, order=1) * 1.6  # interpolation lowers the variance


@lru_cache(maxsize=16)
def _lattice(seed: int, key: int, n: int = 48) -> np.ndarray:
    return np.random.default_rng([seed, 4, key + 1000]).standard_normal((n, n, n), dtype=np.float32)


def cases(n: int, seed: int, healthy: float = 0.2) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Name, seed and kinds of ``n`` cases: one in ``1 / healthy`` without blood, the others with one or two kinds."""
    rng = np.random.default_rng([seed, 5])
    for i in range(n):
        if i % round(1 / healthy) == round(1 / healthy) - 1:
            kinds: tuple[str, ...] = ()
        else:
            kinds = tuple(
                rng.choice(KINDS, size=int(rng.integers(1, 3)), replace=False, p=(0.4, 0.15, 0.15, 0.15, 0.15))
            )
        yield f"phantom-{seed:03d}-{i:03d}", seed * 100_000 + i, kinds


def write_image(array: np.ndarray, volume: Volume, path: Path, dtype: type = np.int16) -> None:
    """Write an array (z, y, x) with the geometry of a phantom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(dtype))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_dataset(folder: Path, n: int, seed: int, grid: Grid, split: tuple[float, float] = (0.6, 0.15)) -> None:
    """Write a data set: ``images/``, ``masks/``, ``slice_labels.csv`` with subtypes, and ``split.csv``.

    Args:
        split: fractions of train and val; the rest is test. Every part has healthy heads if it has five.
    """
    drawn = list(cases(n, seed))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        made = pool.map(_write_case, repeat(folder), drawn, repeat(grid))
        rows = [row for case_rows in track(made, "phantoms", total=n, console=console) for row in case_rows]
    parts = []
    for i, (name, _, _) in enumerate(drawn):
        done = (i + 0.5) / n
        parts.append({"case": name, "split": "train" if done < split[0] else "val" if done < sum(split) else "test"})
    for file, table in (("slice_labels.csv", rows), ("split.csv", parts)):
        with (folder / file).open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(table[0]))
            writer.writeheader()
            writer.writerows(table)


def _write_case(folder: Path, case: tuple[str, int, tuple[str, ...]], grid: Grid) -> list[dict[str, str | int]]:
    """Write image and mask of one phantom; returns its rows of ``slice_labels.csv``."""
    name, seed, kinds = case
    phantom = make_phantom(seed, kinds, grid)
    write_image(phantom.volume.hu, phantom.volume, folder / "images" / f"{name}.nii.gz")
    write_image(phantom.mask, phantom.volume, folder / "masks" / f"{name}.nii.gz", np.uint8)
    rows: list[dict[str, str | int]] = []
    for z in range(grid.shape[0]):
        present = {kind: int(kind in phantom.truth and phantom.truth[kind][z].any()) for kind in KINDS}
        rows.append({"case": name, "slice": z, "hemorrhage": max(present.values()), **present})
    return rows
