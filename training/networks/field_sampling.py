"""From the field of view on the working grid to the slice classifier's own size, inside an exported graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config


def field_size(config: Config) -> tuple[int, int]:
    """The classifier's field of view, (y, x) voxels of the working grid."""
    rows, columns = (round(mm / config.preprocessing.in_plane_mm) for mm in config.classifier.field_mm)
    return rows, columns


class FieldSampling(nn.Module):
    """What `training.data.field_of_view.to_network_size` does, as a product with two matrices, which ONNX has, too.

    Input (n, *field), output (n, *size).
    """

    def __init__(self, field: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.rows: Tensor
        self.columns: Tensor
        for name, length, target_length in zip(("rows", "columns"), field, size, strict=True):
            identity = torch.eye(length)[None, None]
            sampled = F.interpolate(
                identity, (target_length, length), mode="bilinear", antialias=True, align_corners=False
            )
            self.register_buffer(name, sampled[0, 0], persistent=False)

    def forward(self, hu: Tensor) -> Tensor:
        return self.rows @ hu @ self.columns.T
