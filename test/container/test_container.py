"""Where the container writes, what it refuses to write to, and what the last line of stderr says when it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from threading import Thread

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, same_geometry
from helpers.series import write_series
from panimg.image_builders.metaio_mhd_mha import image_builder_mhd
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import HTJ2KLossless, HTJ2KLosslessRPCL

import process
from hemseg import signals
from hemseg.errors import HemsegError, OutputError, one_line
from hemseg.folder import jobs as folder_jobs
from hemseg.folder import plan as folder_plan
from hemseg.grand_challenge import batch
from hemseg.grand_challenge.outputs import check_mounts, check_outputs, is_results, plan_jobs
from hemseg.grand_challenge.server import CaseRunner, UnexpectedError
from hemseg.grand_challenge.sockets import MODES, RunPlan, Sockets, load_sockets
from hemseg.model import Model, load
from hemseg.scan import read
from training.data.phantom import Phantom, write_image

MASK = "images/hemorrhage-segmentation/output.mha"
DICOM_SET = {"slug": "ct", "kind": "DICOM Image Set", "super_kind": "Image"}
Container = Callable[..., tuple[int, str]]


@pytest.fixture
def container(
    tmp_path: Path, light: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Container]:
    """Runs ``process.py`` in this process; gives its exit code and the last line of its stderr."""
    before = {number: signal.getsignal(number) for number in signals.STOP_SIGNALS}

    def call(*arguments: object, **environment: str) -> tuple[int, str]:
        folders = ("--input", tmp_path / "in", "--output", tmp_path / "out", "--predict", tmp_path / "predict")
        words = ("process.py", *folders, "--weights", light, "--device", "cpu", *arguments)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(word) for word in words])
            for name, value in environment.items():
                patch.setenv(name, value)
            code = process.main()
        lines = capsys.readouterr().err.splitlines()
        return code, lines[-1] if lines else ""

    yield call
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def light_model(light: Path) -> Model:
    return load(light, "cpu")


def mount(source: Path, relative_path: str = "images/ct", **socket: object) -> Path:
    """``inputs.json`` with one image socket; returns the socket's folder."""
    described = {"slug": "ct", "kind": "Image", "super_kind": "Image", "relative_path": relative_path} | socket
    (source / relative_path).mkdir(parents=True, exist_ok=True)
    (source / "inputs.json").write_text(json.dumps([{"socket": described, "image": {"name": "a"}}]))
    return source / relative_path


def written(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


# ---- DICOM image sets


@pytest.mark.parametrize(
    ("relative", "outputs"),
    [("images/ct", {MASK}), ("images", {"images/images.mha", "results.json"})],
)
def test_a_dicom_image_set_is_one_case(
    container: Container, bleed: Phantom, tmp_path: Path, light_model: Model, relative: str, outputs: set[str]
) -> None:
    folder = mount(tmp_path / "in", relative, **DICOM_SET)
    write_series(folder, bleed.volume, tilt=8.0)
    (tmp_path / "in" / "age.json").write_text("70")
    tilted = f"warning: {relative}: The gantry was tilted by 8.0 degrees; slices were shifted back."
    assert container() == (0, tilted)
    assert written(tmp_path / "out") == outputs
    mask = tmp_path / "out" / next(o for o in outputs if o.endswith(".mha"))
    even, image = read(folder), sitk.ReadImage(str(mask))
    assert (image.GetSpacing(), image.GetOrigin(), image.GetDirection()) == (even.spacing, even.origin, even.direction)
    (seen,) = image_builder_mhd(files={mask})
    assert set(seen.segments or ()) == {0, 1}
    shutil.rmtree(tmp_path / "out")
    CaseRunner(light_model, tmp_path / "in", tmp_path / "out", Sockets()).invoke()
    assert written(tmp_path / "out") == outputs
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(mask))), sitk.GetArrayFromImage(image))


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL])
def test_pixels_as_the_platform_stores_them(bleed: Phantom, tmp_path: Path, syntax: str) -> None:
    paths = write_series(tmp_path / "in", bleed.volume)
    expected = read(tmp_path / "in").hu
    for path in paths:
        made = dcmread(path)
        encoded = imagecodecs.htj2k_encode(made.pixel_array, reversible=True)
        made.PixelData, made.file_meta.TransferSyntaxUID = encapsulate([encoded]), syntax
        made.save_as(path)
    assert np.array_equal(read(tmp_path / "in").hu, expected)
    pinned = (ROOT / "requirements.txt").read_text()
    assert "\npylibjpeg-openjpeg==" in pinned  # in the container, too: GDCM cannot


