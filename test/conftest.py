from __future__ import annotations

import os

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # a worker a core: torch's threads would wait for one another; before its import
    os.environ["OMP_NUM_THREADS"] = "1"

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from hemseg.model import Model, load
from training.phantom import Grid, Phantom, make_phantom, write_image

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
COARSE = Grid((16, 96, 96), (2.4, 2.4, 9.0))
OBLIQUE = (0.98, -0.17, 0.11, 0.19, 0.96, -0.21, -0.07, 0.22, 0.97)


SLOWEST_FIRST = ("test_smoke", "test_fitting", "test_folders", "test_recipe", "test_dicom", "test_server")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first, so that parallel workers end together."""
    names = [*SLOWEST_FIRST, ""]
    items.sort(key=lambda item: next(i for i, name in enumerate(names) if item.path.stem.startswith(name)))


@pytest.fixture(scope="session")
def bleed() -> Phantom:
    """A small phantom with a hemorrhage."""
    return make_phantom(3, ("intraparenchymal",), COARSE)


@pytest.fixture(scope="session")
def model() -> Model:
    return load(device="cpu")


@pytest.fixture
def scan(bleed: Phantom, tmp_path: Path) -> Path:
    """The same phantom as a file, alone in a folder."""
    path = tmp_path / "in" / "case.nii.gz"
    write_image(bleed.volume.hu, bleed.volume, path)
    return path


def orthonormal(seed: int) -> tuple[float, ...]:
    """A random rotation matrix, row by row."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return tuple(float(v) for v in (q * np.linalg.det(q)).ravel())


def random_image(seed: int, shape: tuple[int, int, int] = (4, 6, 8)) -> sitk.Image:
    """Noise with a spacing, an origin and an oblique direction that no format holds by luck."""
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, shape).astype(np.int16))
    image.SetSpacing([float(v) for v in rng.uniform(0.3, 6, 3)])
    image.SetOrigin([float(v) for v in rng.uniform(-200, 200, 3)])
    image.SetDirection(orthonormal(seed))
    return image


def same_geometry(a: Path, b: Path) -> bool:
    x, y = sitk.ReadImage(str(a)), sitk.ReadImage(str(b))
    return all(getattr(x, f)() == getattr(y, f)() for f in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a.astype(bool) & b.astype(bool)).sum()) / max(1.0, float(a.sum() + b.sum()))


def python(*arguments: object, check: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project's folder; it must end with the exit code ``check`` and without a traceback."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == check, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def process(*arguments: object, check: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the container's entry point, ``process.py``."""
    return python("process.py", *arguments, check=check, **environment)


def hemseg(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return python("-m", "hemseg.cli", *arguments, check=check)


def training(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line of the training."""
    return python("-m", "training", *arguments, check=check)
