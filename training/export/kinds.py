"""What names kinds of hemorrhage, put beside weights and named in their manifest."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from hemseg.errors import HemsegError
from hemseg.kinds import KindHead
from hemseg.manifest import FORMAT, Manifest

from ..data.tables import Row, parse_integer, read_table

NUMBERS = "kinds.npz"


def attach_kinds(source: Path, weights: Path, measured: Path | None = None) -> None:
    """Put what `training.pipeline.kinds.train_kinds` wrote beside weights, and name it in their manifest.

    Args:
        source: folder that holds the file; it may be the weights' own.
        weights: folder with a manifest.
        measured: ``summary.csv`` of `kinds-measure`; how often the kinds were right in test scans is kept with them.

    Raises:
        HemsegError: the file is missing, is not what it should be or reads another slice classifier than the weights
            have; or there is no manifest.
    """
    manifest = Manifest.read(weights)
    if not (source / NUMBERS).is_file():
        raise HemsegError(f"{source}: has no {NUMBERS}; run `python -m training kinds-train` first.")
    head = KindHead.read(source / NUMBERS)
    if head.has_maps and str(head.classifier) != manifest.classifier_sha256:
        raise HemsegError(f"{source / NUMBERS}: was made for another slice classifier than {weights} has.")
    if measured:
        replace(head, right=np.array(right_in_test(measured))).write(weights / NUMBERS)
    elif source.resolve() != weights.resolve():
        shutil.copyfile(source / NUMBERS, weights / NUMBERS)
    digest = hashlib.sha256((weights / NUMBERS).read_bytes()).hexdigest()
    replace(manifest, kinds_file=NUMBERS, kinds_sha256=digest, format=FORMAT).write(weights)


def right_in_test(summary: Path) -> tuple[int, int]:
    """Of how many lesions of test scans the kind was right, and of how many in all; what was painted does not count.

    Raises:
        HemsegError: the table says nothing of a test split.
    """
    faults: list[str] = []
    rows = read_table(summary, ("data", "split", "kind", "judged", "right"), faults)
    own = [r for r in rows if r.get("split") == "test" and r.get("kind") == "all" and r.get("data") != "painted"]
    if faults or not own:
        raise HemsegError(f"{summary}: does not say how often kinds were right in a test split.", faults)
    return _total(own, "right"), _total(own, "judged")


def _total(rows: list[Row], column: str) -> int:
    return sum(parse_integer(row.get(column)) or 0 for row in rows)
