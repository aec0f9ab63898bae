"""Everything is in pyproject.toml but two things that differ between a clone and a wheel.

A wheel carries the weights, which lie beside the package in a clone; and the folder ``training`` is the package
``hemseg_training`` there. Its modules import each other relatively, so that ``python -m training`` works in a clone.
"""

import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildWithWeights(build_py):
    """Copies ``weights/`` to ``hemseg/weights/`` of what is built."""

    def run(self) -> None:
        """Build, then copy; an editable install finds them where they are."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                Path(__file__).parent / "weights",
                Path(self.build_lib) / "hemseg" / "weights",
                ignore=shutil.ignore_patterns("torch"),  # for training, which happens in a clone
                dirs_exist_ok=True,
            )


packages = [
    *find_packages(include=["hemseg", "hemseg.*"]),
    "hemseg_training",
    *(f"hemseg_training.{name}" for name in find_packages("training")),
]
setup(packages=packages, cmdclass={"build_py": BuildWithWeights})
