"""Follow docs/training.md word for word: run the commands of its section *From nothing to a mask*, in order.

    make newcomer                        # about a quarter of an hour on two cores

A block of ``sh`` must end well, a block of ``sh refused`` with exit code 1 and no traceback. What the page promises of
the results is checked at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "training.md"
SECTION = "## From nothing to a mask"
MAX_MINUTES = 15
SAID = ("slice_labels.csv, row", "neither 0 nor 1", "phantom-000-003")  # of the wrong label, and of the broken scan


def blocks(page: str) -> list[tuple[str, bool]]:
    """The commands of the section, and whether they are to be refused."""
    section = page.split(SECTION, 1)[1].split("\n## ", 1)[0]
    return [(code, bool(refused)) for refused, code in re.findall(r"```sh( refused)?\n(.*?)```", section, re.DOTALL)]


def follow(folder: Path) -> str:
    """Run all blocks in a folder; returns what those that are refused say.

    Raises:
        SystemExit: a command does not end as the page says.
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    said = ""
    for code, refused in blocks(PAGE.read_text()):
        print(code, flush=True)
        start = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE if refused else None,
            text=True,
            check=False,
        )
        print(f"# {time.monotonic() - start:.0f} s\n", flush=True)
        if done.returncode != int(refused) or "Traceback" in (done.stderr or ""):
            raise SystemExit(f"ended with exit code {done.returncode}:\n{code}{done.stderr or ''}")
        said += done.stderr or ""
    return said


def main() -> None:
    """Follow the page in a new folder and look at what came out."""
    folder, start = Path(tempfile.mkdtemp(prefix="newcomer-")), time.monotonic()
    try:
        said = follow(folder)
        missing = [words for words in SAID if words not in said]
        assert not missing, f"not said: {missing}\n{said}"
        assert (folder / "mask.nii.gz").is_file(), "there is no mask"
        assert list((folder / "runs" / "own" / "panels").glob("*.png")), "there are no panels"
        assert (folder / "runs" / "own" / "uncertain" / "ranking.csv").is_file(), "there is no ranking"
    finally:
        shutil.rmtree(folder)
    minutes = (time.monotonic() - start) / 60
    print(f"followed in {minutes:.1f} minutes")
    assert minutes <= MAX_MINUTES, f"the page promises {MAX_MINUTES} minutes"


if __name__ == "__main__":
    main()
