"""What cannot be read, or is no file, is said: nothing is left out in silence, and nothing waits for ever."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import hemseg_here, process
from helpers.series import write_series
from test_cli import files
from test_folders import rows

from hemseg.errors import HemsegError
from hemseg.folder.journal import Journal
from hemseg.folder.outputs import files_of, output_conflicts, refuse_conflicts
from hemseg.folder.plan import Job, plan_jobs
from hemseg.folder.scans import find_scans
from hemseg.io.folders import walk, without_masks
from hemseg.io.marks import read_mark, voxel_hash
from hemseg.scan import read
from training.data.phantom import Phantom


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of files and folders that may not be opened: the tests may run as root, who may open all."""
    names: set[str] = set()
    real_open, real_scandir = Path.open, os.scandir

    def opened(self: Path, *arguments: object, **options: object) -> object:
        if self.name in names:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real_open(self, *arguments, **options)  # type: ignore[arg-type, call-overload]

    def scanned(path: str) -> object:
        if os.path.basename(path) in names:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_scandir(path)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "scandir", scanned)
    return names


def test_folders_that_may_not_be_read(scan: Path, tmp_path: Path, light: Path, forbidden: set[str]) -> None:
    (scan.parent / "sub" / "closed").mkdir(parents=True)
    forbidden.add("closed")
    for _ in range(2):  # the second time, too
        done = hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light, check=1)
        assert "sub/closed: may not be read (Permission denied)" in done.stderr
        assert "1 of 2 scans done, 1 failed" in done.stdout
    assert rows(tmp_path / "out")["sub/closed"]["status"] == "failed"
    forbidden.clear()
    hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light)
    forbidden.add("in")
    with pytest.raises(HemsegError, match="may not be read"):
        plan_jobs(scan.parent, tmp_path / "out")
    with pytest.raises(HemsegError, match="may not be read"):
        walk(scan.parent)


def test_slices_that_may_not_be_read(
    scan: Path, bleed: Phantom, tmp_path: Path, light: Path, forbidden: set[str]
) -> None:
    """A mask of the others would look whole."""
    paths = write_series(scan.parent / "study", bleed.volume)
    (scan.parent / "study" / "notes.txt").write_text("no slice")
    forbidden |= {p.name for p in paths[::2]} | {"notes.txt"}
    done = hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light, check=1)
    assert f"study: {len(paths[::2])} of its files may not be read" in done.stderr
    assert all(f"{p}: may not be read" in done.stderr for p in paths[::2])
    assert "notes.txt" not in done.stderr
    with pytest.raises(HemsegError, match="may not be read"):
        read(scan.parent / "study")
    assert files(tmp_path / "out") == {"case.nii.gz"}


def test_links_that_lead_nowhere(scan: Path, bleed: Phantom, tmp_path: Path, light: Path) -> None:
    """As in a data set whose files were not all fetched."""
    paths = write_series(scan.parent / "study", bleed.volume)
    for path in (paths[3], scan.parent / "gone.mha"):
        path.unlink(missing_ok=True)
        path.symlink_to("nowhere")
    done = hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light, check=1)
    assert f"{paths[3].name} may not be read" in done.stderr
    assert "gone.mha: there is no such file" in done.stderr
    assert files(tmp_path / "out") == {"case.nii.gz"}


def test_process_names_them_too(scan: Path, bleed: Phantom, tmp_path: Path, light: Path) -> None:
    paths = write_series(scan.parent / "study", bleed.volume)
    paths[2].unlink()
    paths[2].symlink_to("nowhere")
    done = process("--input", scan.parent, "--output", tmp_path / "out", "--weights", light, check=1)
    assert f"{paths[2].name} may not be read" in done.stderr
    assert files(tmp_path / "out") == {"images/case.nii.gz", "results.json"}


