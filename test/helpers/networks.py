"""Networks so small that a test can build and train them."""

from __future__ import annotations

from pathlib import Path

from training.config import Classifier

TINY = Classifier(
    backbone="resnet18", widths=(4, 4, 8, 8), output_stride=8, image_size=(64, 48), windows=((0, 80), (-20, 100))
)


def write_tiny(folder: Path, differences: str) -> Path:
    """A configuration of such networks; returns its path.

    Args:
        differences: from ``tiny.yaml`` beside this module, in YAML.
    """
    path = folder / "tiny.yaml"
    path.write_text(f"extends: {Path(__file__).with_name('tiny.yaml')}\n{differences}")
    return path
