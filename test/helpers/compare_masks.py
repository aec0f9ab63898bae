"""Compare masks with the expected ones: same files, uint8 of 0 and 1, the scan's geometry, Dice of at least 0.99.

    python test/helpers/compare_masks.py test/cases test/expected MASKS
    python test/helpers/compare_masks.py SCAN EXPECTED MASK          (three files)

Runs inside the container, where there is no test framework.
"""

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

MIN_DICE = 0.99


def faults(scan: Path, expected: Path, mask: Path) -> list[str]:
    """What is wrong with one mask."""
    if not mask.exists():
        return ["is missing"]
    a, b, c = (sitk.ReadImage(str(path)) for path in (scan, expected, mask))
    found = []
    for image, what in ((a, "scan"), (b, "expected mask")):
        for attribute in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            if getattr(image, attribute)() != getattr(c, attribute)():
                found.append(f"{attribute[3:].lower()} differs from the {what}'s")
    if c.GetPixelID() != sitk.sitkUInt8:
        found.append(f"voxels are {c.GetPixelIDTypeAsString()}, not uint8")
    x, y = sitk.GetArrayFromImage(b), sitk.GetArrayFromImage(c)
    if not np.isin(y, (0, 1)).all():
        found.append("has values other than 0 and 1")
    total = int((x > 0).sum()) + int((y > 0).sum())
    dice = 2 * int(((x > 0) & (y > 0)).sum()) / total if total else 1.0
    print(f"{mask.name}: Dice {dice:.4f} with the expected mask")
    if dice < MIN_DICE:
        found.append(f"Dice {dice:.4f} is below {MIN_DICE}")
    return found


def main(cases: Path, expected: Path, masks: Path) -> int:
    """Compare all; returns the exit code."""
    if cases.is_file():
        for sentence in (found := faults(cases, expected, masks)):
            print(f"error: {masks.name}: {sentence}", file=sys.stderr)
        return 1 if found else 0
    scans = sorted(p for p in cases.iterdir() if p.is_file())
    wrong = {scan.name: faults(scan, expected / scan.name, masks / scan.name) for scan in scans}
    if extra := {p.name for p in masks.iterdir()} - {scan.name for scan in scans}:
        wrong["output"] = [f"has files that nobody asked for: {', '.join(sorted(extra))}"]
    for name, sentences in wrong.items():
        for sentence in sentences:
            print(f"error: {name}: {sentence}", file=sys.stderr)
    return 1 if not scans or any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
