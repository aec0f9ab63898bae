"""Data sets on disk, and what the stages read of them.

A data set is a folder: ``images/<case>.nii.gz`` (or .nii, .mha, .nrrd), ``slice_labels.csv`` (case, slice,
hemorrhage, and optionally blanked, missing: slices to leave out) and optionally ``split.csv`` (case, split).
Without ``slice_labels.csv`` the labels are made from ``masks/`` (any voxel > 0). Reference masks are looked for
in ``masks/`` or ``reference/``; only the evaluation opens them, never a weakly supervised stage.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.preprocessing import Settings, working_image
from hemseg.volume import mask_name, read, stem, suffix
from training.stages import console

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Case:
    """One patient's scan. ``labels``: (slice,) of 1, 0, or -1 for slices to leave out, in the file's order."""

    name: str
    image: Path
    split: str
    labels: tuple[int, ...]
    reference: Path | None


@dataclass(frozen=True)
class DataSet:
    """A data set that has been read and checked (without its voxels)."""

    name: str
    cases: tuple[Case, ...]

    def part(self, *splits: str) -> list[Case]:
        """The cases of some splits."""
        return [case for case in self.cases if case.split in splits]

    @property
    def fingerprint(self) -> str:
        """Changes with the names, sizes, times, labels and split of the cases."""
        digest = hashlib.sha256()
        for case in self.cases:
            stat = case.image.stat()
            digest.update(repr((case.name, stat.st_size, stat.st_mtime_ns, case.split, case.labels)).encode())
        return digest.hexdigest()[:16]


def load_dataset(folder: str | Path, seed: int = 0) -> DataSet:
    """Read a data set's tables.

    Args:
        folder: see the module's docstring.
        seed: of the split (70/10/20 by patient) where there is no ``split.csv``.

    Raises:
        HemsegError: it lists all that is wrong with the data set at once.
    """
    folder = Path(folder)
    images = {stem(p): p for p in sorted((folder / "images").glob("*")) if suffix(p)}
    if not images:
        raise HemsegError(f"{folder}: is not a data set: it has no images in {folder / 'images'}.")
    references = _references(folder, images)
    faults: list[str] = []
    if (folder / "slice_labels.csv").exists():
        labels = _read_labels(folder / "slice_labels.csv", images, faults)
    else:
        labels = _labels_of_masks(references)
    split = _read_split(folder / "split.csv", list(labels), seed, faults)
    if missing := sorted(set(images) - set(labels)):
        faults.append(f"images without slice labels or masks: {', '.join(missing[:5])}")
    if faults:
        raise HemsegError(f"{folder}: the data set has faults:\n  " + "\n  ".join(faults))
    cases = [Case(n, images[n], split[n], labels[n], references.get(n)) for n in images]
    return DataSet(folder.resolve().name, tuple(cases))


def _references(folder: Path, images: dict[str, Path]) -> dict[str, Path]:
    places = [p for p in (folder / "masks", folder / "reference") if p.is_dir()]
    return {n: p / mask_name(i) for p in places[:1] for n, i in images.items() if (p / mask_name(i)).exists()}


def _read_labels(path: Path, images: dict[str, Path], faults: list[str]) -> dict[str, tuple[int, ...]]:
    rows: dict[str, dict[int, int]] = {}
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        if lacking := {"case", "slice", "hemorrhage"} - set(reader.fieldnames or ()):
            faults.append(f"{path.name} lacks the columns {', '.join(sorted(lacking))}")
            return {}
        for row in reader:
            skip = any(row.get(flag) == "1" for flag in ("blanked", "missing"))
            rows.setdefault(row["case"], {})[int(row["slice"])] = -1 if skip else int(row["hemorrhage"])
    labels = {}
    for name, by_slice in rows.items():
        if name not in images:
            faults.append(f"slice labels without an image: {name}")
            continue
        n = _slices(images[name])
        if sorted(by_slice) != list(range(n)):
            faults.append(f"{name}: has {n} slices, but labels for {len(by_slice)}")
            continue
        labels[name] = tuple(by_slice[z] for z in range(n))
    return labels


def _slices(path: Path) -> int:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return int(reader.GetSize()[2])


def _labels_of_masks(references: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(read_reference(path).max(axis=(1, 2)).tolist()) for name, path in references.items()}


def _read_split(path: Path, names: list[str], seed: int, faults: list[str]) -> dict[str, str]:
    if not path.exists():
        order = np.random.default_rng(seed).permutation(sorted(names))
        ends = np.cumsum([round(0.7 * len(order)), max(1, round(0.1 * len(order)))])
        return {str(n): PARTS[int(np.searchsorted(ends, i, side="right"))] for i, n in enumerate(order)}
    split: dict[str, str] = {}
    with path.open(newline="") as stream:
        for row in csv.DictReader(stream):
            if split.setdefault(row["case"], row["split"]) != row["split"]:
                faults.append(f"{row['case']}: is in two splits")
            if row["split"] not in PARTS:
                faults.append(f"{row['case']}: split {row['split']!r} is none of {', '.join(PARTS)}")
    if missing := sorted(set(names) - set(split)):
        faults.append(f"cases without a split: {', '.join(missing[:5])}")
    return split


def read_reference(path: Path) -> np.ndarray:
    """A reference mask, uint8 (z, y, x) in the file's own order; any class counts as hemorrhage."""
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0, dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A scan on the working grid: float32 ``hu``, bool ``intracranial``, int8 ``labels`` (-1: leave out); (z, y, x)."""

    name: str
    split: str
    hu: np.ndarray
    intracranial: np.ndarray
    labels: np.ndarray


def prepare(dataset: DataSet, settings: Settings, folder: Path) -> dict[str, int]:
    """Bring every case to the working grid, with the very functions that inference uses; one .npz each."""
    for case in track(dataset.cases, "prepare", console=console):
        target = folder / f"{case.name}.npz"
        if target.exists():
            continue
        volume = read(case.image)
        working = working_image(volume, settings)
        labels = _labels_on_working_grid(case, volume.direction, working.grid.slab)
        partial = folder / f".{case.name}.part.npz"
        np.savez_compressed(partial, hu=working.hu, intracranial=working.intracranial, labels=labels)
        partial.replace(target)
    return {"cases": len(dataset.cases), **{part: len(dataset.part(part)) for part in PARTS}}


def _labels_on_working_grid(case: Case, direction: tuple[float, ...], slab: int) -> np.ndarray:
    """Labels along the working grid's slices: in LPS order; an averaged slab is positive if one of its slices is."""
    along_z = np.array(direction).reshape(3, 3)[:, 2]
    if np.argmax(np.abs(along_z)) != 2:
        raise HemsegError(f"{case.image}: slices are not axial, so slice labels cannot be used.")
    labels = np.array(case.labels, dtype=np.int8)[:: 1 if along_z[2] > 0 else -1]
    return np.maximum.reduceat(labels, np.arange(0, len(labels), slab))


def prepared(folder: Path, dataset: DataSet, *splits: str) -> Iterator[Prepared]:
    """Read prepared cases of some splits."""
    for case in dataset.part(*splits):
        with np.load(folder / f"{case.name}.npz") as file:
            yield Prepared(case.name, case.split, file["hu"], file["intracranial"], file["labels"])
