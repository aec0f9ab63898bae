"""The head of a phantom: skull, brain and hemorrhage, in the head's own coordinates (mm, LPS, third ventricle).

The cranial cavity is what lies above the base within the vault: `Space.depth` is the distance below the inner table
of either. The base has three levels: the anterior fossa above the orbits, the middle fossae of the temporal lobes, and
the posterior fossa down to the foramen magnum. What lies below is painted by `training.data.face`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .face import paint_face
from .head_space import Space, radial, rotation

if TYPE_CHECKING:
    from .phantom import Grid

SKULLS = ("adult", "child", "infant")
MUSCLE_HU = (55.0, 65.0)
FACE_TOP_MM = 48.0  # nothing of face or temporal muscle reaches above it
_FLOOR_MM = -25.0  # of the anterior fossa in the midline; the roofs of the orbits rise above it
_BASE_MM = 3.5  # thickness of the skull base


@dataclass(frozen=True)
class Options:
    """How a head differs from an adult's that lies straight in the scanner.

    Attributes:
        skull: ``adult``; ``child``, smaller, thin bone of low density; ``infant``, smaller still, with open sutures and
            an open anterior fontanelle.
        craniectomy: a large part of one side's vault is missing: scalp over dura.
        second_head: another, smaller head lies beside it, to the patient's left.
        roll: degrees about the long axis of the body (the face turns to the side).
        tilt: degrees about the left-right axis (the chin nods).
        face: paint face, neck, muscles of 55-65 HU; without them there is a skull and its scalp.
    """

    skull: str = "adult"
    craniectomy: bool = False
    second_head: bool = False
    roll: float = 0.0
    tilt: float = 0.0
    face: bool = True

    def __post_init__(self) -> None:
        if self.skull not in SKULLS:
            raise ValueError(f"unknown skull {self.skull!r}; known: {', '.join(SKULLS)}")


@dataclass(frozen=True)
class Bright:
    """What looks like blood to a threshold and is none. HU; 0 where a head does not have it. Radii in mm."""

    ganglia: float  # calcified basal ganglia, both sides
    ganglia_mm: float
    falx: float  # a calcified plaque
    sinus: float  # transverse sinuses
    shunt: float  # a catheter from the back into a lateral ventricle
    tube: float  # oxygen tubing or a ventilator's, beside the face

    @classmethod
    def drawn(cls, seed: int) -> Bright:
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
class Head:
    """What the seed decides. Radii and lengths in mm of an adult's head, which ``scale`` shrinks to a child's."""

    seed: int
    options: Options
    radii: tuple[float, float, float]  # outer table: x, y, z
    skull_mm: float
    bone_hu: tuple[float, float]  # cortical bone, diploe
    scalp_mm: float
    turn: np.ndarray  # from the patient's frame to the head's
    scale: float
    ventricle: float
    side: int  # of one-sided hemorrhage: -1 or 1
    calcified: tuple[bool, bool]  # choroid plexus, pineal gland
    bright: Bright
    muscle_hu: float
    fat_hu: float

    @classmethod
    def drawn(cls, seed: int, options: Options) -> Head:
        rng = np.random.default_rng([seed, 1])
        size = rng.normal(1.0, 0.03)
        angles = np.deg2rad(rng.normal(0, (4.0, 3.0, 5.0)))
        turn = np.eye(3)
        for axis, angle in enumerate(angles):
            turn = rotation(axis, angle) @ turn
        turn = turn @ rotation(0, np.deg2rad(options.tilt)) @ rotation(2, np.deg2rad(options.roll))
        radii = (size * rng.uniform(67, 74), size * rng.uniform(86, 95), size * rng.uniform(76, 82))
        skull_mm, scalp_mm = rng.uniform(5.0, 8.0), rng.uniform(4.0, 7.0)
        ventricle, side = rng.uniform(0.8, 1.5), int(rng.choice([-1, 1]))
        calcified = (bool(rng.random() < 0.7), bool(rng.random() < 0.7))
        soft = np.random.default_rng([seed, 7])
        muscle_hu, fat_hu = float(soft.uniform(*MUSCLE_HU)), float(soft.uniform(-100, -80))
        scale, bone_hu = 1.0, (1200.0, 500.0)
        if options.skull == "child":
            scale, bone = float(soft.uniform(0.85, 0.95)), float(soft.uniform(500, 700))
            bone_hu, skull_mm, calcified = (bone, 0.75 * bone), soft.uniform(1.5, 2.5) / scale, (False, False)
        elif options.skull == "infant":
            scale, bone = float(soft.uniform(0.70, 0.80)), float(soft.uniform(400, 700))
            bone_hu, skull_mm, calcified = (bone, bone), soft.uniform(1.2, 2.0) / scale, (False, False)
            scalp_mm = soft.uniform(2.5, 4.0) / scale
        return cls(
            seed=seed,
            options=options,
            radii=radii,
            skull_mm=skull_mm,
            bone_hu=bone_hu,
            scalp_mm=scalp_mm,
            turn=turn,
            scale=scale,
            ventricle=ventricle,
            side=side,
            calcified=calcified,
            bright=Bright.drawn(seed) if scale == 1 else Bright(0, 0, 0, 0, 0, 0),
            muscle_hu=muscle_hu,
            fat_hu=fat_hu,
        )

    def space(self, grid: Grid, z: int, sub: int, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Space:
        """The points of slice ``z``, at ``sub`` levels within its thickness, of a head centred at ``center`` (mm)."""
        levels = z + (np.arange(sub) + 0.5) / sub - 0.5
        index = np.stack(np.meshgrid(levels, np.arange(grid.shape[1]), np.arange(grid.shape[2]), indexing="ij")[::-1])
        turn = self.turn / self.scale
        matrix = turn @ np.array(grid.direction).reshape(3, 3) * np.array(grid.spacing)
        start = turn @ (np.array(grid.origin) - center)
        x, y, z_mm = (np.tensordot(matrix, index, axes=1) + start[:, None, None, None]).astype(np.float32)
        a, b, c = self.radii
        r = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (np.where(z_mm > 0, z_mm / c, z_mm / (1.25 * c))) ** 2)
        length = np.sqrt(x * x + y * y + z_mm * z_mm)
        vault = length / np.maximum(r, 1e-3) - length - self.skull_mm
        return Space(x, y, z_mm, vault, np.minimum(vault, self._above_base(x, y, z_mm)), self.seed)

    def _above_base(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Mm above the three levels of the skull base; negative below."""
        above = z - np.float32(_FLOOR_MM)
        if z.min() >= 0:  # the fossae are below
            return above
        wide, long = 72 / self.radii[0], 90 / self.radii[1]
        x, y = np.abs(x) * wide, y * long
        above = above - 8 * np.exp(-(((x - 32) / 20) ** 2) - ((y + 58) / 28) ** 2)
        middle = radial((x - 38, y + 3, z + 20), (24, 31, 27))
        clivus = 0.95 * (y - 2 + 0.35 * (z + 28))
        posterior = np.minimum(radial((x, y - 38, z + 26), (56, 44, 40)), clivus)
        return np.maximum(np.maximum(above, middle), posterior)

    def tissue(self, s: Space, headrest: bool) -> tuple[np.ndarray, np.ndarray]:
        """HU of a head without hemorrhage, and bool where its cranial cavity is."""
        outer = -s.vault - self.skull_mm  # mm outside the outer table
        hu = np.full(s.x.shape, -1000.0, np.float32)
        if headrest:
            self._paint_headrest(s, hu)
        temporalis = self._temporalis(s)
        outline = self.scalp_mm + temporalis - outer  # mm below the skin
        inside = s.depth > 0
        thick = np.where(s.vault > 3, min(_BASE_MM, self.skull_mm), self.skull_mm)
        bone = ~inside & (-s.depth <= thick)
        if self.options.face and s.z.min() < FACE_TOP_MM:
            paint_face(self, s, hu, outline, ~inside & ~bone)
        else:
            hu[(outer > 0) & (outline > 0)] = self.fat_hu
        hu[(outer > 0) & (outer < temporalis) & (s.z > -42)] = self.muscle_hu
        hu[(outer > 0) & (outline > 0) & (outline < 2.0) & (hu < -20)] = 40.0  # skin
        self._paint_vault(s, hu, bone)
        if self.bright.tube:
            along = np.sqrt((s.x + self.side * 60) ** 2 + (s.y + 0.9 * self.radii[1]) ** 2)
            hu[(along > 3) & (along < 5) & (s.z < 10) & (hu < -500)] = self.bright.tube
        self._paint_brain(s, hu)
        self._paint_bright(s, hu)
        return hu, inside & ~self._paint_petrous(s, hu)

    def _paint_headrest(self, s: Space, hu: np.ndarray) -> None:
        a, b, _ = self.radii
        ring = (np.sqrt((s.x / a) ** 2 + (s.y / b) ** 2) - 1) * (a + b) / 2 - self.scalp_mm
        arc = s.y > 0.15 * b
        hu[arc & (ring > 6) & (ring < 22)] = -950.0  # foam
        hu[arc & (ring > 19) & (ring < 22)] = 60.0  # shell

    def _temporalis(self, s: Space) -> np.ndarray:
        """Thickness (mm) of the temporal muscle on the temporal bone."""
        if not self.options.face or s.z.min() >= FACE_TOP_MM:
            return np.zeros((), np.float32)
        lens = 1 - ((s.y + 22) / 40) ** 2 - ((s.z + 30) / 64) ** 2
        return np.where(np.abs(s.x) > 0.45 * self.radii[0], 10 * np.maximum(lens, 0), 0).astype(np.float32)

    def _paint_vault(self, s: Space, hu: np.ndarray, bone: np.ndarray) -> None:
        diploe = bone & (np.abs(s.vault + self.skull_mm / 2) < self.skull_mm * 0.22)
        canal = ((s.x / 13) ** 2 + ((s.y - 27) / 15) ** 2 < 1) & (s.z < -50)  # foramen magnum
        bone &= ~canal
        hu[bone] = self.bone_hu[0]
        hu[diploe] = self.bone_hu[1]
        hu[canal & (s.depth <= 0)] = 8.0
        hu[canal & (s.depth <= 0) & ((s.x / 6) ** 2 + ((s.y - 26) / 5) ** 2 < 1)] = 30.0  # cord
        if self.options.skull == "infant":
            hu[bone & self._sutures(s)] = 42.0  # dura, periosteum
        if self.options.craniectomy:
            missing = bone & (self.side * s.x > 8) & (s.z > -8) & (s.z < 66) & (s.y > -62) & (s.y < 50)
            hu[missing] = 38.0

    def _sutures(self, s: Space) -> np.ndarray:
        """Open sutures (sagittal, coronal, lambdoid, metopic) and the anterior fontanelle of an infant."""
        coronal, lambdoid = -28 + 0.25 * np.abs(s.x), 52 - 0.3 * np.abs(s.x)
        lines = (np.abs(s.x) < 2.5) & (s.y < 60)
        lines |= (np.abs(s.y - coronal) < 3) | (np.abs(s.y - lambdoid) < 3)
        fontanelle = np.abs(s.x) + np.abs(s.y + 28) < 22
        return (s.z > 0) & (lines | fontanelle)

    def _paint_brain(self, s: Space, hu: np.ndarray) -> None:
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
        tentorium = inside & (s.y > 12) & (np.abs(s.z + 18 - 22 * np.maximum(1 - np.abs(s.x) / 45, 0)) < 0.6)
        hu[tentorium & (np.abs(s.x) > 8)] = 48.0
        hu[inside & (s.vault < 5) & (np.abs(s.x) < 4) & (s.y > 0) & (s.z > -20)] = 52.0  # sagittal sinus
        if self.calcified[0]:
            for side in (-1, 1):
                hu[s.ellipsoid((side * 19 * self.ventricle**0.5, 27, 9), (2.5, 4, 4), 0.4, 11 + side)] = 220.0
        if self.calcified[1]:
            hu[s.ellipsoid((0.5, 17, 2), (2.5, 3, 3), 0.3, 10)] = 180.0

    def _paint_bright(self, s: Space, hu: np.ndarray) -> None:
        inside, bright = s.depth > 0, self.bright
        if bright.sinus:
            band = inside & (s.vault < 6) & (s.y > 10) & (np.abs(s.x) > 6)
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

    def _paint_petrous(self, s: Space, hu: np.ndarray) -> np.ndarray:
        """Petrous bone between the middle and the posterior fossa, and the dorsum sellae; bool where they are."""
        solid = np.zeros(s.x.shape, bool)
        if s.z.min() > -20 or s.z.max() < -70:
            return solid
        for side in (-1, 1):
            along = (s.x * side - 38) * 0.80 + (s.y - 10) * 0.60
            across = -(s.x * side - 38) * 0.60 + (s.y - 10) * 0.80
            petrous = (np.abs(along) < 28) & (np.abs(across) < 7 + 0.1 * along) & (np.abs(s.z + 43) < 10)
            petrous &= s.vault > -self.skull_mm
            hu[petrous] = min(1000.0, self.bone_hu[0])
            if self.scale == 1:
                hu[petrous & (s.wobble(20 + side, 3.0, petrous) > 1.0)] = -600.0  # air cells
            solid |= petrous
        dorsum = (np.abs(s.x) < 8) & (np.abs(s.y - 1) < 2) & (s.z < -12) & (s.z > -26)
        hu[dorsum] = min(800.0, self.bone_hu[0])
        return solid | dorsum

    def _csf(self, s: Space) -> np.ndarray:
        """Ventricles, sulci, cisterns and the rim below the skull."""
        return self._ventricles(s) | self._subarachnoid(s)

    def _ventricles(self, s: Space) -> np.ndarray:
        v = self.ventricle
        lateral = np.zeros(s.x.shape, bool)
        for side in (-1, 1):
            body = s.ellipsoid((side * (9 + 3 * v), -6 + 0.2 * s.z.mean(), 18), (5 * v, 28, 7 * v), 0.1, 31)
            horn = s.ellipsoid((side * (14 + 5 * v), 30, 10), (6 * v, 14, 8 * v), 0.1, 32)
            lateral |= body | horn
        third = s.ellipsoid((0, 2, 2), (2.2 * v, 13, 10))
        fourth = s.ellipsoid((0, 32, -38), (6, 5, 8))
        return (lateral | third | fourth) & (s.depth > 8)

    def _cistern(self, s: Space) -> np.ndarray:
        return (s.depth > 0) & s.ellipsoid((0, -10, -14), (15, 11, 8), 0.25, 33)

    def _subarachnoid(self, s: Space) -> np.ndarray:
        inside = s.depth > 0
        rim = inside & (s.depth < 1.5)
        sulci = inside & (s.depth < 14) & (s.z > -25)
        sulci &= np.abs(s.wobble(2, 6.0, sulci)) < 0.16
        sylvian = inside & (np.abs(s.y + 8 + 0.25 * s.z) < 3) & (np.abs(s.x) > 32) & (np.abs(s.z + 2) < 12)
        return rim | sulci | sylvian | self._cistern(s)

    def hemorrhage(self, kind: str, s: Space) -> tuple[np.ndarray, float]:
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
            return (where & fat) | self._cistern(s), attenuation - 8
        middle, top = rng.uniform(-0.6, 0.6), rng.uniform(12, 35)
        angle = np.arctan2(s.y, self.side * s.x + 1e-6)
        if kind == "subdural":  # a crescent along the hemisphere
            thick = rng.uniform(7, 13)
            profile = 1 - ((angle - middle) / rng.uniform(0.9, 1.25)) ** 2 - ((s.z - top) / 42) ** 2
        else:  # epidural: a lens between sutures
            thick = rng.uniform(14, 24)
            profile = 1 - ((angle - middle) / rng.uniform(0.38, 0.55)) ** 2 - ((s.z - top) / 28) ** 2
        return inside & (s.vault < thick * np.maximum(profile, 0)) & (self.side * s.x > 0), attenuation