# ---- the reason is the last line


def broken(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("no scan")


def test_the_last_line_is_the_reason_in_each_mode(container: Container, bleed: Phantom, tmp_path: Path) -> None:
    source = tmp_path / "in"
    broken(source, "a.nii.gz")
    odd = np.clip(bleed.volume.hu, -20, 100)  # a warning that comes after the error
    write_image(odd, bleed.volume, source / "b.nii.gz")
    code, said = container()
    assert code == 1
    assert said.startswith(f"error: 1 of 2 scans failed; the first: {source}/a.nii.gz: cannot be read")
    (tmp_path / "predict").mkdir()
    code, said = container("--mode", "instance")
    assert (code, "1 of 2 scans failed" in said) == (1, True)
    for path, mode in (("images/ct", "gc"), ("images", "gc-generic")):
        shutil.rmtree(source)
        broken(mount(source, path), "u.mha")
        code, said = container("--mode", mode)
        assert code == 1
        assert said.startswith(f"error: {source}/{path}/u.mha: cannot be read")


def test_the_last_line_is_the_reason_before_any_case(container: Container, light: Path, tmp_path: Path) -> None:
    for mode in ("auto", *MODES):
        code, said = container("--mode", mode)
        assert (code, said) == (1, f"error: {tmp_path}/in: there is no such folder.")
    broken(mount(tmp_path / "in"), "u.mha")
    assert container("--mode", "exec")[1].startswith("error: mode 'exec' is not known")
    for mode in ("gc", "serve"):
        code, said = container("--mode", mode, "--port", 0, "--weights", tmp_path / "none")
        assert (code, said.startswith(f"error: {tmp_path}/none/manifest.json: there is no such file")) == (1, True)
    assert container("--mode", "serve", "--port", 99999)[1].startswith("error: port 99999: cannot be opened")
    code, said = container(HEMSEG_SOCKETS=str(light / "none.yaml"))
    assert (code, said.startswith(f"error: {light}/none.yaml: cannot be read as YAML")) == (1, True)


def test_an_exception_of_several_lines_is_one_line(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("first\n  second\r\n\x1b[31mthird")

    broken(mount(tmp_path / "in"), "u.mha")
    said = r"failed unexpectedly (RuntimeError: first second \x1b[31mthird); please report it."
    monkeypatch.setattr(folder_jobs, "read", fail)
    assert container() == (1, f"error: {tmp_path}/in/images/ct/u.mha: {said}")
    monkeypatch.setattr(batch, "plan_jobs", fail)
    assert container() == (1, f"error: {said}")
    monkeypatch.setattr(batch, "plan_jobs", lambda *_: (_ for _ in ()).throw(MemoryError))
    assert container() == (1, "error: there is not enough memory; give the container more.")


def test_who_waits_for_a_server_that_cannot_start_is_told() -> None:
    listener = process._listen(0)
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=10) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        process._answer_unavailable(listener, "no\nweights")
        head, _, body = line.recv(4096).partition(b"\r\n\r\n")
    assert head.split()[1] == b"503"
    assert json.loads(body) == {"detail": "no weights"}


def test_one_line() -> None:
    assert one_line(" a \n\n b\u2028c\x00 d  e ") == "a b c\\x00 d  e"
    assert one_line("\udcff 頭") == "\\xff 頭"
    assert len(one_line("x" * 10_000)) == 2000


# ---- nothing of the input is written to


@pytest.mark.parametrize("mode", ["auto", "serve", *MODES])
def test_one_folder_mounted_twice_is_refused_in_every_mode(
    container: Container, bleed: Phantom, tmp_path: Path, mode: str
) -> None:
    scan = mount(tmp_path / "in") / "u.nii.gz"
    write_image(bleed.volume.hu, bleed.volume, scan)
    before = scan.read_bytes()
    for name in ("out", "predict"):
        for other in (tmp_path / "in", tmp_path / "in" / "..", tmp_path / "link"):
            if other.name == "link":
                other.symlink_to(tmp_path / "in")
            elif other.name == "..":
                other = tmp_path / "in" / "images" / ".."
            option = "--output" if name == "out" else "--predict"
            if (mode, name) != ("serve", "predict"):  # which is nothing to it
                code, said = container("--mode", mode, "--port", 0, option, other)
                assert (code, "is the input folder" in said) == (1, True)
            (tmp_path / "link").unlink(missing_ok=True)
    assert written(tmp_path / "in") == {"inputs.json", "images/ct/u.nii.gz"}
    assert scan.read_bytes() == before


def test_a_bind_mount_counts(tmp_path: Path) -> None:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    bind = subprocess.run(["mount", "--bind", tmp_path / "in", tmp_path / "out"], capture_output=True, check=False)
    if bind.returncode:
        pytest.skip("this process may not mount")
    try:
        with pytest.raises(HemsegError, match="is the input folder"):
            check_mounts(tmp_path / "in", [tmp_path / "out"])
    finally:
        subprocess.run(["umount", tmp_path / "out"], check=True)


def test_outputs_among_the_scans_are_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    broken(source / "sub", "a.mha")
    files = [PurePosixPath("sub/a.mha")]
    target.mkdir()
    check_outputs([target / "images" / "a.mha"], source, files, [target])
    (target / "images").symlink_to(source / "sub")  # as a bind mount of a part of the input
    with pytest.raises(HemsegError, match=r"would replace .*sub/a\.mha"):
        check_outputs([target / "images" / "a.mha"], source, files, [target])
    with pytest.raises(HemsegError, match=r"images: is a folder of the input"):
        check_outputs([target / "images" / "b.mha"], source, files, [target])
    (target / "images").unlink()
    os.link(source / "sub" / "a.mha", target / "other.mha")
    with pytest.raises(HemsegError, match=r"would replace"):
        check_outputs([target / "other.mha"], source, files, [target])
    inside = source / "out"
    inside.mkdir()
    check_outputs([inside / "images" / "a.mha"], source, files, [inside])
    with pytest.raises(HemsegError, match="is a folder of the input"):  # /output = /data, /input = /data/images
        check_outputs([tmp_path / "in" / "b.mha"], source, files, [tmp_path])


# ---- outputs


def test_the_heat_map_is_the_probability(container: Container, scan: Path, tmp_path: Path, light_model: Model) -> None:
    shutil.copy(scan, mount(scan.parent) / "u.nii.gz")
    heat = "images/hemorrhage-heat-map"
    assert container(HEMSEG_HEAT_MAP_PATH=heat, HEMSEG_REPORT_PATH="report.json") == (0, "")
    assert written(tmp_path / "out") == {MASK, f"{heat}/output.mha", "report.json"}
    image = sitk.ReadImage(str(tmp_path / "out" / heat / "output.mha"))
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / MASK)))
    voxels = sitk.GetArrayFromImage(image)
    assert image.GetPixelID() == sitk.sitkFloat32
    assert same_geometry(tmp_path / "out" / heat / "output.mha", scan)
    assert 0 <= voxels.min() < 0.5 <= voxels.max() <= 1
    assert (voxels[mask > 0] >= light_model.manifest.threshold).all()
    (seen,) = image_builder_mhd(files={tmp_path / "out" / heat / "output.mha"})
    assert (seen.voxel_width_mm, seen.segments) == (pytest.approx(image.GetSpacing()[0]), None)


