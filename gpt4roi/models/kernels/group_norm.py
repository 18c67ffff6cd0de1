"""GroupNorm in the precision of its map, without float32 copies under autocast."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """GroupNorm in the precision of its map.

    The kernel itself computes half precision in float32; autocast would keep float32 maps for the gradient besides.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Keeps the shape, float[K, C, H, W]."""
        with torch.autocast(values.device.type, enabled=False):
            weight, bias = self.weight.to(values.dtype), self.bias.to(values.dtype)
            return F.group_norm(values, self.num_groups, weight, bias, self.eps)
