"""The slice network that names kinds: the slice classifier's backbone, feature maps out (`hemseg.kinds` reads them).

The maps of the last three stages are put together, so that a linear head over them is a class activation map, exact
for every kind. What it takes is HU of a field of view on the working grid; sampling it to the classifier's own size
and its windows are inside, so that the exported graph is all that inference needs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from .field_sampling import FieldSampling, field_size
from .slice_network import SliceNetwork

STAGES = (2, 3, 4)


class KindNetwork(nn.Module):
    """HU (n, y, x) of fields of view -> features (n, channel, y', x'), all stages at the resolution of the last."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        settings = replace(config.classifier, pretrained="")
        self.slices = SliceNetwork(settings)
        self.field = field_size(config)
        self.sampled = FieldSampling(self.field, settings.image_size)

    def forward(self, hu: Tensor) -> Tensor:
        maps = self.slices.stages(self.sampled(hu))
        size = maps[-1].shape[2], maps[-1].shape[3]
        wanted = [maps[stage - 1] for stage in STAGES]
        return torch.cat([m if m.shape[2:] == size else F.adaptive_avg_pool2d(m, size) for m in wanted], 1)
