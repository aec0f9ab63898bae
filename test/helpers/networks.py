"""Networks so small that a test can build and train them."""

from __future__ import annotations

from training.config import Classifier

TINY = Classifier(
    backbone="resnet18", widths=(4, 4, 8, 8), output_stride=8, image_size=(64, 48), windows=((0, 80), (-20, 100))
)
