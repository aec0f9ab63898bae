"""What lies below and in front of a phantom's skull: muscles, fat, orbits, nose, sinuses, jaw, spine.

Muscles of 55-65 HU lie against the skull base as in a patient: what is bright, soft and next to bone, and is no blood.
Everything is symmetric; positions are those of an adult of 144 x 180 mm, and follow the width and length of the head.
Each part is an ellipsoid (center, radii; mm) or a rule of a few lines; later parts cover earlier ones.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .head_space import Space

Ellipsoid = tuple[tuple[float, float, float], tuple[float, float, float]]

MUSCLES: tuple[Ellipsoid, ...] = (
    ((54, -36, -48), (8, 18, 28)),  # temporalis, below the zygomatic arch
    ((58, -32, -88), (9, 19, 27)),  # masseter
    ((33, -30, -60), (16, 20, 14)),  # lateral pterygoid
    ((34, -27, -86), (11, 17, 25)),  # medial pterygoid
    ((50, 22, -98), (9, 15, 44)),  # sternocleidomastoid
    ((42, 12, -74), (5, 8, 12)),  # digastric
    ((9, -1, -100), (8, 5, 50)),  # longus
    ((18, -12, -80), (10, 10, 30)),  # soft palate's and pharynx' muscles
    ((0, -54, -98), (23, 32, 17)),  # tongue
    ((0, -30, -82), (14, 11, 4)),  # soft palate
    ((42, -62, -88), (3, 16, 14)),  # buccinator
    ((0, -50, -118), (32, 30, 5)),  # floor of the mouth
    ((12, -28, -150), (9, 5, 40)),  # strap muscles
)
GLANDS: tuple[tuple[Ellipsoid, float], ...] = (
    (((55, 3, -86), (11, 13, 24)), 12.0),  # parotid, fatty
    (((36, -25, -113), (10, 13, 10)), 42.0),  # submandibular
)
SPINE_MM = 27.0  # y of the middle of the spinal canal


class Head(Protocol):
    """What the face takes over from its head, see `training.data.anatomy.Head`."""

    @property
    def radii(self) -> tuple[float, float, float]: ...
    @property
    def bone_hu(self) -> tuple[float, float]: ...
    @property
    def muscle_hu(self) -> float: ...
    @property
    def fat_hu(self) -> float: ...
    @property
    def seed(self) -> int: ...


class _Points:
    """Points outside the skull, and what is painted on them."""

    def __init__(self, head: Head, space: Space, below_skin: np.ndarray) -> None:
        self.space, self.below_skin = space, below_skin
        self.x = np.abs(space.x) * (72 / head.radii[0])
        self.y = space.y * (90 / head.radii[1])
        self.z = space.z
        self.hu = np.full(space.x.shape, head.fat_hu, np.float32)
        self.bone_hu = head.bone_hu
        self.deep = below_skin > 4

    def inside(self, shape: Ellipsoid) -> np.ndarray:
        (cx, cy, cz), (rx, ry, rz) = shape
        if self.z.max() < cz - rz or self.z.min() > cz + rz:
            return np.zeros(self.x.shape, bool)
        return ((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2 + ((self.z - cz) / rz) ** 2 < 1

    def between(self, low: float, high: float) -> np.ndarray:
        return (self.z > low) & (self.z < high)

    def ring(self, center_y: float, radii: tuple[float, float]) -> np.ndarray:
        """Mm from an ellipse in the axial plane, centred in the midline."""
        r = np.sqrt((self.x / radii[0]) ** 2 + ((self.y - center_y) / radii[1]) ** 2)
        return np.abs(r - 1) * (radii[0] + radii[1]) / 2

    def bone(self, where: np.ndarray, hu: float) -> None:
        self.hu[where] = min(hu, 1.2 * self.bone_hu[0])


def paint_face(head: Head, s: Space, hu: np.ndarray, outline: np.ndarray, outside: np.ndarray) -> None:
    """Paint face and neck, in place.

    Args:
        hu, outline, outside: (level, y, x). ``outline``: mm below the scalp; becomes mm below the skin of the whole
            head. ``outside``: where neither the cranial cavity nor its bone is.
    """
    near = outside if s.z.min() < 20 else outside & (outline > 0)
    p = _Points(head, s.at(near), outline[near])
    if s.z.min() < 0:
        np.maximum(p.below_skin, _face_and_neck(p), out=p.below_skin)
        p.deep = p.below_skin > 4
        _paint_soft(p, head)
        _paint_spine(p)
        _paint_jaw(p)
        _paint_sinuses(p, head)
        _paint_orbits(p)
        p.hu[(p.below_skin < 2) & (p.hu < 0)] = 40.0  # skin
        _paint_airways(p)
    shown = p.below_skin > 0
    values = hu[near]
    values[shown] = p.hu[shown]
    hu[near] = values
    outline[near] = p.below_skin


def _face_and_neck(p: _Points) -> np.ndarray:
    """Mm below the skin of face, nose, ears and neck; negative outside."""
    x, y, z = p.x, p.y, p.z
    narrow = np.clip((-60 - z) / 60, 0, 1)  # from the cheeks to the chin
    face = (1 - np.sqrt((x / (66 - 8 * narrow)) ** 2 + ((y + 22) / (76 - 4 * narrow)) ** 2)) * 68
    face = np.minimum(np.minimum(face, -10 - z), z + 124)
    neck = (1 - np.sqrt((x / 60) ** 2 + ((y - 18) / 52) ** 2)) * 56
    neck = np.minimum(neck, -45 - z)
    skin = np.maximum(face, neck)
    nose = 1 - np.sqrt((x / 14) ** 2 + ((y + 97) / 15) ** 2 + ((z + 58) / 22) ** 2)
    ear = 1 - np.sqrt(((x - 77) / 6) ** 2 + ((y - 10) / 13) ** 2 + ((z + 40) / 28) ** 2)
    return np.maximum(skin, np.maximum(nose * 14, ear * 6)).astype(np.float32)


def _paint_soft(p: _Points, head: Head) -> None:
    streak = np.abs(p.space.wobble(50, 9.0, p.deep)) < 0.07  # fat between the bundles
    for number, shape in enumerate(MUSCLES):
        p.hu[p.inside(shape) & p.deep & ~streak] = head.muscle_hu + (number % 3 - 1) * 1.5
    back = p.deep & (p.below_skin > 6) & (p.y > SPINE_MM - 4) & (p.z < -56) & (p.x < 46)
    planes = (np.abs(p.below_skin - 16) < 1) | (np.abs(p.below_skin - 27) < 1) | (p.x < 1.2)
    p.hu[back & ~planes & ~streak] = head.muscle_hu
    for shape, value in GLANDS:
        p.hu[p.inside(shape) & p.deep] = value
    vessels = ((p.x - 28) ** 2 + (p.y - 0) ** 2 < 16) | ((p.x - 34) ** 2 + (p.y - 9) ** 2 < 36)
    p.hu[vessels & (p.z < -58)] = 44.0


def _paint_spine(p: _Points) -> None:
    """Occipital condyles, atlas, axis and what follows, around a canal of CSF with the cord in it."""
    x, y, z = p.x, p.y, p.z
    if z.min() > -58:
        return
    level = (-z - 72) % 19  # mm below the upper edge of a vertebra; the last 5 of 19 are disc and ligament
    vertebra = (z < -72) & (level < 14)
    body = (x / 14) ** 2 + ((y - 6) / 9) ** 2 < 1
    p.hu[body & (z < -91)] = 85.0  # disc
    p.bone(body & (z < -91) & vertebra, 350)
    rim = (np.sqrt((x / 14) ** 2 + ((y - 6) / 9) ** 2) > 0.82) | (level < 1.5) | (level > 12.5)
    p.bone(body & (z < -91) & vertebra & rim, 900)
    p.bone(p.inside(((0, 5, -82), (6, 6, 14))), 800)  # dens
    arch = (p.ring(SPINE_MM, (19, 20)) < 3.5) & vertebra & (y > 10)
    p.bone(arch, 850)
    p.bone((x < 3) & (y > 46) & (y < 62) & vertebra & (z < -91), 700)  # spinous processes
    p.bone((((x - 24) / 9) ** 2 + ((y - 19) / 8) ** 2 < 1) & vertebra, 750)  # lateral masses
    p.bone(p.inside(((15, 18, -70), (7, 11, 7))), 900)  # occipital condyles
    canal = ((x / 14) ** 2 + ((y - SPINE_MM) / 15) ** 2 < 1) & (z < -58)
    p.hu[canal] = 8.0
    p.hu[canal & ((x / 7) ** 2 + ((y - SPINE_MM + 1) / 5.5) ** 2 < 1)] = 32.0


def _paint_jaw(p: _Points) -> None:
    """Mandible, teeth, maxilla, zygoma, and the bones that the pterygoid muscles come from."""
    x, y, z = p.x, p.y, p.z
    body = p.ring(-32, (46, 57))
    front = (y < -30) & p.between(-121, -97)
    p.bone(front & (body < 5.5), 1300)
    p.bone(front & (body < 2.8) & p.between(-118, -99), 300)  # marrow
    slant = y + 25 + 0.25 * (z + 80)
    ramus = (np.abs(x - 47) < 4) & (np.abs(slant) < 15) & p.between(-112, -55)
    p.bone(ramus, 1200)
    p.bone(ramus & (np.abs(x - 47) < 2) & (np.abs(slant) < 12), 350)
    p.bone(p.inside(((48, -8, -54), (9, 5, 7))), 900)  # condyle
    arch = p.ring(-60, (28, 32))
    gum = (y < -55) & p.between(-97, -80) & (arch < 5.5)
    p.bone(gum, 800)
    teeth = gum & (arch < 4) & p.between(-94, -84) & (np.cos(9 * np.arctan2(y + 60, x)) > -0.7)
    p.hu[teeth] = 1.8 * p.bone_hu[0]
    p.bone((np.abs(z + 79) < 1.6) & (y < -38) & (arch > 2) & ((x / 28) ** 2 + ((y + 60) / 32) ** 2 < 1), 700)  # palate
    p.bone(p.inside(((24, -62, -60), (20, 22, 20))) & p.deep, 800)  # maxilla; its sinus comes later
    p.bone(p.inside(((49, -66, -52), (12, 9, 12))) & p.deep, 900)  # zygoma
    p.bone((p.ring(-28, (67, 56)) < 2.2) & (y > -70) & (y < -4) & p.between(-53, -45), 900)  # its arch
    p.bone((np.abs(x - 16 - 0.2 * (y + 45)) < 1.4) & (y > -45) & (y < -24) & p.between(-78, -48), 700)  # plates
    p.bone(p.inside(((51, 20, -54), (11, 15, 18))), 900)  # mastoid


def _paint_sinuses(p: _Points, head: Head) -> None:
    x, y, z = p.x, p.y, p.z
    if z.min() > 5:
        return
    p.bone(p.inside(((0, -24, -36), (16, 22, 19))), 600)  # sphenoid
    p.bone((x < 13) & (y > -2) & (y < 16) & p.between(-66, -26), 600)  # clivus
    mucosa = float(np.random.default_rng([head.seed, 8]).uniform(0, 6))  # some have swollen linings
    for center, radii in (((24, -61, -60), (16, 18, 17)), ((7, -28, -35), (6.2, 13, 9)), ((8, -87, -8), (7, 4, 9))):
        whole = p.inside((center, radii)) & p.deep
        p.hu[whole] = 25.0
        rx, ry, rz = (max(r - mucosa, r / 2) for r in radii)
        p.hu[whole & p.inside((center, (rx, ry, rz)))] = -1000.0
    cells = (x < 13) & (y > -84) & (y < -44) & p.between(-44, -21) & p.deep  # ethmoid
    wall = np.abs(p.space.wobble(52, 5.0, cells)) < 0.28
    p.bone(cells, 300)
    p.hu[cells & ~wall] = -900.0
    mastoid = p.inside(((50, 19, -52), (8, 11, 13)))
    p.hu[mastoid & (p.space.wobble(53, 3.0, mastoid) > 0.1)] = -700.0


def _paint_orbits(p: _Points) -> None:
    x, y, z = p.x, p.y, p.z
    if z.min() > 0 or z.max() < -60:
        return
    orbit: Ellipsoid = ((30, -68, -36), (19, 25, 17))
    wall = p.inside(((30, -68, -36), (21.5, 27.5, 19.5))) & (y > -86) & p.deep
    p.bone(wall & ~p.inside(orbit), 700)
    p.hu[p.inside(orbit)] = -88.0
    for offset in (-11, 11):  # lateral and medial rectus, converging behind the globe
        along = np.clip((y + 78) / 36, 0, 1)
        line = (x - (30 + offset * (1 - along) - 12 * along)) ** 2 + ((z + 36) / 2) ** 2
        p.hu[p.inside(orbit) & (line < 5) & (y > -80)] = 50.0
    nerve = (x - 31 + 14 * np.clip((y + 66) / 26, 0, 1)) ** 2 + (z + 35) ** 2 < 6
    p.hu[p.inside(orbit) & nerve & (y > -68)] = 35.0
    globe = ((31, -78, -36), (12.5, 12.5, 12.5))
    p.hu[p.inside(globe)] = 40.0  # sclera
    p.hu[p.inside((globe[0], (11.5, 11.5, 11.5)))] = 12.0
    p.hu[p.inside(((31, -86, -36), (4.5, 2.2, 4.5)))] = 85.0  # lens


def _paint_airways(p: _Points) -> None:
    x, y, z = p.x, p.y, p.z
    nasal = (x < 14) & (y < -40) & (y > -92) & p.between(-77, -44) & (p.below_skin > 2)
    p.hu[nasal] = 40.0  # mucosa
    turbinate = p.inside(((9, -62, -67), (3.5, 22, 6))) | p.inside(((9, -60, -54), (3, 20, 4)))
    p.hu[nasal & (x > 1.2) & (x < 13) & ~turbinate] = -1000.0
    p.hu[nasal & (x < 0.6)] = 200.0  # septum
    pharynx = ((x / 13) ** 2 + ((y + 16) / 6) ** 2 < 1) & (z < -60)
    p.hu[((x / 16) ** 2 + ((y + 16) / 9) ** 2 < 1) & (z < -58) & (p.hu < 0)] = 45.0
    p.hu[pharynx] = -1000.0
    choana = (x < 12) & (x > 1) & (y > -42) & (y < -14) & p.between(-76, -60)
    p.hu[choana] = -1000.0
    p.hu[(x > 36) & (np.abs(y - 4) < 3) & (np.abs(z + 47) < 3.5)] = -1000.0  # ear canal
