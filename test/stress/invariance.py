"""Does the mask move with the patient? ``python test/stress/invariance.py [--phantoms 6]`` prints the table of
docs/reliability.md: volumes of phantoms that are stored, sampled and placed in other ways, against the plain ones.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from rich.progress import track

from hemseg.io.images import from_itk
from hemseg.io.writers import mask_to_itk
from hemseg.model import Model, load
from hemseg.segmentation import segment
from hemseg.volume import Volume
from training.data.phantom import Grid, make_phantom

THIN = Grid((120, 200, 200), (1.0, 1.0, 1.25))
KINDS: tuple[tuple[str, ...], ...] = (
    ("intraparenchymal",),
    ("subdural",),
    (),
    ("intraventricular",),
    ("epidural",),
    (),
)
Change = Callable[[Volume], Volume]


def stored(axes: tuple[int, int, int], flips: tuple[int, ...]) -> Change:
    """The same patient in the same place, with the voxels in another order; axes of the array (z, y, x)."""

    def change(volume: Volume) -> Volume:
        image = sitk.PermuteAxes(mask_like(volume), [2 - a for a in axes[::-1]])
        return from_itk(sitk.Flip(image, [i in flips for i in range(3)], False))

    return change


def mask_like(volume: Volume) -> sitk.Image:
    """A volume as a SimpleITK image of float32."""
    image = sitk.GetImageFromArray(volume.hu)
    image.CopyInformation(mask_to_itk(np.zeros(volume.hu.shape), volume))
    return image


def averaged(z: int, plane: int) -> Change:
    """Thicker slices or coarser pixels: means of so many of the thin ones."""

    def change(volume: Volume) -> Volume:
        d, h, w = volume.hu.shape
        hu = volume.hu.reshape(d // z, z, h // plane, plane, w // plane, plane).mean(axis=(1, 3, 5))
        mm_x, mm_y, mm_z = volume.spacing
        return replace(volume, hu=hu.astype(np.float32), spacing=(mm_x * plane, mm_y * plane, mm_z * z))

    return change


def moved(degrees: tuple[float, float, float], mm: tuple[float, float, float] = (0, 0, 0)) -> Change:
    """The head turned about x, y, z and shifted within the field of view, by linear interpolation."""

    def change(volume: Volume) -> Volume:
        image = mask_like(volume)
        centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
        transform = sitk.Euler3DTransform(centre, *np.radians(degrees).tolist(), mm)
        return from_itk(sitk.Resample(image, image, transform, sitk.sitkLinear, -1000.0))

    return change


def mirrored(volume: Volume) -> Volume:
    """Left and right exchanged: another patient, whose mask is the mirror's."""
    return replace(volume, hu=np.ascontiguousarray(volume.hu[:, :, ::-1]))


thick = averaged(4, 1)
ORDERS = [(a, f) for a in itertools.permutations(range(3)) for f in ((), (0,), (1, 2), (0, 1, 2))]
VARIANTS: dict[str, tuple[list[Change], Change]] = {
    "24 orders of the axes (5 mm slices)": ([stored(a, f) for a, f in ORDERS], thick),  # type: ignore[arg-type]
    "another origin": ([lambda v: replace(v, origin=(1234.5, -987.6, 55.0))], thick),
    "slices of 2.5 mm, against 5 mm": ([averaged(2, 1)], thick),
    "slices of 1.25 mm, against 5 mm": ([averaged(1, 1)], thick),
    "pixels of 2 mm, against 1 mm": ([averaged(4, 2)], thick),
    "mirrored, left to right": ([lambda v: mirrored(thick(v))], thick),
    "turned in the picture by 10 degrees": ([lambda v: thick(moved((0, 0, 10))(v))], thick),
    "nodded by 10 degrees": ([lambda v: thick(moved((10, 0, 0))(v))], thick),
    "shifted by 12, 8 and 2.5 mm": ([lambda v: thick(moved((0, 0, 0), (12, 8, 2.5))(v))], thick),
}


def differences(model: Model, phantoms: int) -> Iterator[tuple[str, list[float], list[float]]]:
    """For each variant: the plain volumes and the others, in mL, in pairs."""
    heads = [make_phantom(40 + i, KINDS[i % len(KINDS)], THIN).volume for i in range(phantoms)]
    plain: dict[tuple[Change, int], float] = {}
    for name, (changes, base) in VARIANTS.items():
        before, after = [], []
        some = heads[:2] if len(changes) > 1 else heads
        for i, head in enumerate(track(some, name, disable=not sys.stderr.isatty(), transient=True)):
            if (base, i) not in plain:
                plain[base, i] = segment(base(head), model).volume_ml
            for change in changes:
                start = thick(head) if name.startswith(("24", "another")) else head
                before.append(plain[base, i])
                after.append(segment(change(start), model).volume_ml)
        yield name, before, after


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=6)
    arguments = parser.parse_args()
    one = load(device="cpu", threads=1)
    print("| | masks | largest difference (mL) | largest difference of those of 1 mL and more (%) |\n|---|---|---|---|")
    for name, before, after in differences(one, arguments.phantoms):
        a, change = np.array(before), np.abs(np.array(after) - before)
        large = a >= 1
        percent = f"{100 * (change[large] / a[large]).max():.1f}" if large.any() else "-"
        print(f"| {name} | {len(a)} | {change.max():.3f} | {percent} |", flush=True)


if __name__ == "__main__":
    main()
