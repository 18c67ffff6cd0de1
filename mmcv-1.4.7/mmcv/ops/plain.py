"""Computes RoIAlign in plain PyTorch: every bin is a weighted sum of a few rows of the channels-last feature map.

The weights of a bin are products of one vertical and one horizontal weight (bilinear interpolation is separable), so
each axis is worked out by itself. `embedding_bag` sums the rows without copying them, on every device.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class AxisTaps(NamedTuple):
    """Describes where the samples of M boxes fall on one axis: two neighbouring cells each, with their weights."""

    index: Tensor
    """int64[M, bins, grid, 2], clamped into the map"""
    weight: Tensor
    """float[M, bins, grid, 2]; 0 for samples outside the map and for padding"""
    used: Tensor
    """bool[M, grid]; False for padding, since with sampling_ratio 0 boxes differ in their number of samples"""


def axis_taps(
    low: Tensor, high: Tensor, size: int, bins: int, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> AxisTaps:
    """Places the samples of boxes from `low` to `high` (float[M], input pixels) on an axis of `size` cells."""
    offset = 0.5 if aligned else 0.0
    start = low * spatial_scale - offset
    length = high * spatial_scale - offset - start
    if not aligned:
        length = length.clamp(min=1.0)
    bin_length = length / bins
    if sampling_ratio > 0:
        grid = torch.full_like(bin_length, sampling_ratio)
        longest = sampling_ratio
    else:
        grid = bin_length.ceil().clamp(min=0.0)
        longest = max(int(grid.max()), 1) if grid.numel() else 1
    sample = torch.arange(longest, device=low.device, dtype=low.dtype)
    used = sample < grid[:, None]
    corner = start[:, None] + torch.arange(bins, device=low.device, dtype=low.dtype) * bin_length[:, None]
    within = (sample + 0.5) * bin_length[:, None] / grid.clamp(min=1.0)[:, None]
    position = corner[:, :, None] + within[:, None, :]
    inside = used[:, None, :] & (position >= -1.0) & (position <= size)
    position = torch.where(inside, position, 0.0).clamp(0.0, size - 1.0)
    lower = position.floor()
    fraction = position - lower
    index = torch.stack([lower, (lower + 1.0).clamp(max=size - 1.0)], dim=-1).long()
    weight = torch.stack([1.0 - fraction, fraction], dim=-1) * inside[..., None]
    return AxisTaps(index, weight, used)


def check_rois(rois: Tensor, batch: int, aligned: bool) -> None:
    """Raises ValueError for rois that the compiled CPU operator refuses too: not finite, inverted, no such image."""
    image, low, high = rois[:, 0], rois[:, 1:3], rois[:, 3:5]
    for row in (~rois.isfinite()).any(dim=1).nonzero()[:1]:
        raise ValueError(f"roi {int(row)} has a coordinate that is not finite")
    for row in ((image < 0) | (image >= batch)).nonzero()[:1]:
        raise ValueError(f"roi {int(row)} names image {int(image[row])} of a batch of {batch}")
    if aligned:
        for row in (high < low).any(dim=1).nonzero()[:1]:
            raise ValueError(f"roi {int(row)} is inverted: expected x1 <= x2 and y1 <= y2")


def roi_align_plain(
    input: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    max_pool: bool,
    aligned: bool,
) -> Tensor:
    """Pools M boxes from `input` float[B, C, H, W]; `rois` is float[M, 5] in the dtype to compute in.

    Returns float[M, C, output_h, output_w] in the dtype of `input`.
    """
    batch, channels, height, width = input.shape
    if input.device.type == "cpu":
        check_rois(rois, batch, aligned)
    options = (spatial_scale, sampling_ratio, aligned)
    rows = axis_taps(rois[:, 2], rois[:, 4], height, output_size[0], *options)
    columns = axis_taps(rois[:, 1], rois[:, 3], width, output_size[1], *options)
    # M, bins down, bins across, samples down, samples across, 2 taps down, 2 taps across
    row = rois[:, 0].long()[:, None, None, None] * height + rows.index
    index = row[:, :, None, :, None, :, None] * width + columns.index[:, None, :, None, :, None, :]
    weight = rows.weight[:, :, None, :, None, :, None] * columns.weight[:, None, :, None, :, None, :]
    used = rows.used[:, :, None] & columns.used[:, None, :]
    table = input.permute(0, 2, 3, 1).reshape(-1, channels).to(rois.dtype)
    shape = (len(rois), *output_size, used[0].numel() if len(rois) else 1, channels)
    if max_pool:
        bags = (shape[0] * shape[1] * shape[2] * shape[3], 4)
        samples = _weighted_rows(table, index.reshape(bags), weight.reshape(bags)).view(shape)
        pooled = samples.masked_fill(~used.reshape(-1, 1, 1, shape[3], 1), -torch.inf).max(dim=3).values
        pooled = torch.where(used.reshape(-1, 1, 1, shape[3], 1).any(dim=3), pooled, 0.0)
    else:
        count = used.sum(dim=(1, 2)).clamp(min=1).to(weight.dtype)
        bags = (shape[0] * shape[1] * shape[2], 4 * shape[3])
        weight = weight / count.view(-1, 1, 1, 1, 1, 1, 1)
        pooled = _weighted_rows(table, index.reshape(bags), weight.reshape(bags)).view(*shape[:3], channels)
    return pooled.permute(0, 3, 1, 2).contiguous().to(input.dtype)


def _weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sums the rows `index` int64[N, K] of `table` float[R, C] with the weights float[N, K] into float[N, C]."""
    return F.embedding_bag(index, table, per_sample_weights=weight, mode="sum")
