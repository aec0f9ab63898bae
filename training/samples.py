"""The sample scans of ``test/``: phantoms, their truth, and the masks that the present weights give.

    python -m training samples

``test/cases`` holds nothing but scans, so that it can be mounted as a container's input.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hemseg.model import load
from hemseg.segmentation import segment
from hemseg.volume import read
from training.phantom import IDENTITY, Grid, make_phantom, write_image

OBLIQUE = tuple(
    float(v) for v in np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]]).ravel()
)
TURNED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # RAS, as many NIfTI converters write
GRID = Grid((28, 208, 208), (1.1, 1.1, 5.0), IDENTITY)
TILTED = Grid((30, 208, 208), (1.1, 1.1, 5.0), OBLIQUE)  # gantry tilt
RAS = Grid((28, 208, 208), (1.1, 1.1, 5.0), TURNED)

CASES = {  # file name: seed, kinds of hemorrhage, grid
    "phantom-intraparenchymal.nii.gz": (11, ("intraparenchymal",), RAS),
    "phantom-intraventricular.mha": (12, ("intraparenchymal", "intraventricular"), TILTED),
    "phantom-epidural.mha": (13, ("epidural",), GRID),
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