def test_a_heat_map_does_not_go_with_the_generic_mask(container: Container, tmp_path: Path) -> None:
    broken(mount(tmp_path / "in", "images"), "u.mha")
    code, said = container(HEMSEG_HEAT_MAP_PATH="images/heat")
    assert (code, "lies in images" in said) == (1, True)
    jobs = plan_jobs(RunPlan("gc-generic", (PurePosixPath("images/u.mha"),)), Path("/i"), Path("/o"), Path(), Sockets())
    assert [job.outputs for job in jobs] == [(Path("/o/images/u.mha"),)]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"HEMSEG_REPORT_PATH": "results.json"}, "report_path 'results.json': is where the list of results goes; give"),
        ({"HEMSEG_REPORT_PATH": "./results.json/a.json"}, "lies below the list of results, and results.json is a file"),
        ({"HEMSEG_REPORT_PATH": "images/u.mha/a.json"}, "lies below the mask, and images/u.mha is a file; give"),
        ({"HEMSEG_HEAT_MAP_PATH": "results.json"}, "heat_map_path 'results.json': lies below the list of results"),
    ],
)
def test_no_output_takes_the_place_of_another_beside_the_generic_mask(
    container: Container, tmp_path: Path, light_model: Model, setting: dict[str, str], said: str
) -> None:
    """The report was replaced by ``results.json``, or could not be written when all else was done."""
    broken(mount(tmp_path / "in", "images"), "u.mha")
    code, reason = container(**setting)
    assert (code, said in reason) == (1, True)
    cases = CaseRunner(light_model, tmp_path / "in", tmp_path / "out", load_sockets(setting))
    with pytest.raises(HemsegError) as error:
        cases.invoke()
    assert said in str(error.value)
    assert not (tmp_path / "out").exists()
    assert load_sockets(
        {"HEMSEG_REPORT_PATH": "results.json"}
    ).report_path  # mode gc writes no list: a socket's own file


