"""How a process of hemseg's own starts: with what it needs. In somebody's program `import hemseg` changes nothing."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterable
from pathlib import Path

OBJECTS = 50_000  # that are made before Python looks for garbage among them; imports make 300,000, none of it garbage


def start_lean() -> None:
    """Call it before NumPy is imported: each thread of its OpenBLAS, hardly used here, takes 32 MB and waits, spinning;
    and Python's search for garbage takes a twentieth of a short run."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.set_threshold(OBJECTS)
    atexit.register(gc.freeze)  # nor does it look through all that there is once more before it ends


def import_nibabel(scans: Iterable[Path]) -> None:
    """Import nibabel, if one of the scans is NIfTI, without pydicom and its decoders, which it takes along where they
    are installed: a scan has no use for them, and they take a tenth of a short run. (To nibabel a DICOM extension of
    a header is bytes then.) Call it before threads begin.
    """
    nifti = any(scan.name.lower().endswith((".nii", ".nii.gz")) for scan in scans)
    if not nifti or {"nibabel", "pydicom"} & set(sys.modules):
        return
    sys.modules["pydicom"] = None  # type: ignore[assignment]  # nibabel goes on without what cannot be imported
    try:
        import nibabel  # noqa: F401
    finally:
        del sys.modules["pydicom"]
