"""A folder of scans: resume, several processes, a Ray cluster, the summary."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import ROOT, hemseg, process, python, same_geometry
from test_cli import files

from hemseg import model as hemseg_model
from hemseg import signals
from hemseg.folder import jobs as folder_jobs
from hemseg.folder import processes
from hemseg.folder import run as folder_run
from hemseg.folder.console import PrintOptions
from hemseg.folder.jobs import run_jobs
from hemseg.folder.journal import Journal
from hemseg.folder.plan import Job, plan_jobs
from hemseg.folder.rows import Row, failed_row, settings_key_of_weights
from hemseg.io.files import atomic_write, exclusive_access, remove_leftovers
from hemseg.model import Model, load
from hemseg.names import case_name, to_cell


@pytest.fixture
def folder(scan: Path) -> Path:
    """Six copies of a small scan, one of them in a subfolder, and a broken file."""
    source = scan.parent
    for number in range(4):
        shutil.copy(scan, source / f"c{number}.nii.gz")
    (source / "sub dir").mkdir()
    shutil.copy(scan, source / "sub dir" / "<b>&ü.nii.gz")
    (source / "broken.mha").write_text("no scan")
    return source


def rows(target: Path) -> dict[str, dict[str, str]]:
    with (target / "summary.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len({row["case"] for row in found}) == len(found)
    return {row["case"]: row for row in found}


def times(target: Path) -> dict[str, int]:
    masks = [p for p in target.rglob("*.nii.gz") if not p.name.startswith(".")]
    return {str(p.relative_to(target)): p.stat().st_mtime_ns for p in masks}


def test_summary_and_resume(folder: Path, tmp_path: Path, light: Path) -> None:
    """A scan that was touched alone is the same scan, as its content says: copies and backups change times. That
    content counts where size and times are the same is in test_resume.
    """
    out = tmp_path / "out"
    hemseg("segment", folder, out, "--report", "--weights", light, check=1)
    found = rows(out)
    assert len(found) == 7
    assert found["broken.mha"]["status"] == "failed"
    assert "cannot be read" in found["broken.mha"]["error"]
    assert float(found["c0.nii.gz"]["volume_ml"]) > 1
    page = (out / "summary.html").read_text()
    assert "6 of 7 scans done, 1 failed" in page
    assert "&lt;b&gt;&amp;ü.nii.gz" in page
    assert "<b>&ü" not in page
    assert "sub%20dir/%3Cb%3E%26%C3%BC/report.html" in page
    report = json.loads((out / "sub dir" / "<b>&ü" / "report.json").read_text())
    assert report["volume_ml"] == pytest.approx(float(found["c0.nii.gz"]["volume_ml"]), abs=1e-3)

    before = times(out)
    done = hemseg("segment", folder, out, "--report", "--weights", light, check=1)  # the broken one is tried again
    assert "6 of 7 scans were done before" in done.stderr
    assert times(out) == before
    image = sitk.GetImageFromArray(sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "c0.nii.gz"))))
    (folder / "broken.mha").unlink()
    sitk.WriteImage(image, str(folder / "broken.mha"))
    (out / "c1" / "report.html").unlink()  # a half-done case
    sitk.WriteImage(sitk.ReadImage(str(folder / "c2.nii.gz")) + 1, str(folder / "c2.nii.gz"))  # a scan that changed
    os.utime(folder / "c3.nii.gz")  # and one that did not
    hemseg("segment", folder, out, "--report", "--weights", light)
    after = times(out)
    assert {name for name, at in after.items() if before.get(name) != at} == {"c1.nii.gz", "c2.nii.gz"}
    assert (out / "c1" / "report.html").is_file()
    assert rows(out)["broken.mha"]["status"] == "done"
    done = hemseg("segment", folder, out, "--redo", "--json", "--quiet", "--weights", light)
    assert [row["case"] for row in json.loads(done.stdout)] == list(rows(out))
    assert all(times(out)[name] != at for name, at in after.items())


def test_other_weights_do_it_again(folder: Path, tmp_path: Path, light: Path) -> None:
    (folder / "broken.mha").unlink()
    weights = tmp_path / "weights"
    shutil.copytree(light, weights)
    hemseg("segment", folder, tmp_path / "out", "--quiet", "--weights", light)
    before = times(tmp_path / "out")
    manifest = json.loads((weights / "manifest.json").read_text())
    (weights / "manifest.json").write_text(json.dumps(manifest | {"threshold": 0.6}))
    hemseg("segment", folder, tmp_path / "out", "--quiet", "--weights", weights)
    assert all(times(tmp_path / "out")[name] != at for name, at in before.items())


def test_a_killed_run_goes_on(folder: Path, tmp_path: Path, light: Path) -> None:
    (folder / "broken.mha").unlink()
    for number in range(20):
        shutil.copy(folder / "case.nii.gz", folder / f"d{number:02}.nii.gz")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hemseg.cli", "segment", str(folder), str(out), "--quiet", "--weights", str(light)]
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        running = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
        already = len(rows(out)) if (out / "summary.csv").exists() else 0
        while running.poll() is None and (not (out / "summary.csv").exists() or len(rows(out)) < already + 2):
            time.sleep(0.05)
        running.send_signal(how)
        _, errors = running.communicate(timeout=60)
        assert running.returncode in {signal.SIGKILL: (-9,), signal.SIGTERM: (143,), signal.SIGINT: (130,)}[how]
        assert "Traceback" not in errors
    (out / ".hemseg-0123456789abcdef.part.nii.gz").touch()
    before = times(out)
    hemseg("segment", folder, out, "--quiet", "--weights", light)
    found = rows(out)
    assert len(found) == 26
    assert all(row["status"] == "done" for row in found.values())
    assert len([name for name, at in before.items() if times(out)[name] == at]) >= 4
    assert not [name for name in files(out) if ".part" in name]
    masks = list(out.rglob("*.nii.gz"))
    assert len(masks) == 26
    assert all(same_geometry(folder / "case.nii.gz", mask) for mask in masks)


def test_what_was_under_way_when_it_stopped_counts_as_done(folder: Path, tmp_path: Path, light: Path) -> None:
    """After SIGTERM the scans that were begun are ended and noted; the same command does none of them again.

    But for one, if the signal comes between its mask and its line.
    """
    (folder / "broken.mha").unlink()
    for number in range(8):
        shutil.copy(folder / "case.nii.gz", folder / f"d{number:02}.nii.gz")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hemseg.cli", "segment", str(folder), str(out), "--quiet", "--weights", str(light)]
    running = subprocess.Popen(command, cwd=ROOT)
    while running.poll() is None and (not (out / "summary.csv").exists() or len(rows(out)) < 2):
        time.sleep(0.05)
    running.terminate()
    assert running.wait(timeout=60) == 143
    before = times(out)
    assert 2 <= len(before) < 14
    assert len(before) - len(rows(out)) <= 1
    hemseg("segment", folder, out, "--quiet", "--weights", light)
    assert len(times(out)) == 14
    assert sum(times(out)[name] != at for name, at in before.items()) <= 1


def test_a_summary_of_somebody_else_is_not_overwritten(folder: Path, tmp_path: Path, light: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.csv").write_text("mine,own\n1,2\n")
    assert (
        "another folder for the output"
        in hemseg("segment", folder, tmp_path / "out", "--weights", light, check=1).stderr
    )
    assert (tmp_path / "out" / "summary.csv").read_text() == "mine,own\n1,2\n"


def test_a_cut_line_counts_as_not_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start([])
    journal.add(Row("a", "done", volume_ml="1.0").sealed)
    with (tmp_path / "summary.csv").open("a") as file:
        file.write("b,done,1")
    assert list(Journal(tmp_path).rows) == ["a"]


def test_leftovers_of_the_living_stay(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.nii.gz") as partial:
        sitk.WriteImage(sitk.Image([2, 2, 2], sitk.sitkUInt8), str(partial))  # by its name, as all writers do
        assert partial.name.endswith(".part.nii.gz")
        assert remove_leftovers(tmp_path) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "b.txt") as partial:
        partial.write_text(str(1 / 0))
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]
    (tmp_path / partial.name).touch()  # of one who died, wherever that was
    assert remove_leftovers(tmp_path) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_two_on_one_folder(folder: Path, tmp_path: Path, light: Path) -> None:
    with exclusive_access(tmp_path / "out"):
        done = hemseg("segment", folder, tmp_path / "out", "--weights", light, check=1)
        assert "another hemseg is writing there" in done.stderr
        assert not list((tmp_path / "out").iterdir())
    (folder / "broken.mha").unlink()
    hemseg("segment", folder, tmp_path / "out", "--quiet", "--weights", light)


def test_workers_end_with_their_parent(folder: Path, tmp_path: Path, light: Path) -> None:
    for number in range(20):
        shutil.copy(folder / "case.nii.gz", folder / f"d{number:02}.nii.gz")
    command = [sys.executable, "-m", "hemseg.cli", "segment", str(folder), str(tmp_path / "out")]
    command += ["--jobs", "2", "--weights", str(light)]
    parent = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers_of = ["pgrep", "-P", str(parent.pid), "-f", "spawn_main"]
    found: list[str] = []
    while parent.poll() is None and len(found) < 2:
        time.sleep(0.1)
        found = subprocess.run(workers_of, capture_output=True, text=True, check=False).stdout.split()
    parent.kill()
    parent.wait()
    for _ in range(300):
        left = [pid for pid in found if Path("/proc", pid).exists()]
        if not left:
            break
        time.sleep(0.1)
    assert len(found) == 2
    assert not left


def test_names_of_every_kind(scan: Path, tmp_path: Path, light: Path) -> None:
    names = ["a b.nii.gz", "-dash.nii.gz", "new\nline.nii.gz", "ünï 頭.nii.gz", "quote'\";$(x).nii.gz", "=cmd().nii.gz"]
    for name in names:
        shutil.copy(scan, tmp_path / "in" / name)
    scan.unlink()
    hemseg("segment", scan.parent, tmp_path / "out", "--report", "--weights", light)
    assert sorted(rows(tmp_path / "out")) == sorted(to_cell(case_name(Path(name))) for name in names)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == sorted(names)
    before = times(tmp_path / "out")
    hemseg("segment", scan.parent, tmp_path / "out", "--report", "--weights", light)
    assert times(tmp_path / "out") == before
    process("--input", scan.parent, "--output", tmp_path / "gc", "--weights", light)
    assert sorted(p.name for p in (tmp_path / "gc" / "images").iterdir()) == sorted(names)


def test_a_scan_that_vanishes_is_named(folder: Path, tmp_path: Path, model: Model) -> None:
    jobs = plan_jobs(folder, tmp_path / "out")
    (folder / "c1.nii.gz").unlink()
    shutil.rmtree(folder / "sub dir")
    failed = {outcome.job.case.name: outcome.error for outcome in run_jobs(jobs, model) if outcome.error}
    assert sorted(failed) == ["<b>&ü.nii.gz", "broken.mha", "c1.nii.gz"]
    assert "there is no such file" in failed["c1.nii.gz"]


def test_lanes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hemseg_model, "cores", lambda: 4)
    assert [load(device="cpu", scans=n).concurrent_scans for n in (1, 2, 100)] == [1, 2, 3]
    monkeypatch.setattr(hemseg_model, "cores", lambda: 1)
    assert load(device="cpu", scans=100).concurrent_scans == 2  # one waits for the disk while the other works


def test_few_scans_are_in_memory_and_all_come_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow some scans are, and however slowly the outcomes are taken."""
    begun: list[int] = []
    lock = threading.Lock()

    def done(job: Job, model: Model) -> None:
        with lock:
            begun.append(int(job.case.name))
        time.sleep(0.2 if job.case.name == "0" else 0.002)

    monkeypatch.setattr(folder_jobs, "_segment_and_write", done)
    model = load(device="cpu", scans=100)
    taken = []
    for outcome in run_jobs((Job(Path(str(n)), Path("x"), tmp_path / str(n)) for n in range(40)), model):
        taken.append(int(outcome.job.case.name))
        time.sleep(0.01)
        with lock:
            assert len(begun) <= len(taken) + model.concurrent_scans + 1
    assert taken == list(range(40))