def test_serve_with_generic_sockets_writes_what_a_batch_does(
    container: Container, scan: Path, tmp_path: Path, light_model: Model
) -> None:
    folder = mount(scan.parent, "images")
    shutil.copy(scan, folder / "u.nii.gz")
    assert container()[0] == 0
    made = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    assert set(made) == {"images/u.nii.gz", "results.json"}
    shutil.rmtree(tmp_path / "out")
    cases = CaseRunner(light_model, scan.parent, tmp_path / "out", Sockets())
    cases.invoke()
    assert written(tmp_path / "out") == set(made)
    assert (tmp_path / "out" / "results.json").read_bytes() == made["results.json"]
    (folder / "u.nii.gz").unlink()
    broken(folder, "v.nii.gz")
    with pytest.raises(HemsegError, match=r"v\.nii\.gz: cannot be read"):
        cases.invoke()
    assert written(tmp_path / "out") == {"results.json"}
    (entry,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert entry["inputs"][0]["filename"] == "v.nii.gz"
    assert "cannot be read" in entry["error_messages"][0]


def test_serve_leaves_nothing_of_an_earlier_case(scan: Path, tmp_path: Path, light_model: Model) -> None:
    folder = mount(scan.parent)
    shutil.copy(scan, folder / "u.nii.gz")
    sockets = Sockets(report_path="report.json", heat_map_path="images/heat")
    cases = CaseRunner(light_model, scan.parent, tmp_path / "out", sockets)
    cases.invoke()
    (tmp_path / "out" / "notes.txt").touch()
    assert written(tmp_path / "out") == {MASK, "images/heat/output.mha", "report.json", "notes.txt"}
    for fault in ("no scan", None):
        if fault:
            (folder / "u.nii.gz").write_text(fault)
        else:
            (folder / "u.nii.gz").unlink()
        CaseRunner(light_model, scan.parent, tmp_path / "out", sockets)
        with pytest.raises(HemsegError):
            cases.invoke()
        assert written(tmp_path / "out") == {"notes.txt"}


@pytest.mark.parametrize("relative", ["images/ct", "images"])
def test_serve_removes_and_replaces_what_hemseg_wrote_and_nothing_else(
    container: Container, scan: Path, tmp_path: Path, light_model: Model, relative: str
) -> None:
    shutil.copy(scan, mount(scan.parent, relative) / "u.nii.gz")
    out, sockets = tmp_path / "out", Sockets(report_path="report.json")
    CaseRunner(light_model, scan.parent, out, sockets).invoke()
    made = {name: (out / name).stat().st_mtime_ns for name in written(out)}
    cases = CaseRunner(light_model, scan.parent, out, sockets)  # another server knows them by their marks
    for _ in range(2):
        cases.invoke()
        assert written(out) == set(made)
        assert not [name for name, at in made.items() if (out / name).stat().st_mtime_ns == at]
    for name in made:
        whole = (out / name).read_bytes()
        (out / name).write_text("drawn by hand")  # over what the case before wrote
        with pytest.raises(OutputError) as error:
            cases.invoke()
        reason = f"{out / name} (hemseg did not write it, or it was changed since); give another folder for the output"
        assert str(error.value) == f"nothing was done, as these files could not be written: {reason}."
        assert written(out) == {name}
        assert (out / name).read_text() == "drawn by hand"
        said = container(HEMSEG_REPORT_PATH="report.json")[1]
        assert said == f"error: {str(error.value)[:-1]}, or --overwrite to replace them."
        (out / name).write_bytes(whole)
        cases.invoke()
    if relative == "images":
        image = out / MASK  # which a case with the generic socket does not write
        image.parent.mkdir(parents=True)
        image.write_text("drawn by hand")
        cases.invoke()
        assert image.read_text() == "drawn by hand"


def test_a_pipe_is_no_list_of_results(tmp_path: Path) -> None:
    pipe = tmp_path / "results.json"
    os.mkfifo(pipe)

    feeding = Thread(target=pipe.write_bytes, args=(b"[]",), daemon=True)  # waits for who reads
    feeding.start()
    assert not is_results(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    feeding.join(10)
    os.close(reader)


def test_what_cannot_be_written_is_our_fault(
    scan: Path, tmp_path: Path, light_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(scan, mount(scan.parent) / "u.nii.gz")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"out \(is not a folder\)"):
        CaseRunner(light_model, scan.parent, tmp_path / "out", Sockets()).invoke()
    (tmp_path / "out").unlink()
    (tmp_path / "out" / MASK).mkdir(parents=True)
    with pytest.raises(OutputError, match=r"output\.mha \(is a folder\)"):
        CaseRunner(light_model, scan.parent, tmp_path / "out", Sockets()).invoke()
    (tmp_path / "out" / MASK).rmdir()

    def on_a_full_disk(*_: object) -> None:
        raise OutputError("output.mha: the mask could not be written (No space left on device).")

    monkeypatch.setattr(folder_jobs, "write_result", on_a_full_disk)
    with pytest.raises(UnexpectedError, match="could not be written"):
        CaseRunner(light_model, scan.parent, tmp_path / "out", Sockets()).invoke()


# ---- probability images for people


def test_probability_in_the_scans_own_format(scan: Path, bleed: Phantom, tmp_path: Path, light_model: Model) -> None:
    jobs = folder_plan.plan_jobs(scan, tmp_path / "out", folder_plan.OutputOptions(probability=True))
    (outcome,) = folder_jobs.run_jobs(jobs, light_model)
    assert not outcome.error
    assert written(tmp_path / "out") == {"case.nii.gz", "case_probability.nii.gz"}
    assert same_geometry(tmp_path / "out" / "case_probability.nii.gz", scan)
    assert outcome.result
    voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "case_probability.nii.gz")))
    assert np.array_equal(voxels, outcome.result.probability)


