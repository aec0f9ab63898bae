"""The sample scans of ``test/``: phantoms, their truth, and the masks that the present weights give.

    python -m training samples      the scans, their truth, the expected masks
    python -m training kinds        how well the weights do on each kind of hemorrhage, and on healthy heads

``test/cases`` holds nothing but scans, so that it can be mounted as a container's input.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.progress import track

from hemseg.model import load
from hemseg.scan import read
from hemseg.segmentation import segment

from ..data.head_space import IDENTITY
from ..data.phantom import KINDS, Grid, make_phantom, write_image
from .metrics import overlap
from .tables import write_table

OBLIQUE = tuple(
    float(v) for v in np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]]).ravel()
)
TURNED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # RAS, as many NIfTI converters write
GRID = Grid((28, 208, 208), (1.1, 1.1, 5.0), IDENTITY)
TILTED = Grid((30, 208, 208), (1.1, 1.1, 5.0), OBLIQUE)  # gantry tilt
RAS = Grid((28, 208, 208), (1.1, 1.1, 5.0), TURNED)

CASES = {  # file name: seed, kinds of hemorrhage, grid
    "phantom-intraparenchymal.nii.gz": (13, ("intraparenchymal",), RAS),
    "phantom-intraventricular.mha": (12, ("intraparenchymal", "intraventricular"), TILTED),
    "phantom-lobar.mha": (16, ("intraparenchymal",), GRID),
    "phantom-healthy.nii.gz": (14, (), GRID),
}


def write_samples(root: Path) -> None:
    """Write ``cases``, ``truth`` and ``expected`` below ``root``; what was there under these names is replaced."""
    model = load(device="cpu")
    for name, (seed, kinds, grid) in CASES.items():
        phantom = make_phantom(seed, kinds, grid)
        scan = root / "cases" / name
        write_image(phantom.volume.hu, phantom.volume, scan)
        truth = root / "truth" / f"{name.split('.')[0]}.nii.gz"
        write_image(phantom.mask, phantom.volume, truth, np.uint8)
        result = segment(read(scan), model)
        result.save(root / "expected" / name)
        print(f"{name}: truth {phantom.mask.sum() * phantom.volume.voxel_ml:.1f} mL, found {result.volume_ml:.1f} mL")


def measure_kinds(weights: Path | None, target: Path, heads: int = 6, seed: int = 11) -> list[dict[str, object]]:
    """Segment phantoms of each kind of hemorrhage, the same heads for each, and healthy ones; write a table.

    Args:
        weights: folder with a manifest, or None for those that came with hemseg.
        target: the CSV file to write: mean true and found mL, mean Dice, phantoms in which any blood was found.
    """
    model = load(weights, "cpu")
    rows: list[dict[str, object]] = []
    for kind in (*KINDS, "none"):
        true_ml, found_ml, scores, hits = [], [], [], 0
        for number in track(range(heads), kind):
            phantom = make_phantom(seed + number, () if kind == "none" else (kind,), GRID)
            result = segment(phantom.volume, model)
            true_ml.append(float(phantom.mask.sum() * phantom.volume.voxel_ml))
            found_ml.append(result.volume_ml)
            scores.append(overlap(result.mask, phantom.mask)["dice"])
            hits += bool((result.mask & phantom.mask).any()) if kind != "none" else bool(result.mask.any())
        mean = {"true_ml": np.mean(true_ml), "found_ml": np.mean(found_ml), "dice": np.mean(scores)}
        rows.append(
            {"kind": kind, "phantoms": heads, **{k: float(v) for k, v in mean.items()}, "with_blood_found": hits}
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    write_table(rows, target)
    return rows
