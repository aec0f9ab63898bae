"""Data sets on disk, and what the stages read of them.

A data set is a folder: ``images/<case>.nii.gz`` (or .nii, .mha, .mhd, .nrrd), ``slice_labels.csv`` (case, slice,
hemorrhage, and optionally blanked, missing: slices to leave out; intraventricular and so on: subtypes) and optionally
``split.csv`` (case, split, and optionally patient). Without ``slice_labels.csv`` the labels are made from the masks
(any class > 0). Masks are looked for in ``masks/`` or ``reference/``; only the evaluation and the supervised upper
bound open them, never a weakly supervised stage. INSTANCE 2022's layout, ``data/`` and ``label/``, is read as it is.
Cases that are named in ``left_out.txt``, one per line, are left out, which each run reports.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.io.formats import stem, suffix
from hemseg.preprocessing import Settings, Strip, working_image
from hemseg.resources import cores
from hemseg.scan import read

from ..console import console
from .tables import RowFaults, decoded, read_table, whole_number, yes_or_no

SPLITS = ("train", "val", "test")
IMAGES = ("images", "data")
MASKS = ("masks", "reference", "label")
LEFT_OUT = "left_out.txt"
DO_WITHOUT = f"Fix it, or name its case in {LEFT_OUT}, in the data set's folder, to do without."
SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}  # of SPLITS, in tables
SUBTYPES = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")


@dataclass(frozen=True)
class Case:
    """One scan. ``labels``: (slice,) of 1, 0, or -1 for slices to leave out, in the file's order."""

    name: str
    image: Path
    split: str
    labels: tuple[int, ...]
    reference: Path | None
    subtypes: tuple[str, ...] = ()
    patient: str = ""  # who was scanned; the case itself where the data set does not say
    source: str = ""  # the data set's name, where several are put together


@dataclass(frozen=True)
class DataSet:
    """A data set that has been read and checked (without its voxels)."""

    name: str
    cases: tuple[Case, ...]

    def part(self, *splits: str) -> list[Case]:
        """The cases of some splits."""
        return [case for case in self.cases if case.split in splits]

    def without(self, names: Collection[str]) -> DataSet:
        """The same without the cases of some of the data sets that were put together in it."""
        return replace(self, cases=tuple(c for c in self.cases if c.source not in names)) if names else self

    def sources(self) -> list[DataSet]:
        """The data sets that were put together in it; itself, if it is one."""
        names = dict.fromkeys(case.source for case in self.cases)
        if len(names) == 1:
            return [self]
        return [DataSet(name, tuple(c for c in self.cases if c.source == name)) for name in names]

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the names, files and labels of the cases, not with their split or where and when they were put.

        Hashing reads every file; it takes about as long as copying the data set.
        """
        digest = hashlib.sha256()
        for case in self.cases:
            with case.image.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(repr((case.name, content, case.labels)).encode())
        return digest.hexdigest()[:16]

    @property
    def splits(self) -> dict[str, str]:
        """The split of each case."""
        return {case.name: case.split for case in self.cases}


def together(datasets: list[DataSet]) -> DataSet:
    """Several data sets as one. A case's name then begins with that of its data set; a patient stays in one split.

    Raises:
        HemsegError: two of them have the same name.
    """
    if len(datasets) == 1:
        return datasets[0]
    names = [dataset.name for dataset in datasets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise HemsegError(f"two data sets are called {', '.join(twice)}; rename a folder.")
    cases = (
        replace(case, name=f"{d.name}_{case.name}", patient=f"{d.name}_{case.patient}", source=d.name)
        for d in datasets
        for case in d.cases
    )
    return DataSet(" + ".join(names), tuple(cases))


def load_dataset(folder: str | Path, seed: int = 0) -> DataSet:
    """Read a data set's tables.

    Args:
        folder: see the module's docstring.
        seed: of the split (70/10/20 by patient) where there is no ``split.csv``.

    Raises:
        HemsegError: it lists all that is wrong with the data set at once.
    """
    folder = Path(folder)
    place = next((folder / name for name in IMAGES if (folder / name).is_dir()), folder / IMAGES[0])
    files = [p for p in sorted(place.glob("*")) if suffix(p) and not p.name.startswith(".")]
    images = {stem(p): p for p in files}
    if not images:
        raise HemsegError(f"{folder}: is not a data set: it has no images in {place}.")
    faults: list[str] = []
    if twice := sorted(name for name, count in Counter(map(stem, files)).items() if count > 1):
        faults.append(f"cases with two images in {place.name}: {_some(twice)}")
    left_out = _left_out(folder, images, faults)
    images = {name: path for name, path in images.items() if name not in left_out}
    references = _references(folder, images, left_out, faults)
    subtypes: dict[str, set[str]] = {}
    if (folder / "slice_labels.csv").exists():
        labels = _read_labels(folder / "slice_labels.csv", images, left_out, subtypes, faults)
    else:
        labels = {} if faults else _labels_of_masks(references)
    patients: dict[str, str] = {}
    split = _read_split(folder / "split.csv", list(labels), seed, patients, faults)
    if labels and (missing := sorted(set(images) - set(labels))):
        faults.append(f"images without slice labels or masks: {_some(missing)}")
    if not labels and not faults:
        faults.append("has neither slice_labels.csv nor masks")
    if faults:
        raise HemsegError(f"{folder}: the data set has faults:", faults)
    return DataSet(
        folder.resolve().name,
        tuple(
            Case(
                n,
                images[n],
                split[n],
                labels[n],
                references.get(n),
                tuple(sorted(subtypes.get(n, ()))),
                patients.get(n, n),
            )
            for n in images
        ),
    )


def case_name(text: str, cases: Collection[str]) -> str:
    """A table's name of a case, which may be that of its file."""
    return stem(Path(text)) if text not in cases and suffix(Path(text)) else text


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _left_out(folder: Path, images: dict[str, Path], faults: list[str]) -> set[str]:
    """The cases that the user wants to do without, those with damaged images for instance."""
    path = folder / LEFT_OUT
    lines = (decoded(path.read_bytes()) or "").splitlines() if path.exists() else []
    names = {case_name(line.strip(), images) for line in lines if line.strip()}
    if unknown := sorted(names - set(images)):
        faults.append(f"{LEFT_OUT} names cases that are not there: {_some(unknown)}")
    if names:
        console.print(f"{folder.resolve().name}: {len(names)} cases are left out, as {LEFT_OUT} says: ", end="")
        console.print(_some(sorted(names)), markup=False, highlight=False)
    return names


