"""The tables of a data set: slice labels, the split, cases that are left out. All that is wrong with them is listed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from hemseg.errors import HemsegError
from hemseg.io.formats import stem, suffix

from ..console import console
from .dataset_files import DO_WITHOUT, LEFT_OUT, image_header
from .tables import RowFaults, decode_text, join_names, parse_boolean, parse_integer, read_table

SPLITS = ("train", "val", "test")
SPELLINGS = {"training": "train", "validation": "val", "valid": "val", "testing": "test"}  # of SPLITS, in tables
SUBTYPES = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")


def case_name(text: str, cases: Collection[str]) -> str:
    """A table's name of a case, which may be that of its file."""
    return stem(Path(text)) if text not in cases and suffix(Path(text)) else text


def left_out_cases(folder: Path, images: dict[str, Path], faults: list[str]) -> set[str]:
    """The cases that the user wants to do without, those with damaged images for instance."""
    path = folder / LEFT_OUT
    lines = (decode_text(path.read_bytes()) or "").splitlines() if path.exists() else []
    names = {case_name(line.strip(), images) for line in lines if line.strip()}
    if unknown := sorted(names - set(images)):
        faults.append(f"{LEFT_OUT} names cases that are not there: {join_names(unknown)}")
    if names:
        console.print(f"{folder.resolve().name}: {len(names)} cases are left out, as {LEFT_OUT} says: ", end="")
        console.print(join_names(sorted(names)), markup=False, highlight=False)
    return names


def read_labels(
    path: Path, images: dict[str, Path], left_out: set[str], subtypes: dict[str, set[str]], faults: list[str]
) -> dict[str, tuple[int, ...]]:
    """The labels of ``slice_labels.csv`` by case: 1, 0, or -1 for slices to leave out, in the file's order of slices.

    Args:
        images: by case; a slice label is needed for each of their slices.
        left_out: cases whose rows do not matter.
        subtypes: gets the subtypes that a case's rows name.
        faults: gets what is wrong, a sentence each.
    """
    rows: dict[str, dict[int, int]] = {}
    wrong = RowFaults(path.name)
    for row in read_table(path, ("case", "slice", "hemorrhage"), faults):
        name, z, label = case_name(row.get("case"), images), parse_integer(row.get("slice")), row.get("hemorrhage")
        if name in left_out:
            continue
        skip = any(parse_boolean(row.get(flag)) for flag in ("blanked", "missing"))
        positive = parse_boolean(label)
        if z is None or z < 0:
            wrong.add(row, "the slice is not a number from 0 on")
        elif positive is None and not skip:
            wrong.add(row, f"hemorrhage is {label!r}, neither 0 nor 1" if label else "hemorrhage is empty")
        elif rows.setdefault(name, {}).setdefault(z, value := -1 if skip else int(bool(positive))) != value:
            wrong.add(row, "contradicts an earlier row for the same slice")
        subtypes.setdefault(name, set()).update(s for s in SUBTYPES if parse_boolean(row.get(s)))
    faults += wrong.sentences()
    labels = {}
    for name, by_slice in rows.items():
        if name in left_out:
            continue
        if name not in images:
            faults.append(f"slice labels without an image: {name}")
            continue
        try:
            n = int(image_header(images[name]).GetSize()[2])
        except HemsegError as error:
            faults.append(f"{error} {DO_WITHOUT}")
            continue
        if sorted(by_slice) != list(range(n)):
            from_one = " from 1 on; does the table count from 1? The first slice is 0" * (min(by_slice) == 1)
            lacking = [str(z) for z in range(n) if z not in by_slice]
            which = f" (slice {join_names(lacking)} has none)" if lacking and not from_one else ""
            faults.append(f"{name}: has {n} slices, but labels for {len(by_slice)}{which}{from_one}")
            continue
        labels[name] = tuple(by_slice[z] for z in range(n))
    return labels


def read_split(path: Path, names: list[str], seed: int, patients: dict[str, str], faults: list[str]) -> dict[str, str]:
    """The split of each case, from ``split.csv``, or drawn: 70/10/20 of the cases.

    Args:
        seed: of the draw where there is no table.
        patients: gets the patient of each case that the table has.
        faults: gets what is wrong, a sentence each.
    """
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
        faults.append(f"cases without a split: {join_names(missing)}")
    return split
