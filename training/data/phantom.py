"""Head CT phantoms in full HU with known hemorrhage: anyone may have them, nobody is in them.

    python -m training phantoms FOLDER --cases 20 --seed 1     a data set with slice labels, masks and a split
    python -m training samples                                 the scans of test/cases and their truth

A phantom is a function of its seed, its grid and its options. Anatomy (head size and tilt, skull thickness, ventricles,
sulci, calcifications, headrest) is drawn first and hemorrhage afterwards from a generator of its own, so one
seed with and without hemorrhage is the same head. What is bright without being blood (calcified basal ganglia and
falx, dense sinuses, a shunt, tubes outside the head) has a generator of its own, too. `training.data.anatomy` has the
skull and what is in it, `training.data.face` what lies below: muscles, jaw, orbits, sinuses, spine.

Structures are painted in patient coordinates (mm, LPS, origin near the third ventricle), on five sub-slices or more
per 5 mm slice, whose average gives the partial volume. HU after Hounsfield's scale and the usual values of head CT:
fat -100 to -80, CSF 8, white matter 29, gray matter 37, muscle 55-65, acute blood 55-78, falx and sinus 50,
calcification 75-400, diploe 500, cortical bone 1200 (300-700 in children), teeth 2200.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.progress import track
from scipy import ndimage

from hemseg.io.writers import to_itk
from hemseg.volume import Volume

from ..console import console
from .anatomy import Head, Options
from .head_space import Grid

KINDS = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
NOISE_HU = 4.0  # standard deviation
_SUBSLICE_MM = 1.25
_PIXELS_MM, _NOISE_HU = (0.5, 0.6, 0.75, 0.9, 1.0, 1.0, 1.25), (0.5, 5.0)  # of `protocol`
_SECOND_HEAD_MM, _SECOND_HEAD_SCALE, _SECOND_HEAD_SEED = 182.0, 0.88, 7919  # so far to the left of the first


@dataclass(frozen=True, eq=False)
class Phantom:
    """A scan and what is known about it.

    Attributes:
        volume: HU.
        intracranial: bool (z, y, x), where half of the voxel or more lies in the cranial cavity: brain, CSF, vessels
            and blood between the inner table, the base of the skull and the foramen magnum.
        truth: by kind, bool (z, y, x) where blood fills half of the voxel or more.
    """

    volume: Volume
    intracranial: np.ndarray
    truth: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def mask(self) -> np.ndarray:
        """All kinds together, uint8 (z, y, x)."""
        empty = np.zeros(self.volume.hu.shape, bool)
        return np.logical_or.reduce([empty, *self.truth.values()]).astype(np.uint8)


def make_phantom(
    seed: int,
    kinds: tuple[str, ...] = (),
    grid: Grid | None = None,
    headrest: bool = True,
    noise_hu: float = NOISE_HU,
    options: Options | None = None,
) -> Phantom:
    """Make one phantom.

    Args:
        seed: of anatomy, hemorrhage and noise.
        kinds: the hemorrhages that it has, of `KINDS`; none for a healthy head.
        grid: where it is sampled.
        headrest: paint the scanner's headrest behind the head.
        noise_hu: standard deviation of the (spatially correlated) noise.
        options: a child's skull, a craniectomy, a second head, how it lies; by default an adult's whole head.

    Raises:
        ValueError: an unknown kind.
    """
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kinds of hemorrhage {sorted(unknown)}; known: {', '.join(KINDS)}")
    grid, options = grid or Grid(), options or Options()
    head = Head.drawn(seed, options)
    second = Head.drawn(seed + _SECOND_HEAD_SEED, replace(options, craniectomy=False))
    second = replace(second, scale=_SECOND_HEAD_SCALE * second.scale)
    step = _SUBSLICE_MM if options.skull == "adult" else _SUBSLICE_MM / 2  # thin bone needs more of them
    sub = max(1, round(grid.spacing[2] / step))
    hu = np.zeros(grid.shape, np.float32)
    intracranial = np.zeros(grid.shape, bool)
    truth = {kind: np.zeros(grid.shape, bool) for kind in kinds}
    for z in range(grid.shape[0]):
        space = head.space(grid, z, sub)
        tissue, inside = head.tissue(space, headrest)
        if options.second_head:
            other, _ = second.tissue(second.space(grid, z, sub, (_SECOND_HEAD_MM, 0.0, 0.0)), headrest=False)
            np.copyto(tissue, other, where=(tissue < -900) & (other > -900))
        for kind in kinds:
            blood, attenuation = head.hemorrhage(kind, space)
            blood &= inside
            if kind == "intraparenchymal":  # edema around it
                near = ndimage.binary_dilation(blood, np.ones((1, 3, 3)), max(1, round(3 / grid.spacing[0])))
                tissue[near & inside & ~blood & (tissue > 15) & (tissue < 45)] -= 8.0
            tissue[blood] = attenuation
            truth[kind][z] = blood.mean(axis=0) >= 0.5
        hu[z] = tissue.mean(axis=0)
        intracranial[z] = inside.mean(axis=0) >= 0.5
    hu = _acquired(hu, np.random.default_rng([seed, 3]), grid, noise_hu)
    return Phantom(Volume(hu, grid.spacing, grid.origin, grid.direction), intracranial, truth)


def _acquired(hu: np.ndarray, rng: np.random.Generator, grid: Grid, noise_hu: float) -> np.ndarray:
    """In-plane blur of the scanner, noise with its grain, whole HU as a scanner stores them."""
    blur = 0.45 / grid.spacing[0]
    hu = ndimage.gaussian_filter(hu, (0, blur, blur))
    grain = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0, 0.8, 0.8))
    noisy = hu + grain * np.where(hu > -500, noise_hu, 0.0) / grain.std()
    return np.clip(np.round(noisy), -1024, 3071).astype(np.float32)


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
    sitk.WriteImage(to_itk(array.astype(dtype), volume), str(path), useCompression=True)


def protocol(seed: int, grid: Grid) -> tuple[Grid, float]:
    """How another scanner takes the same field of view: its grid, and the standard deviation of its noise in HU.

    Pixels of half a millimeter to the coarse ones of a wide field of view; noise from what iterative reconstruction
    of thick slices leaves to a low dose's.

    Args:
        seed: of both.
        grid: its field of view and its slices are kept.
    """
    rng = np.random.default_rng([seed, 11])
    pixel, noise_hu = float(rng.choice(_PIXELS_MM)), float(np.exp(rng.uniform(*np.log(_NOISE_HU))))
    rows, columns = (round(n * mm / pixel) for n, mm in zip(grid.shape[1:], grid.spacing[1::-1], strict=True))
    return replace(grid, shape=(grid.shape[0], rows, columns), spacing=(pixel, pixel, grid.spacing[2])), noise_hu


def write_dataset(
    folder: Path, n: int, seed: int, grid: Grid, split: tuple[float, float] = (0.6, 0.15), varied: bool = False
) -> None:
    """Write a data set: ``images/``, ``masks/``, ``slice_labels.csv`` with subtypes, and ``split.csv``.

    Args:
        split: fractions of train and val; the rest is test. Every part has healthy heads if it has five.
        varied: each case has pixels and noise of its own (`protocol`).
    """
    drawn = list(cases(n, seed))
    taken = [protocol(own, grid) if varied else (grid, NOISE_HU) for _, own, _ in drawn]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        made = pool.map(write_case, repeat(folder), drawn, *zip(*taken, strict=True))
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


def write_case(
    folder: Path, case: tuple[str, int, tuple[str, ...]], grid: Grid, noise_hu: float = NOISE_HU
) -> list[dict[str, str | int]]:
    """Write image and mask of one phantom; returns its rows of ``slice_labels.csv``."""
    name, seed, kinds = case
    phantom = make_phantom(seed, kinds, grid, noise_hu=noise_hu)
    write_image(phantom.volume.hu, phantom.volume, folder / "images" / f"{name}.nii.gz")
    write_image(phantom.mask, phantom.volume, folder / "masks" / f"{name}.nii.gz", np.uint8)
    rows: list[dict[str, str | int]] = []
    for z in range(grid.shape[0]):
        present = {kind: int(kind in phantom.truth and phantom.truth[kind][z].any()) for kind in KINDS}
        rows.append({"case": name, "slice": z, "hemorrhage": max(present.values()), **present})
    return rows