def _references(folder: Path, images: dict[str, Path], left_out: set[str], faults: list[str]) -> dict[str, Path]:
    """Masks by case; a mask without image or of another geometry is a fault."""
    place = next((folder / name for name in MASKS if (folder / name).is_dir()), None)
    if place is None:
        return {}
    masks = {stem(p): p for p in sorted(place.glob("*")) if suffix(p) and not p.name.startswith(".")}
    if alone := sorted(set(masks) - set(images) - left_out):
        faults.append(f"masks without an image: {_some(alone)}")
    both = {name: path for name, path in masks.items() if name in images}
    if other := [name for name, path in both.items() if not _same_grid(images[name], path)]:
        faults.append(f"masks whose size, spacing, origin or direction is not their image's: {_some(other)}")
    return both


def _header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise HemsegError(f"{path}: cannot be read; it is damaged or no image.") from None
    return reader


def _same_grid(a: Path, b: Path) -> bool:
    """Same size, and geometry equal but for what a float32 header rounds (a hundredth of a millimetre)."""
    x, y = _header(a), _header(b)
    close = (np.allclose(getattr(x, f)(), getattr(y, f)(), atol=1e-2) for f in ("GetOrigin", "GetDirection"))
    return x.GetSize() == y.GetSize() and np.allclose(x.GetSpacing(), y.GetSpacing(), atol=1e-3) and all(close)