def test_probability_as_a_parametric_map(bleed: Phantom, tmp_path: Path, light_model: Model) -> None:
    paths = write_series(tmp_path / "in", bleed.volume, tilt=8.0)
    jobs = folder_plan.plan_jobs(
        tmp_path / "in", tmp_path / "out", folder_plan.OutputOptions(probability=True, format="dicom-seg")
    )
    (outcome,) = folder_jobs.run_jobs(jobs, light_model)
    assert not outcome.error
    assert outcome.result
    made = dcmread(tmp_path / "out" / "in_probability.dcm")
    assert made.SOPClassUID.name == "Parametric Map Storage"
    frames = np.frombuffer(made.FloatPixelData, np.float32).reshape(-1, made.Rows, made.Columns)
    stack = outcome.result.volume.stack
    assert stack is not None
    depths = [float(f.PlanePositionSequence[0].ImagePositionPatient[2]) for f in made.PerFrameFunctionalGroupsSequence]
    for source, slice_ in zip(map(dcmread, paths), stack.to_slices(outcome.result.probability), strict=True):
        (number,) = np.flatnonzero(np.abs(np.array(depths) - source.ImagePositionPatient[2]) < 1e-3)
        assert np.array_equal(frames[number], slice_)
    assert made.StudyInstanceUID == dcmread(paths[0]).StudyInstanceUID
    assert frames.max() >= 0.5
