"""What the documentation shows works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from conftest import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "training" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "weights" / "MODEL_CARD.md",
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


OWN_TEST = ROOT / "training" / "README.md"  # test_recipe.py runs its example


@pytest.mark.parametrize("page", [page for page in PAGES if page != OWN_TEST], ids=lambda p: p.name)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        code = code.replace('"test/', f'"{ROOT}/test/')
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def block(language: str, beginning: str) -> str:
    """A block of code of docs/scale.md."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "scale.md").read_text(), re.DOTALL)
    (found,) = (text for text in blocks if text.startswith(beginning))
    return found


def test_the_slurm_script_does_every_folder_once(tmp_path: Path) -> None:
    """Two tasks of an array, without Slurm: what it would set is set here."""
    script = block("bash", "#!/bin/bash\n#SBATCH --job-name=hemseg --array").replace("/data/", f"{tmp_path}/")
    assert re.search(r"^#SBATCH .*--array=", script, re.MULTILINE)
    for name in ("a", "b c", "d"):
        (tmp_path / "scans" / name).mkdir(parents=True)
        shutil.copy(ROOT / "test" / "cases" / "phantom-lobar.mha", tmp_path / "scans" / name)
    (tmp_path / "scans" / "d" / "broken.mha").write_text("no scan")
    slurm = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
    codes = []
    for task in ("0", "1"):
        environment = os.environ | slurm | {"SLURM_ARRAY_TASK_ID": task}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        codes.append(subprocess.run(["bash", "-c", script], env=environment, check=False).returncode)
    assert codes == [1, 0]  # a and d, which has the broken file; b c
    masks = sorted(str(p.relative_to(tmp_path / "masks")) for p in (tmp_path / "masks").rglob("*.mha"))
    assert masks == [f"{name}/phantom-lobar.mha" for name in ("a", "b c", "d")]


def test_the_kubernetes_job_fits_the_schema() -> None:
    job = yaml.safe_load(block("yaml", "apiVersion: batch/v1"))
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):  # the schema does look
        kubernetes_validate.validate(
            job | {"spec": {"completion": 1}}, kubernetes_validate.latest_version(), strict=True
        )


def test_options_are_documented() -> None:
    output = subprocess.run(
        [sys.executable, "-m", "hemseg.cli", "segment", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    usage = (ROOT / "docs" / "usage.md").read_text()
    options = set(re.findall(r"(--[a-z]+)", re.sub(r"\x1b\[[0-9;]*m", "", output))) - {"--help"}
    assert len(options) >= 10
    assert not [option for option in options if option not in usage]