def _read_labels(
    path: Path, images: dict[str, Path], left_out: set[str], subtypes: dict[str, set[str]], faults: list[str]
) -> dict[str, tuple[int, ...]]:
    rows: dict[str, dict[int, int]] = {}
    wrong = RowFaults(path.name)
    for row in read_table(path, ("case", "slice", "hemorrhage"), faults):
        name, z, label = case_name(row.get("case"), images), whole_number(row.get("slice")), row.get("hemorrhage")
        if name in left_out:
            continue
        skip = any(yes_or_no(row.get(flag)) for flag in ("blanked", "missing"))
        positive = yes_or_no(label)
        if z is None or z < 0:
            wrong.add(row, "the slice is no number from 0 on")
        elif positive is None and not skip:
            wrong.add(row, f"hemorrhage is {label!r}, neither 0 nor 1" if label else "hemorrhage is empty")
        elif rows.setdefault(name, {}).setdefault(z, value := -1 if skip else int(bool(positive))) != value:
            wrong.add(row, "contradicts an earlier row for the same slice")
        subtypes.setdefault(name, set()).update(s for s in SUBTYPES if yes_or_no(row.get(s)))
    faults += wrong.sentences()
    labels = {}
    for name, by_slice in rows.items():
        if name in left_out:
            continue
        if name not in images:
            faults.append(f"slice labels without an image: {name}")
            continue
        try:
            n = int(_header(images[name]).GetSize()[2])
        except HemsegError as error:
            faults.append(f"{error} {DO_WITHOUT}")
            continue
        if sorted(by_slice) != list(range(n)):
            from_one = " from 1 on; does the table count from 1? The first slice is 0" * (min(by_slice) == 1)
            faults.append(f"{name}: has {n} slices, but labels for {len(by_slice)}{from_one}")
            continue
        labels[name] = tuple(by_slice[z] for z in range(n))
    return labels


def _labels_of_masks(references: dict[str, Path]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(read_reference(path).max(axis=(1, 2)).tolist()) for name, path in references.items()}


def _read_split(path: Path, names: list[str], seed: int, patients: dict[str, str], faults: list[str]) -> dict[str, str]:
    if not path.exists():
        order = np.random.default_rng(seed).permutation(sorted(names))
        ends = np.cumsum([round(0.7 * len(order)), max(1, round(0.1 * len(order)))])
        return {str(n): SPLITS[int(np.searchsorted(ends, i, side="right"))] for i, n in enumerate(order)}
    split: dict[str, str] = {}
    parts: dict[str, set[str]] = {}
    before = len(faults)
    rows = read_table(path, ("case", "split"), faults)
    if len(faults) > before:
        return {}
    for row in rows:
        name = case_name(row.get("case"), names)
        part = SPELLINGS.get(row.get("split").lower(), row.get("split").lower())
        patients[name] = row.get("patient") or name
        parts.setdefault(patients[name], set()).add(part)
        if split.setdefault(name, part) != part:
            faults.append(f"{name}: is in two splits")
        if part not in SPLITS:
            faults.append(f"{path.name}, row {row.number}: split {row.get('split')!r} is none of {', '.join(SPLITS)}")
    faults += [f"patient {p}: is in two splits" for p, s in parts.items() if len(s) > 1 and p not in split]
    if missing := sorted(set(names) - set(split)):
        faults.append(f"cases without a split: {_some(missing)}")
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


def prepare(dataset: DataSet, settings: Settings, folder: Path, strip: Strip | None = None) -> dict[str, int]:
    """Bring every case to the working grid, with the very functions that inference uses; one .npz each.

    Raises:
        HemsegError: it lists all the images that cannot be used; the others are prepared.
    """

    def one(case: Case) -> str:
        target, partial = folder / f"{case.name}.npz", folder / f".{case.name}.part.npz"
        if target.exists():
            return ""
        try:
            volume = read(case.image)
        except HemsegError as error:
            return f"{error} {DO_WITHOUT}"
        working = working_image(volume, settings, strip)
        labels = _labels_on_working_grid(case, volume.direction, working.grid.slab)
        np.savez_compressed(partial, hu=working.hu, intracranial=working.intracranial, labels=labels)
        partial.replace(target)
        return ""

    with ThreadPoolExecutor(
        cores()
    ) as pool:  # reading, filtering and compressing run beside each other, without the GIL
        try:
            messages = pool.map(one, dataset.cases)
            faults = [fault for fault in track(messages, "prepare", len(dataset.cases), console=console) if fault]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if faults:
        raise HemsegError(f"{len(faults)} of {len(dataset.cases)} images cannot be used:", faults)
    return {"cases": len(dataset.cases), **{part: len(dataset.part(part)) for part in SPLITS}}


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


def training_scans(run: Path, most: int, seed: int) -> Iterator[Prepared]:
    """Some of the prepared scans that a run learns from (those with pseudo-labels), drawn at random."""
    names = sorted(path.stem for path in (run / "pseudolabel").glob("*.npz"))
    for i in np.random.default_rng(seed).permutation(len(names))[:most]:
        with np.load(run / "prepare" / f"{names[i]}.npz") as file:
            yield Prepared(names[i], "", file["hu"], file["intracranial"], file["labels"])
