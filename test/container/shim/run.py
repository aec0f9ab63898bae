"""The container under the platform's own shim, or, where there is no Docker, the entry point of this checkout.

    python test/container/shim/run.py [--short] [--without-container] [--keep FOLDER]

Sets up sagemaker-shim and moto for Python 3.12 with uv, lays out cases in each form of ``inputs.json`` that occurs,
runs them with both of the platform's ways of calling (``exec``: hemseg:latest; ``invoke``: hemseg:serve), and reads the
outputs as the platform does, with panimg. Says so and ends with 0 where Python 3.12 or the packages are not available.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
from panimg.image_builders.metaio_mhd_mha import image_builder_mhd

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "test")]

from helpers.series import write_series  # noqa: E402

from hemseg.scan import read  # noqa: E402

ENVIRONMENT = ROOT / ".shim"
PACKAGES = ("sagemaker-shim==0.8.3", "moto[s3,server]==5.2.5")
CASE = ROOT / "test" / "cases" / "phantom-lobar.mha"
EXPECTED = ROOT / "test" / "expected" / "phantom-lobar.mha"
MASK = "images/hemorrhage-segmentation/output.mha"
NOT_IMAGE = {"slug": "age", "relative_path": "age.json"}
SERIALIZER = {"slug": "head-ct", "super_kind": "Image", "relative_path": "images/ct"}  # with a kind
KIT = {"slug": "head-ct", "is_image_kind": True, "is_json_kind": False, "relative_path": "images/ct"}


@dataclass(frozen=True)
class Run:
    """A case, and how it is called.

    Attributes:
        socket: as ``inputs.json`` describes it.
        case: ``image``, ``dicom`` or ``broken``.
        outputs: what is expected; a case without any fails, with ``reason`` in the last line of stderr.
    """

    method: str
    socket: dict[str, Any]
    case: str = "image"
    outputs: frozenset[str] = frozenset({MASK})
    reason: str = ""
    memory_mb: int = 7168
    environment: dict[str, str] = field(default_factory=dict)


ALL = {"HEMSEG_REPORT_PATH": "report.json", "HEMSEG_HEAT_MAP_PATH": "images/heat-map"}
RUNS = {
    "exec, serializer": Run("exec", SERIALIZER | {"kind": "Image"}),
    "exec, kit, all outputs": Run(
        "exec", KIT, outputs=frozenset({MASK, "report.json", "images/heat-map/output.mha"}), environment=ALL
    ),
    "exec, serializer, DICOM image set": Run("exec", SERIALIZER | {"kind": "DICOM Image Set"}, "dicom"),
    "exec, kit, DICOM image set": Run("exec", KIT | {"is_dicom_image_kind": True}, "dicom"),
    "exec, 1 GiB": Run("exec", SERIALIZER | {"kind": "Image"}, memory_mb=1024),
    "exec, 300 MiB": Run(
        "exec", SERIALIZER | {"kind": "Image"}, outputs=frozenset(), reason="of memory", memory_mb=300
    ),
    "exec, broken": Run("exec", SERIALIZER | {"kind": "Image"}, "broken", frozenset(), "u.mha: cannot be read as .mha"),
    "invoke, serializer": Run("invoke", SERIALIZER | {"kind": "Image"}),
    "invoke, kit, DICOM image set": Run("invoke", KIT | {"is_dicom_image_kind": True}, "dicom"),
    "invoke, broken": Run(
        "invoke", SERIALIZER | {"kind": "Image"}, "broken", frozenset(), "u.mha: cannot be read as .mha"
    ),
}
SHORT = ("exec, kit, all outputs", "exec, broken", "invoke, kit, DICOM image set")  # for CI


class NotAvailableError(Exception):
    """What the shim needs cannot be had here."""


def set_up() -> Path:
    """The Python of an environment with the shim; made with uv if it is missing.

    Raises:
        NotAvailableError: Python 3.12, uv or the packages are not available.
    """
    python = ENVIRONMENT / "python" / "bin" / "python"
    if (ENVIRONMENT / "done").is_file():
        return python
    uv = shutil.which("uv")
    try:
        if not uv:
            subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT / "tools"], check=True)
            uv = str(ENVIRONMENT / "tools" / "bin" / "uv")
            subprocess.run([Path(uv).with_name("pip"), "install", "--quiet", "uv"], check=True)
        make = [uv, "venv", "--quiet", "--clear", "--python", _python_312() or "3.12", ENVIRONMENT / "python"]
        subprocess.run(make, check=True)  # uv brings Python 3.12 along, where it may
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *PACKAGES], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotAvailableError(f"{error}") from None
    (ENVIRONMENT / "done").touch()
    return python


def _python_312() -> str:
    """A Python 3.12 that pyenv has but does not show."""
    pyenv = shutil.which("pyenv")
    if not pyenv:
        return ""
    found = subprocess.run([pyenv, "latest", "3.12"], capture_output=True, text=True, check=False)
    where = subprocess.run([pyenv, "prefix", found.stdout.strip()], capture_output=True, text=True, check=False)
    return f"{where.stdout.strip()}/bin/python" if found.returncode == where.returncode == 0 else ""


def lay_out(run: Run, folder: Path) -> None:
    """The files of a case, as the platform has them in its store."""
    socket = folder / run.socket["relative_path"]
    socket.mkdir(parents=True)
    if run.case == "dicom":
        write_series(socket, read(CASE))
    elif run.case == "broken":
        (socket / "u.mha").write_text("no scan")
    else:
        shutil.copy(CASE, socket / "u.mha")
    (folder / "age.json").write_text("70")
    flags = {"is_image_kind": False, "is_json_kind": True} if "is_image_kind" in run.socket else {"super_kind": "Value"}
    other = {"socket": NOT_IMAGE | flags, "value": 70, "file": None, "image": None}
    item = {"socket": run.socket, "value": None, "file": None, "image": {"pk": "1", "name": "head"}}
    (folder / "inputs.json").write_text(json.dumps([other, item]))


def call(run: Run, python: Path, folder: Path, container: bool) -> None:
    """Run a case; its results are in ``folder/results`` then."""
    settings = run.environment | {"SHIM_MEMORY_MB": str(run.memory_mb)}
    script, case, results = str(HERE / "drive.py"), folder / "case", folder / "results"
    results.mkdir()
    if container:
        image = "hemseg:serve" if run.method == "invoke" else "hemseg:latest"
        asked = ["docker", "image", "inspect", "--format", "{{.Config.User}}", image]
        user = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        base = subprocess.run([python, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, check=True)
        mounts = [base.stdout.decode().strip(), str(ENVIRONMENT), str(HERE), str(case)]
        command = ["docker", "run", "--rm", "--network", "none", "--user", "0", "--shm-size=1g"]
        command += [f"--volume={path}:{path}:ro" for path in mounts] + [f"--volume={results}:{results}"]
        command += [f"--env={name}={value}" for name, value in (settings | {"SHIM_USER": user}).items()]
        command += ["--entrypoint", str(python), image, script, run.method, str(case), str(results)]
        subprocess.run([*command, "python", "-m", "process"], check=True)
        return
    for name in ("input", "output", "data"):
        (folder / name).mkdir()
        settings[f"SHIM_{name.upper()}"] = str(folder / name)
    entry = [sys.executable, str(ROOT / "process.py"), "--input", str(folder / "input")]
    entry += ["--output", str(folder / "output"), *(["--mode", "serve"] if run.method == "invoke" else [])]
    command = [str(python), script, run.method, str(case), str(results), *entry]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | settings)


def check(run: Run, folder: Path) -> str:
    """Raises AssertionError unless the platform would take the outputs, or show the reason; returns what to note."""
    results = folder / "results"
    assert json.loads((results / "setup.json").read_text())["return_code"] == 0, "the server did not start"
    result = json.loads((results / "result.json").read_text())
    written = {str(p.relative_to(results / "outputs")) for p in (results / "outputs").rglob("*") if p.is_file()}
    assert written == run.outputs, f"wrote {written or 'nothing'}: {result}"
    if not run.outputs:
        lines = result["user_process_last_stderr_lines"]
        assert result["return_code"] != 0
        assert lines, "nothing on stderr"
        assert run.reason in lines[-1], f"the last line of stderr is {lines[-1]!r}"
        return lines[-1].strip()
    assert result["return_code"] == 0, result
    for name in (n for n in written if n.endswith(".mha")):
        (seen,) = image_builder_mhd(files={results / "outputs" / name})
        assert (seen.segments is None) == ("heat-map" in name), f"{name}: segments {seen.segments}"
    image, expected = sitk.ReadImage(str(results / "outputs" / MASK)), sitk.ReadImage(str(EXPECTED))
    made, wanted = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(expected)
    dice = 2 * np.count_nonzero(made & wanted) / (made.sum() + wanted.sum())
    assert dice > 0.99, f"Dice {dice:.3f} with the expected mask"
    scan = read(folder / "case" / run.socket["relative_path"] / ("" if run.case == "dicom" else "u.mha"))
    assert (image.GetSpacing(), image.GetOrigin(), image.GetDirection()) == (scan.spacing, scan.origin, scan.direction)
    seconds = results / "seconds.txt"
    return f"{seconds.read_text().strip()} s from start to /health" if seconds.exists() else ""


def main() -> int:
    """Do all; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help=f"only: {'; '.join(SHORT)}")
    parser.add_argument("--without-container", action="store_true", help="process.py of this checkout, no Docker")
    parser.add_argument("--keep", type=Path, help="an empty folder for cases and results")
    arguments = parser.parse_args()
    try:
        python = set_up()
    except NotAvailableError as error:
        print(f"the shim is not tested: Python 3.12 and {', '.join(PACKAGES)} are not available here ({error})")
        return 0
    runs = {name: run for name, run in RUNS.items() if not arguments.short or name in SHORT}
    failed = 0
    with TemporaryDirectory() as temporary:
        for number, (name, run) in enumerate(runs.items()):
            folder = (arguments.keep or Path(temporary)) / f"{number}"
            try:
                lay_out(run, folder / "case")
                call(run, python, folder, not arguments.without_container)
                note = check(run, folder)
                print(f"{name}: passed{f' ({note})' if note else ''}", flush=True)
            except (AssertionError, OSError, subprocess.CalledProcessError) as error:
                failed += 1
                print(f"error: {name}: {error}", file=sys.stderr, flush=True)
    print(f"{len(runs) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
