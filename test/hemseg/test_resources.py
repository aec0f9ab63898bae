"""What will not fit is refused in a sentence, before anything is allocated."""

from __future__ import annotations

import platform
import resource
from pathlib import Path

import pytest
from conftest import python

from hemseg import resources
from hemseg.errors import HemsegError
from hemseg.resources import available_bytes, check_memory, check_model_memory, is_out_of_memory, resident_bytes


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A scan of 512 x 512 x 1600 voxels, 0.8 GB, most of it a hole in the file."""
    path = tmp_path / "large.mha"
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 512 512 1600\nElementType = MET_SHORT\nElementSpacing = 0.5 0.5 0.1\n"
    )
    path.write_text(f"{header}ElementDataFile = LOCAL\n")
    with path.open("r+b") as file:
        file.truncate(len(header) + 25 + 512 * 512 * 1600 * 2)
    return path


def test_a_limit_is_told_before_it_is_hit(large: Path, tmp_path: Path) -> None:
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30)); "
    limit += "from hemseg.cli import main; sys.argv[0] = 'hemseg'; main()"
    done = python("-c", limit, "segment", large, tmp_path / "out", check=1)
    assert "takes about 3.4 GB of memory, and this process can have 3.2 GB" in done.stderr
    assert not list((tmp_path / "out").rglob("*.mha"))


@pytest.mark.parametrize(
    ("limit", "used", "stat"), [(1 << 30, 700 << 20, 100 << 20), (3 << 30, 1 << 30, 0), ("max", 1 << 30, 0)]
)
@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_containers_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, limit: int | str, used: int, stat: int
) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")
        (tmp_path / "memory").mkdir()
    for name, text in zip(names, (limit, used), strict=False):
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / names[0]).with_name("memory.stat").write_text(f"anon 1\n{names[2]} {stat}\nfile 2\n")
    own = 200 << 20  # not what the tests before left in this process
    monkeypatch.setattr(resources, "resident_bytes", lambda: own)
    monkeypatch.setattr(resources, "CGROUP", tmp_path / "none")
    without = available_bytes()
    assert without is not None
    monkeypatch.setattr(resources, "CGROUP", tmp_path)
    room = available_bytes()
    assert room is not None
    if limit == "max":
        assert room > (1 << 30)
    else:
        assert room == int(limit) - used + stat + own
        assert room < without
        with pytest.raises(HemsegError, match=r"takes about 7\.4 GB"):
            check_memory(Path("a.nii"), 10**9, 2)
        if limit == 3 << 30:
            check_memory(Path("a.nii"), 512 * 512 * 28, 2)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_freed_memory_of_threads_goes_back() -> None:
    """Four threads fill memory with pieces below the size that glibc maps apart, and free all but a few."""
    code = """
import ctypes, sys, threading
from hemseg.resources import release_memory, resident_bytes, share_heap
if sys.argv[1] == "shared":
    share_heap()
kept, together = [], threading.Barrier(4)
def work():
    pieces = [b"x" * 100_000 for _ in range(500)]
    together.wait()
    kept.append(pieces[::100])
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
before = resident_bytes()
release_memory()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, file), libc.fflush(file)
print(before - resident_bytes(), file=sys.stderr)
"""
    output = {how: python("-c", code, how) for how in ("own", "shared")}
    assert all(int(done.stderr) > (100 << 20) for done in output.values())
    assert output["own"].stdout.count("<heap nr=") > 1
    assert output["shared"].stdout.count("<heap nr=") == 1


def test_the_limit_that_grand_challenge_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    used = resources._field(Path("/proc/self/status"), "VmData:") * 1024
    limits = {resource.RLIMIT_DATA: used + (100 << 20)}
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resources.resource, "getrlimit", lambda kind: (limits.get(kind, unlimited), unlimited))
    room = available_bytes()
    assert room == pytest.approx(resident_bytes() + (100 << 20), abs=5 << 20)
    with pytest.raises(HemsegError, match="give it more"):
        check_memory(Path("scan.mha"), 512 * 512 * 300, 2)


@pytest.mark.parametrize("own", [200 << 20, 2 << 30])
def test_what_the_process_holds_already_is_no_room_for_a_scan(monkeypatch: pytest.MonkeyPatch, own: int) -> None:
    """A process of 2 GB, of which hemseg is a part, needs as much more for a scan as a small one."""
    scan = (Path("scan.mha"), 512 * 512 * 300, 2)  # 550 MB
    monkeypatch.setattr(resources, "resident_bytes", lambda: own)
    base = max(own, resources.PROCESS_BYTES)
    monkeypatch.setattr(resources, "available_bytes", lambda: base + (540 << 20))
    check_memory(*scan)
    monkeypatch.setattr(resources, "available_bytes", lambda: base + (510 << 20))
    with pytest.raises(HemsegError, match=f"takes about {(base + 512 * 512 * 300 * 7) / 1e9:.1f} GB"):
        check_memory(*scan)


def test_freed_memory_goes_back_before_anything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [3 << 30]
    monkeypatch.setattr(resources, "resident_bytes", lambda: own[0])
    monkeypatch.setattr(resources, "available_bytes", lambda: 4 << 30)
    with monkeypatch.context() as patch:
        patch.setattr(resources, "release_memory", lambda: None)
        with pytest.raises(HemsegError, match="give it more"):
            check_memory(Path("scan.mha"), 512 * 512 * 1000, 2)
    monkeypatch.setattr(resources, "release_memory", lambda: own.__setitem__(0, 1 << 30))
    check_memory(Path("scan.mha"), 512 * 512 * 1000, 2)


def test_too_little_to_start_is_said_before_the_libraries_are_loaded(tmp_path: Path) -> None:
    """OpenBLAS would end the process over it, without a word."""
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_DATA, (300 << 20, 300 << 20)); import process; "
    done = python("-c", f"{limit}sys.exit(process.main())", "--input", tmp_path, "--output", tmp_path / "out", check=1)
    assert done.stderr == (
        "error: hemseg takes at least 0.4 GB of memory, and this process can have 0.3 GB; give it more.\n"
    )


def test_a_model_that_cannot_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    check_model_memory(path)  # what is missing is said elsewhere
    with path.open("wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(resources, "available_bytes", lambda: 2 << 30)
    monkeypatch.setattr(resources, "resident_bytes", lambda: 500 << 20)
    said = r"model\.onnx: takes about 3\.2 GB of memory to load, 3\.7 GB with .* can have 2\.1 GB; give it more"
    with pytest.raises(HemsegError, match=said):
        check_model_memory(path)
    monkeypatch.setattr(resources, "available_bytes", lambda: 4 << 30)
    check_model_memory(path)


def test_every_library_s_way_to_say_that_memory_ran_out() -> None:
    said = ("std::bad_alloc", "BFCArena: Failed to allocate memory for requested buffer", "(-4:Insufficient memory) x")
    assert all(is_out_of_memory(RuntimeError(text)) for text in said)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("something else"))
