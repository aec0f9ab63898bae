"""Broken scans by the hundred thousand: whatever a file holds, reading it gives a scan or a sentence.

    python test/stress/fuzz.py --count 100000 --seed 0      `make soak` runs it; `make test` a small part (test_fuzz.py)

Small valid files of every format are mutated (bits, bytes, numbers of the header, blocks cut, doubled or moved) and
read in worker processes that may take 2 GiB and ten seconds. A crash, a hang, more memory or any exception but
HemsegError is a finding; the file that caused it is kept in ``--keep``.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from hemseg.checks import require_head_ct
from hemseg.errors import HemsegError
from hemseg.scan import read
from hemseg.volume import Volume

MEMORY, SECONDS = 2 * 2**30, 10
GOOD = ("read", "read, no CT", "refused")  # what may become of a file
REFUSED = ("g.nii",)  # of the corpus: NIfTI-2
NUMBERS = (
    b"0",
    b"-1",
    b"1e38",
    b"nan",
    b"inf",
    b"-0.0",
    b"2147483647",
    b"4294967296",
    b"99999999999999999999",
    b"1e-45",
)
ENCAPSULATED = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0"  # an empty table of offsets, then the first item
WORDS = (
    b"MET_DOUBLE",
    b"MET_FLOAT_ARRAY",
    b"LOCAL",
    b"LIST",
    b"gzip",
    b"raw",
    b"hex",
    b"block",
    b"left-posterior-superior",
    b"",
)


@dataclass(frozen=True)
class Finding:
    """A seed whose file was not read as it should be."""

    seed: int
    name: str
    said: str


def corpus(folder: Path) -> list[Path]:
    """Small valid files of every format, with values of a head: hemseg takes them, but for `REFUSED`."""
    rng = np.random.default_rng(0)
    hu = rng.normal(32, 6, (6, 9, 8))  # brain between bone, air in front
    hu[:, [1, -1]] = rng.normal(1100, 150, (6, 2, 8))
    hu[:, 0] = rng.normal(-985, 5, (6, 8))
    image = sitk.GetImageFromArray(hu.round().astype(np.int16))
    image.SetSpacing((4.0, 4.5, 5.0))
    made = []
    for name, packed in (
        ("a.nii", False),
        ("a.nii.gz", True),
        ("a.mha", False),
        ("b.mha", True),
        ("a.nrrd", False),
        ("b.nrrd", True),
    ):
        sitk.WriteImage(image, str(folder / name), useCompression=packed)
        made.append(folder / name)
    with contextlib.suppress(ImportError):
        from helpers.series import write_enhanced, write_series

        from hemseg.io.images import from_itk

        write_series(folder / "series", from_itk(image))
        for stored, kind in (("c.zip", zipfile.ZIP_STORED), ("d.zip", zipfile.ZIP_DEFLATED)):
            with zipfile.ZipFile(folder / stored, "w", kind) as archive:
                for path in sorted((folder / "series").iterdir()):
                    archive.write(path, path.name)
            made.append(folder / stored)
        write_enhanced(folder / "e.dcm", from_itk(image))  # a zip archive's checksums would hide what is wrong in it
        made.append(folder / "e.dcm")
        made += _odd_dicom(folder, from_itk(image))
    return made + _odd_images(folder, image)


def _odd_images(folder: Path, image: sitk.Image) -> list[Path]:
    """What ITK does not write itself: two orientations, NIfTI-2, directions in NRRD, big endian, a separate matrix."""
    import nibabel

    voxels = sitk.GetArrayFromImage(image)
    affine = np.diag([-4.0, -4.5, 5.0, 1.0])
    both = nibabel.Nifti1Image(voxels.T, affine)
    both.set_qform(affine, 1)
    turned = affine.copy()
    turned[0] *= -1
    both.set_sform(turned, 2)
    nibabel.save(both, folder / "f.nii")
    nibabel.save(nibabel.Nifti2Image(voxels.T, affine), folder / "g.nii")
    scaled = nibabel.Nifti1Image((voxels.T + 1024).astype(np.uint16), affine)
    scaled.header.set_slope_inter(0.5, -1024)
    unsaid = nibabel.Nifti1Image(voxels.T.astype(np.float32), None)
    unsaid.header.set_zooms((4.0, 4.5, 5.0))
    nibabel.save(scaled, folder / "l.nii")
    nibabel.save(unsaid, folder / "m.nii.gz")
    packed = zlib.compress(voxels.astype(">i2").tobytes())
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = True\nCompressedData = True\n"
    head += f"CompressedDataSize = {len(packed)}\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nAnatomicalOrientation = LAI\n"
    head += "ElementSpacing = 4 4.5 5\nDimSize = 8 9 6\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (folder / "h.mha").write_bytes(head.encode() + packed)
    head = "NRRD0004\ntype: short\ndimension: 3\nspace: RAS\nsizes: 8 9 6\n"
    head += "space directions: (-4,0,0) (0,-4.5,0) (0,0,5)\n"
    (folder / "i.nrrd").write_bytes(f"{head}endian: little\nencoding: raw\n\n".encode() + voxels.tobytes())
    return [folder / name for name in ("f.nii", "g.nii", "h.mha", "i.nrrd", "l.nii", "m.nii.gz")]


def _odd_dicom(folder: Path, volume: Volume) -> list[Path]:
    """Slices without preamble, of text in two encodings, deflated; an archive whose one series holds two kernels."""
    import pydicom
    from helpers.series import transcode, write_series

    one = write_series(folder / "one", replace(volume, hu=volume.hu[:1]))[0]
    dataset = pydicom.dcmread(one)
    bare = pydicom.Dataset({element.tag: element for element in dataset})
    bare.save_as(folder / "j.dcm", implicit_vr=True, little_endian=True, enforce_file_format=False)
    two = [
        path
        for kernel in ("H31s", "H70h")
        for path in write_series(
            folder / kernel, volume, study="1.2", SeriesInstanceUID="1.3", ConvolutionKernel=kernel
        )
    ]
    with zipfile.ZipFile(folder / "k.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in two:
            archive.write(path, str(path.relative_to(folder)))
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.SeriesDescription, dataset.PatientBirthDate, dataset.ContrastBolusAgent = "頭部", None, None
    dataset.save_as(folder / "n.dcm")
    deflated = pydicom.dcmread(one)
    deflated.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    deflated.save_as(folder / "o.dcm")
    made = [folder / name for name in ("j.dcm", "k.zip", "n.dcm", "o.dcm")]
    for syntax in (pydicom.uid.JPEG2000Lossless, pydicom.uid.JPEGLSLossless, pydicom.uid.JPEGLosslessSV1):
        made.append(folder / f"{syntax.split('.')[-1]}.dcm")
        shutil.copy(one, made[-1])
        transcode(made[-1], syntax)
    return made


def mutated(content: bytes, rng: random.Random) -> bytes:
    """A few of the things that happen to files, and some that only an enemy does."""
    data = bytearray(content)
    head = min(len(data), 600)
    frame = content.find(ENCAPSULATED) + len(ENCAPSULATED)  # where the compressed pixels of a DICOM file begin
    begin = frame if frame >= len(ENCAPSULATED) and rng.random() < 0.5 else 0
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        kind, n = rng.randrange(9), max(1, len(data))
        at = (begin + rng.randrange(head if rng.random() < 0.7 else n)) % n
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and data:
            data[at] = rng.choice((0, 1, 127, 128, 255))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + rng.choice((1, 2, 4, 16, 100))]
        elif kind == 4:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 4, 16))))
        elif kind == 5:
            data[at : at + 8] = rng.choice(
                (b"\xff" * 8, b"\x00" * 8, b"\x7f\xff\xff\xff\x7f\xff\xff\xff", b"\xff\xff\xff\x7f" * 2)
            )
        elif kind == 6:
            data[at:at] = data[at : at + rng.choice((4, 64, 512))]
        else:  # a number or a word of a text header
            found = list(re.finditer(rb"[-+.\d]+" if kind == 7 else rb"[A-Za-z_-]{3,}", bytes(data[:head])))
            if found:
                where = rng.choice(found)
                data[where.start() : where.end()] = rng.choice(NUMBERS if kind == 7 else WORDS)
    return bytes(data)


def _limit(signum: int, frame: object) -> None:
    raise TimeoutError("took too long")


def _worker(seeds: range, originals: list[tuple[str, bytes]], folder: str, pipe: Connection) -> None:
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + _address_space(), resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _limit)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # ITK and gdcm write there themselves
    for seed in seeds:
        rng = random.Random(seed)
        name, content = originals[seed % len(originals)]
        path = Path(folder) / f"{os.getpid()}-{name}"
        path.write_bytes(mutated(content, rng))
        pipe.send(("start", seed, name))
        signal.alarm(SECONDS)
        said = "refused"
        try:
            volume = read(path)
            said = "read, no CT"
            require_head_ct(volume)
            said = "read"
        except HemsegError as error:
            if "\n" in str(error) or path.name not in str(error):
                said = f"unclear: {error!r}"
        except MemoryError:
            said = "memory"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        signal.alarm(0)
        pipe.send(("end", seed, said))
    pipe.send(("done", 0, ""))


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def fuzz(count: int, seed: int, workers: int = 2, keep: Path | None = None) -> tuple[Counter[str], list[Finding]]:
    """Read ``count`` mutated files; returns what became of them, and the findings."""
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as temporary:
        originals = [(path.name, path.read_bytes()) for path in corpus(Path(temporary))]
        todo = [range(seed + w, seed + count, workers) for w in range(workers)]

        def began(seeds: range) -> tuple[multiprocessing.process.BaseProcess, Connection]:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_worker, args=(seeds, originals, temporary, theirs), daemon=True)
            process.start()
            theirs.close()
            return process, ours

        running = {w: began(seeds) for w, seeds in enumerate(todo)}
        current: dict[int, tuple[int, str, float]] = {}
        while running:
            ready = multiprocessing.connection.wait([pipe for _, pipe in running.values()], timeout=1)
            for w, (process, pipe) in list(running.items()):
                lost = ""
                if pipe in ready:
                    try:
                        kind, number, said = pipe.recv()
                    except EOFError:
                        process.join()
                        lost = f"killed by signal {-(process.exitcode or 0)}"
                    else:
                        if kind == "start":
                            current[w] = (number, said, time.monotonic())
                        elif kind == "done":
                            del running[w]
                        else:
                            outcomes[said.split(":")[0]] += 1
                            if said not in GOOD:
                                findings.append(Finding(number, current[w][1], said))
                elif w in current and time.monotonic() - current[w][2] > 3 * SECONDS:
                    process.kill()
                    process.join()
                    lost = "hangs"
                if lost:
                    number, name, _ = current.pop(w)
                    outcomes[lost] += 1
                    findings.append(Finding(number, name, lost))
                    running[w] = began(range(number + workers, seed + count, workers))
        if keep and findings:
            keep.mkdir(parents=True, exist_ok=True)
            for number in [finding.seed for finding in findings]:
                name, content = originals[number % len(originals)]
                (keep / f"{number}-{name}").write_bytes(mutated(content, random.Random(number)))
    return outcomes, findings


def main() -> None:
    """Run it; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"))
    arguments = parser.parse_args()
    start = time.monotonic()
    outcomes, findings = fuzz(arguments.count, arguments.seed, arguments.workers, arguments.keep)
    print(f"{arguments.count} files in {time.monotonic() - start:.0f} s: {dict(outcomes)}")
    for finding in findings[:50]:
        print(f"seed {finding.seed}, {finding.name}: {finding.said[:300]}")
    sys.exit(bool(findings))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`
    main()
