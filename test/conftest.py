from __future__ import annotations

import os
import shutil

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # a worker a core: torch's threads would wait for one another; before its import
    os.environ["OMP_NUM_THREADS"] = "1"

import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from hashlib import sha256
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from onnx import helper, numpy_helper

from hemseg.manifest import Manifest, default_weights
from hemseg.model import Model, load
from training.data.phantom import Grid, Phantom, make_phantom, write_image

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


@pytest.fixture(scope="session")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that takes no time, for tests of what goes on around it: above 62 HU all is hemorrhage."""
    folder = tmp_path_factory.mktemp("light")
    manifest = Manifest.read(default_weights())
    low, high = manifest.preprocessing.hu_range
    steep = 60.0
    weight = np.zeros((1, len(manifest.preprocessing.channels), 1, 1, 1), np.float32)
    weight[0, 0] = steep
    bias = np.float32([-steep * (62 - low) / (high - low)])
    patch = (16, 48, 40)
    shapes = (("image", weight.shape[1]), ("probability", 1))
    image, probability = (helper.make_tensor_value_info(n, 1, ["batch", c, *patch]) for n, c in shapes)
    nodes = [
        helper.make_node("Conv", ["image", "weight", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")]
    graph = helper.make_graph(nodes, "light", [image], [probability], constants)
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    (folder / "light.onnx").write_bytes(network)
    shutil.copy(default_weights() / manifest.strip_file, folder)
    replace(
        manifest,
        name="light",
        file="light.onnx",
        sha256=sha256(network).hexdigest(),
        patch=patch,
        threshold=0.5,
        outline_threshold=0.0,
        min_peak=0.6,
        range_thresholds=(0.4, 0.6),
        classifier_file="",
        classifier_sha256="",
        min_slice_probability=0.0,
        doubt_slice_probability=0.0,
        kinds_file="",
        kinds_sha256="",
        preprocessing=replace(manifest.preprocessing, in_plane_mm=4.0, slice_mm=9.0, level_hu=0.0),
    ).write(folder)
    return folder


@pytest.fixture(scope="session")
def bleed_scan(bleed: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same phantom as a file, not to be changed."""
    path = tmp_path_factory.mktemp("bleed") / "bleed.nii.gz"
    write_image(bleed.volume.hu, bleed.volume, path)
    return path


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


def hemseg_here(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process, without its handling of signals: faster where only files matter."""
    from hemseg.cli import app
    from hemseg.errors import HemsegError

    out, err, code = StringIO(), StringIO(), 0
    words = [str(argument) for argument in arguments]
    with redirect_stdout(out), redirect_stderr(err):
        try:
            app(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except HemsegError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
    assert code == check, err.getvalue()[-3000:]
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def training(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line of the training, in this process: importing torch takes ten CPU seconds."""
    from training.__main__ import main

    words = ["training", *map(str, arguments)]
    out, err, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    assert code == check, err.getvalue()[-3000:]
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
