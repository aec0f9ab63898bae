"""What it costs to know what was read, what is done and what may be replaced: ``python test/stress/overhead.py``.

CPU seconds in one process, the least of several runs, of a phantom of 512 x 512 x 28 voxels: the whole case, and what
`hemseg.io.fingerprint`, `hemseg.io.marks`, `hemseg.folder.outputs` and syncing add to it (as where outputs exist
already, which is the dearer case). Exit code 1 if that is more than 3 %.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hemseg.folder.jobs import run_job
from hemseg.folder.outputs import files_of, refuse_conflicts
from hemseg.folder.plan import Job
from hemseg.folder.rows import row_of
from hemseg.io.files import atomic_write
from hemseg.io.fingerprint import unchanged
from hemseg.io.marks import voxel_hash
from hemseg.model import load
from training.data.phantom import Grid, make_phantom, write_image

SHARE = 0.03


def least(work: Callable[[], object], times: int) -> float:
    """CPU seconds."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def main() -> int:
    """Run it."""
    model = load(device="cpu", threads=1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        head = make_phantom(5, ("intraparenchymal",), Grid((28, 512, 512), (0.45, 0.45, 5.0)))
        scan = folder / "in" / "a.nii.gz"
        write_image(head.volume.hu, head.volume, scan)
        job = Job(Path("a.nii.gz"), scan, folder / "a.nii.gz", thumbnail=folder / "a.jpg")
        outcome = run_job(job, model)
        assert outcome.result, outcome.error
        mask = outcome.result.mask

        def added() -> None:
            refuse_conflicts([job])
            with unchanged(files_of(job), scan):
                voxel_hash(mask)
            for path in job.outputs:
                content = path.read_bytes()
                with atomic_write(folder / "copy") as partial:
                    partial.write_bytes(content)
            row_of(outcome, "key", folder)

        case, more = least(lambda: run_job(job, model), 3), least(added, 9)
    print(f"a case {case:.3f} CPU s, of which {1000 * more:.0f} ms are added: {100 * more / case:.1f} %")
    return more > SHARE * case


if __name__ == "__main__":
    sys.exit(main())