def test_no_more_begins_when_nobody_takes_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []
    monkeypatch.setattr(
        folder_jobs, "_segment_and_write", lambda job, model: begun.append(job.case) or time.sleep(0.05)
    )
    model = load(device="cpu", scans=100)
    with closing(run_jobs((Job(Path(str(n)), Path("x"), tmp_path / str(n)) for n in range(40)), model)) as outcomes:
        next(outcomes)
    count = len(begun)
    assert count <= model.concurrent_scans + 2
    time.sleep(0.2)
    assert len(begun) == count


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_signal_whose_exception_python_dropped_stops_the_run_all_the_same(
    elsewhere: bool, number: int, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that runs in a finaliser: what it raises is printed and forgotten; scans done here, or elsewhere."""

    class Finalised:
        def __del__(self) -> None:
            signals._handle_stop_signal(number, None)

    monkeypatch.setattr(folder_jobs, "_segment_and_write", lambda job, model: None)
    monkeypatch.setattr(signals, "_pending_signal", 0)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    jobs = [Job(Path(str(n)), Path("x"), tmp_path / str(n)) for n in range(40)]
    taken = []

    def taking(coming: Iterable[Any]) -> Generator[Any]:
        for one in coming:
            taken.append(one)
            if len(taken) == 2:
                Finalised()
            yield one

    def run() -> None:
        if elsewhere:
            rows = taking(failed_row(job, "", tmp_path, "no") for job in jobs)
            folder_run._with_progress(rows, len(jobs), None, PrintOptions(quiet=True))
        else:
            list(taking(run_jobs(jobs, load(device="cpu"))))

    with pytest.raises(raised) as stopped:
        run()
    assert raised is KeyboardInterrupt or stopped.value.code == 128 + number  # type: ignore[attr-defined]
    assert len(taken) == 2


def test_a_full_disk_is_told_and_the_rest_is_done_later(folder: Path, tmp_path: Path, light: Path) -> None:
    """No file may grow beyond 1 KiB: what a full disk does to a mask, without one."""
    out = tmp_path / "out"
    limit = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); "
    limit += "from hemseg.cli import main; sys.argv[0] = 'hemseg'; main()"
    done = python("-c", limit, "segment", folder, out, "--quiet", "--weights", light, check=1)
    assert "cannot be written" in done.stderr
    assert not list(out.rglob("*.nii.gz"))
    assert not [name for name in files(out) if ".part" in name]
    (folder / "broken.mha").unlink()
    hemseg("segment", folder, out, "--quiet", "--weights", light)
    assert len(list(out.rglob("*.nii.gz"))) == 6


def test_several_processes_give_the_same_masks(folder: Path, tmp_path: Path) -> None:
    for number in (2, 3):
        (folder / f"c{number}.nii.gz").unlink()  # four are enough: the shipped network takes its time
    hemseg("segment", folder, tmp_path / "one", "--quiet", check=1)
    hemseg("segment", folder, tmp_path / "two", "--quiet", "--jobs", "2", check=1)
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert list(one) == list(two)  # the order is that of the cases, whoever was first
    assert [row["volume_ml"] for row in one.values()] == [row["volume_ml"] for row in two.values()]
    for name in times(tmp_path / "one"):
        a, b = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / n / name))) for n in ("one", "two"))
        assert np.array_equal(a, b)


def test_a_process_that_dies_costs_its_own_job_alone(folder: Path, tmp_path: Path, light: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    (folder / "broken.mha").unlink()
    jobs = plan_jobs(folder, tmp_path / "out")
    monkeypatch.setattr(processes, "_run_in_worker", deadly)
    key = settings_key_of_weights(light)
    found = list(processes.run_in_processes(jobs, light, "cpu", key, tmp_path / "out", 2))
    assert sorted(row.case for row in found) == sorted(str(job.case) for job in jobs)
    (bad,) = (row for row in found if row.status != "done")
    assert bad.case == "c1.nii.gz"
    assert "process died" in bad.error


_real_run_in_worker = processes._run_in_worker


def deadly(job, key, target):  # type: ignore[no-untyped-def]
    """Stands for a scan that takes all the memory: its process is killed."""
    if job.case.name == "c1.nii.gz":
        os.kill(os.getpid(), signal.SIGKILL)
    return _real_run_in_worker(job, key, target)


def on_ray(folder: Path, out: Path, weights: Path, jobs: int, cases: int) -> subprocess.Popen[str]:
    """A folder of so many scans on a Ray cluster of its own, in a session of its own; three of them are done."""
    pytest.importorskip("ray")
    for number in range(cases - 6):
        os.link(folder / "case.nii.gz", folder / f"d{number}.nii.gz")
    words = ["segment", str(folder), str(out), "--ray", "local", "--jobs", str(jobs), "--quiet", "--weights"]
    running = subprocess.Popen(
        [sys.executable, "-c", SOON, *words, str(weights)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Ray's workers give way to everything else: here, to other tests
        env=os.environ | {"RAY_worker_niceness": "0"},
    )
    while running.poll() is None and (not (out / "summary.csv").exists() or len(rows(out)) < 3):
        time.sleep(0.1)
    if running.poll() is not None:
        said = running.communicate()[1]
        if "timed out during startup" in said:
            pytest.skip("Ray gives itself 30 s to start, and on this machine they were not enough")
        pytest.fail(said)
    return running


# the command line; a head that does not answer is dead after two seconds in place of five
SOON = (
    "from hemseg import cli; from hemseg.folder import ray_cluster; ray_cluster.LOCAL_TIMEOUT_SECONDS = 2.0; cli.main()"
)


def kill_one(running: subprocess.Popen[str], pattern: str) -> None:
    """Kill the first process of its session that has such a command line."""
    find = ["pgrep", "-s", str(running.pid), "-f", pattern]
    os.kill(int(subprocess.run(find, capture_output=True, text=True, check=True).stdout.split()[0]), signal.SIGKILL)


def alive(running: subprocess.Popen[str]) -> list[str]:
    """The processes of its session that have not ended; one that nobody has taken yet has."""
    states = ["ps", "-o", "stat=,args=", "-s", str(running.pid)]
    lines = subprocess.run(states, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line for line in lines if not line.startswith("Z")]


@pytest.mark.slow
def test_ray_loses_a_worker_and_nothing_else(folder: Path, tmp_path: Path, light: Path) -> None:
    out = tmp_path / "out"
    running = on_ray(folder, out, light, jobs=2, cases=40)
    kill_one(running, "^ray::Worker")  # in the middle, one of the two
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 1, errors  # for the broken scan
    assert alive(running) == []
    found = rows(out)
    assert len(found) == 41
    assert {case for case, row in found.items() if row["status"] != "done"} == {"broken.mha"}
    masks = list(out.rglob("*.nii.gz"))
    assert len(masks) == 40
    assert all(same_geometry(folder / "case.nii.gz", mask) for mask in masks)
    before = times(out)
    (folder / "broken.mha").unlink()
    hemseg("segment", folder, out, "--quiet", "--weights", light)  # and what Ray has done counts as done
    assert times(out) == before
    assert not [name for name in files(out) if ".part" in name]


@pytest.mark.slow
def test_ray_loses_its_head(folder: Path, tmp_path: Path, light: Path) -> None:
    """Ray would say nothing for a minute, then end the process with a line of its own, and leave two behind."""
    out = tmp_path / "out"
    running = on_ray(folder, out, light, jobs=1, cases=300)
    kill_one(running, "gcs/gcs_server")
    _, errors = running.communicate(timeout=100)
    assert running.returncode == 1
    assert alive(running) == []
    assert errors.strip().splitlines()[-1].startswith("error: the head of the Ray cluster does not answer any more")
    assert "Traceback" not in errors
    done = [case for case, row in rows(out).items() if row["status"] == "done"]
    assert 2 <= len(done) < 300
    assert all((out / case).is_file() for case in done)
