"""RoIAlign as one product with a sparse matrix: a row a pooled cell, a column a cell of the map.

A pooled cell is the mean of bilinear samples, hence a weighted sum of a few cells of the map, with the same weights
for all channels. Boxes are upright, so a weight is one of the vertical axis times one of the horizontal axis.
`embedding_bag` multiplies such a matrix, given by its entries row by row, with a table of rows. The gradient of the
table is the product with the transposed matrix, whose entries are the same in another order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from gpt4roi.errors import InputError


class AxisWeights(NamedTuple):
    """Which cells of one axis the pooled cells read; every cell at most once."""

    cells: torch.Tensor
    """int64[M, P, T], T = 2 x sampling_ratio"""
    weights: torch.Tensor
    """float[M, P, T]; 0 where a position is not used"""


class _Product(torch.autograd.Function):
    """A sparse matrix, by its entries row by row, times a table of rows.

    `embedding_bag` has a gradient of its own, which adds to the rows of the table entry by entry and so reads and
    writes each of them many times.
    """

    @staticmethod
    def forward(ctx: Any, table: torch.Tensor, starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor):
        """Returns float[R, C]; table: float[N, C]; starts: int64[R]; columns, values: int64[E], float[E]."""
        ctx.save_for_backward(starts, columns, values)
        ctx.table_rows = len(table)
        return F.embedding_bag(columns, table, starts, mode="sum", per_sample_weights=values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor):
        """Returns the gradient of the table, float[N, C]."""
        starts, columns, values = ctx.saved_tensors
        order = columns.argsort()
        # An entry belongs to the last row that starts at it or before it.
        rows = torch.searchsorted(starts, order, right=True) - 1
        counts = columns.bincount(minlength=ctx.table_rows)
        starts = counts.cumsum(0) - counts
        result = F.embedding_bag(rows, gradient.contiguous(), starts, mode="sum", per_sample_weights=values[order])
        return result, None, None, None


def sparse_roi_align(
    feature_map: torch.Tensor, rois: torch.Tensor, output_size: int, spatial_scale: float, sampling_ratio: int
) -> torch.Tensor:
    """Pools boxes from a map, as `roi_align` does; fastest where the map is channels-last.

    feature_map: float[K, C, H, W], float32 or float64; rois: float[M, 5] of the same dtype.
    Returns float[M, C, P, P] (channels-last), P = output_size. Raises InputError on an adaptive sampling_ratio.
    """
    if sampling_ratio < 1:
        raise InputError(
            f"roi_align_backend='sparse' takes a fixed number of samples, got roi_sampling_ratio={sampling_ratio}; "
            "set it to 1 or more, or choose roi_align_backend='torchvision'"
        )
    height, width = feature_map.shape[-2:]
    starts, columns, values = _entries(rois, (height, width), output_size, spatial_scale, sampling_ratio)
    # PyTorch transposes a plain matrix many times faster than it permutes four dimensions (no copy if channels-last).
    tables = [image.flatten(1).t().contiguous() for image in feature_map]
    table = tables[0] if len(tables) == 1 else torch.cat(tables)
    pooled = _Product.apply(table, starts, columns, values)
    return rearrange(pooled, "(m h w) c -> m c h w", h=output_size, w=output_size)


def _axis_weights(
    low: torch.Tensor, high: torch.Tensor, size: int, output_size: int, spatial_scale: float, sampling_ratio: int
) -> AxisWeights:
    """Weighs the cells of an axis of `size` cells for boxes from low to high, float[M] in input pixels."""
    start = low * spatial_scale - 0.5
    step = (high * spatial_scale - 0.5 - start)[:, None, None] / output_size
    pooled = torch.arange(output_size, device=low.device, dtype=low.dtype)[:, None]
    sample = torch.arange(sampling_ratio, device=low.device, dtype=low.dtype) + 0.5
    position = start[:, None, None] + pooled * step + sample * step / sampling_ratio
    # A sample up to one cell outside counts as one on the border, one further off as 0.
    inside = (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1)
    lower = position.floor().long()
    far = position - lower
    cells = torch.cat([lower, (lower + 1).clamp(max=size - 1)], dim=-1)
    weights = torch.cat([1 - far, far], dim=-1) * inside.repeat(1, 1, 2) / sampling_ratio
    # Samples of one pooled cell often share cells of the map: the first to name one takes the weights of all.
    same = cells[..., :, None] == cells[..., None, :]
    first = ~same.tril(-1).any(-1)
    return AxisWeights(cells, (same * weights[..., None, :]).sum(-1) * first)


def _entries(
    rois: torch.Tensor, size: tuple[int, int], output_size: int, spatial_scale: float, sampling_ratio: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Lists the entries of the matrix that are not 0, row by row: where each row starts, the columns, the values."""
    image, x1, y1, x2, y2 = rois.unbind(1)
    height, width = size
    vertical = _axis_weights(y1, y2, height, output_size, spatial_scale, sampling_ratio)
    horizontal = _axis_weights(x1, x2, width, output_size, spatial_scale, sampling_ratio)
    # Dimensions: box, pooled row, pooled column, vertical and horizontal position.
    values = vertical.weights[:, :, None, :, None] * horizontal.weights[:, None, :, None, :]
    line = image.long()[:, None, None] * height + vertical.cells
    columns = line[:, :, None, :, None] * width + horizontal.cells[:, None, :, None, :]
    used = values.flatten(0, 2).flatten(1) != 0
    counts = used.sum(1)
    return counts.cumsum(0) - counts, columns.reshape(used.shape)[used], values.reshape(used.shape)[used]
