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
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.progress import track

from hemseg.errors import HemsegError
from hemseg.io.files import atomic_write
from hemseg.preprocessing import Settings, Strip, working_image
from hemseg.resources import cores
from hemseg.scan import read
from hemseg.volume import Volume

from ..console import console
from .dataset_files import DO_WITHOUT, files_by_case
from .dataset_tables import SPLITS, left_out_cases, read_labels, read_split
from .references import labels_of_masks, references_of
from .tables import join_names

IMAGES = ("images", "data")


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


def merge_datasets(datasets: list[DataSet]) -> DataSet:
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
        seed: of the split (70/10/20 of the cases) where there is no ``split.csv``, which would say whose they are.

    Raises:
        HemsegError: it lists all that is wrong with the data set at once.
    """
    folder = Path(folder)
    place = next((folder / name for name in IMAGES if (folder / name).is_dir()), folder / IMAGES[0])
    faults: list[str] = []
    images = files_by_case(place, "images", faults)
    if not images:
        raise HemsegError(f"{folder}: is not a data set: it has no images in {place}.")
    left_out = left_out_cases(folder, images, faults)
    images = {name: path for name, path in images.items() if name not in left_out}
    references = references_of(folder, images, left_out, faults)
    subtypes: dict[str, set[str]] = {}
    table = folder / "slice_labels.csv"
    if table.exists():
        labels = read_labels(table, images, left_out, subtypes, faults)
    else:
        labels = {} if faults else labels_of_masks(references, faults)
    patients: dict[str, str] = {}
    split = read_split(folder / "split.csv", list(labels), seed, patients, faults)
    labelled = set(labels if table.exists() else references)  # a mask that cannot be read is a fault of its own
    if labelled and (missing := sorted(set(images) - labelled)):
        faults.append(f"images without slice labels or masks: {join_names(missing)}")
    if not labels and not faults:
        faults.append("has neither slice_labels.csv nor masks")
    if faults:
        raise HemsegError(f"{folder}: the data set has faults:", dict.fromkeys(faults))  # two may find the same
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
        target = folder / f"{case.name}.npz"
        if target.exists():
            return ""
        try:
            volume = read(case.image)
            by_slice = labels_upwards(case, volume)
        except HemsegError as error:
            return f"{error} {DO_WITHOUT}"
        working = working_image(volume, settings, strip)
        # an averaged slab is positive if one of its slices is
        labels = np.maximum.reduceat(by_slice, np.arange(0, len(by_slice), working.grid.slab))
        with atomic_write(target) as partial:
            np.savez_compressed(partial, hu=working.hu, intracranial=working.intracranial, labels=labels)
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


def labels_upwards(case: Case, volume: Volume) -> np.ndarray:
    """Labels of a case's slices, int8 (slice,) of 1, 0 and -1 (leave out), from inferior to superior.

    Args:
        volume: the case's scan.

    Raises:
        HemsegError: the slices of its file are not axial, as those of the working grid are.
    """
    along_z = volume.cosines[:, 2]
    if np.argmax(np.abs(along_z)) != 2:
        raise HemsegError(f"{case.image}: slices are not axial, so slice labels cannot be used; store axial ones.")
    return np.array(case.labels, dtype=np.int8)[:: 1 if along_z[2] > 0 else -1]


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