def test_pipes_sockets_and_devices(
    scan: Path, tmp_path: Path, light: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening a pipe that nobody writes to waits for ever."""
    monkeypatch.chdir(scan.parent)  # a socket's path is short
    os.mkfifo("a.nii.gz")
    os.mkfifo("slice.dcm")
    (scan.parent / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("x.mha")
        hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light)
        assert "4 pipes, sockets or devices are passed over" in caplog.text
        assert files(tmp_path / "out") == {"case.nii.gz"}
        said = hemseg_here("segment", "a.nii.gz", tmp_path / "out", "--weights", light, check=1).stderr
        assert "is not a folder" in said


@pytest.fixture
def within_seconds() -> Iterator[None]:
    """A test that waits for ever fails instead."""

    def too_long(number: int, frame: object) -> None:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_pipes_where_headers_and_outputs_lead(scan: Path, tmp_path: Path, light: Path, within_seconds: None) -> None:
    """As a raw file, in a list of slices, as an archive, as a table, as an output that exists."""
    for name in ("pipe.raw", "study.zip", "out.nii.gz", "summary.csv"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "loop.raw").symlink_to("loop.raw")
    (tmp_path / "a.nrrd").write_text("NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nspacings: 1 1 5\n")
    with (tmp_path / "a.nrrd").open("a") as header:
        header.write("endian: little\nencoding: raw\ndata file: pipe.raw\n\n")
    meta = "ObjectType = Image\nNDims = 3\nElementSpacing = 1 1 5\nDimSize = 2 2 2\nElementType = MET_SHORT\n"
    for name, where in (("b", "pipe.raw"), ("c", "LIST\npipe.raw\npipe.raw"), ("d", "loop.raw"), ("e", "LIST\nno.raw")):
        (tmp_path / f"{name}.mhd").write_text(f"{meta}ElementDataFile = {where}\n")
    for name, said in (
        ("a.nrrd", "which is not a file"),
        ("b.mhd", "which is not a file"),
        ("c.mhd", "which is not a file"),
        ("d.mhd", "which is missing"),
        ("e.mhd", "which is missing"),
        ("study.zip", "is not a file"),
    ):
        with pytest.raises(HemsegError, match=said):
            read(tmp_path / name)
        assert files_of(Job(Path(name), tmp_path / name, tmp_path / "mask.mha")) == [tmp_path / name]
    with pytest.raises(HemsegError, match="hemseg did not write it"):
        refuse_conflicts([Job(Path("case.nii.gz"), scan, tmp_path / "out.nii.gz")])
    with pytest.raises(HemsegError, match="is not a file; give another folder"):
        Journal(tmp_path)
    (scan.parent / "sub").mkdir()
    os.mkfifo(scan.parent / "sub" / "summary.csv")
    hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light)
    (tmp_path / "out" / "case.nii.gz").unlink()
    os.mkfifo(tmp_path / "out" / "case.nii.gz")  # in place of a mask that was done
    said = hemseg_here("segment", scan.parent, tmp_path / "out", "--weights", light, check=1).stderr
    assert "hemseg did not write it" in said


def test_marked_files_that_itk_ends_the_process_over(tmp_path: Path) -> None:
    """A name that is not UTF-8, or a damaged number in the header, of a file that carries hemseg's mark."""
    header = "ObjectType = Image\nNDims = 3\nComment = hemseg 0.1.0 scan 0123456789abcdef voxels 0123456789abcdef\n"
    header += "ElementSpacing = 1 1 5\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    named = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b_\xe9.mha"))
    named.write_bytes(header.encode() + bytes(8))
    broken = tmp_path / "a.mha"
    broken.write_bytes(header.replace("NDims = 3", "NDims = 99999999999999999999").encode() + bytes(8))
    whole = tmp_path / "c.mha"
    content = voxel_hash(np.zeros((2, 2, 2), np.uint8))
    whole.write_bytes(header.replace("voxels 0123456789abcdef", f"voxels {content}").encode() + bytes(8))
    assert [path for path in (named, broken, whole) if read_mark(path)] == [whole]
    assert without_masks([broken, named, whole]) == [broken, named]


def test_older_outputs_in_the_input_are_passed_over(
    scan: Path, tmp_path: Path, light: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole folders by their table, single masks by their mark, each said once."""
    source = scan.parent
    hemseg_here("segment", source, source / "masks", "--weights", light)
    hemseg_here("segment", scan, source / "single", "--weights", light)
    process("--input", source, "--output", source / "gc", "--weights", light)
    caplog.clear()
    assert [case for case, _, _ in find_scans(source)] == [Path("case.nii.gz")]
    assert caplog.text.count("masks: is an output folder of hemseg, passed over") == 1
    assert "2 masks that hemseg wrote are passed over" in caplog.text
    hemseg_here("segment", source, source, "--format", "mha", "--weights", light)  # beside the scans
    assert [case for case, _, _ in find_scans(source)] == [Path("case.nii.gz")]
    with pytest.raises(HemsegError, match="holds no scans"):
        find_scans(source / "single")


def test_names_that_are_not_utf8_or_too_long(scan: Path, tmp_path: Path, light: Path) -> None:
    """Named, and the others are done: now and when the same command comes again."""
    source = scan.parent
    shutil.copy(scan, os.fsencode(source) + b"/caf\xe9.nii.gz")
    long = "x" * (255 - len(".nii.gz")) + ".nii.gz"  # its thumbnail's name would be longer
    shutil.copy(scan, source / long)
    for _ in range(2):
        done = hemseg_here("segment", source, tmp_path / "out", "--weights", light, check=1)
        assert "caf\\xe9.nii.gz: its name is not valid UTF-8; rename it." in done.stderr
        assert "its name is too long" in done.stderr
        assert "1 of 3 scans done, 2 failed" in done.stdout
    assert files(tmp_path / "out") == {"case.nii.gz"}
    assert "caf\\xe9.nii.gz" in (tmp_path / "out" / "summary.html").read_text()
    done = process("--input", source, "--output", tmp_path / "gc", "--weights", light, check=1)
    assert "not valid UTF-8" in done.stderr
    assert files(tmp_path / "gc") == {"images/case.nii.gz", f"images/{long}", "results.json"}


def test_thousands_that_collide_are_counted(tmp_path: Path) -> None:
    for number in range(2000):
        for suffix in (".mha", ".mhd"):
            (tmp_path / "in" / str(number)).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / str(number) / f"x{suffix}").touch()
    jobs = plan_jobs(tmp_path / "in", tmp_path / "out")
    assert len(output_conflicts(jobs)) == 4000
    same = [type(job)(job.case, job.scan, tmp_path / "one.mha") for job in jobs]
    reasons = output_conflicts(same)
    assert len(reasons) == 4000
    assert all("and 3994 more" in reason and reason.count(",") == 4 for reason in reasons.values())
