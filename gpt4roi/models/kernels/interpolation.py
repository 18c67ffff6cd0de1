"""Bilinear upsampling put off (LazyUpsampled), and 3x3 convolutions of such maps at the price of the smaller ones.

Bilinear interpolation with aligned corners is linear and works on each axis by itself: with a matrix A for the rows
and B for the columns, a map x becomes A x B^T, channel by channel. A convolution mixes channels for each of its nine
taps and adds up the results, each shifted by a cell. Mixing channels and interpolating commute, and a shift of rows
is a shift of the rows of A (with zeros moved in, the convolution's padding), so

    conv(A x B^T)  =  sum over taps (i, j) of  A_i (W_ij x) B_j^T

where A_i is A shifted by i - 1 rows. The mixing, which is the expensive part, is done on the small map x.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch.nn import functional as F

from gpt4roi.models.kernels import winograd

MIN_SPEEDUP = {"cpu": 1.25}
"""How many times fewer multiplications the small map must need; a device's own number, or else the next one."""
MIN_SPEEDUP_ELSEWHERE = 4.0


class LazyUpsampled(NamedTuple):
    """A map float[K, C, S, S] that was not computed yet: `values`, resized in turn to each side of `sides`."""

    values: torch.Tensor
    sides: tuple[int, ...] = ()

    @property
    def side(self) -> int:
        """S, the side of the map."""
        return self.sides[-1] if self.sides else self.values.shape[-1]

    def resized(self, side: int) -> LazyUpsampled:
        """Returns the map resized to another side."""
        return self if side == self.side else LazyUpsampled(self.values, (*self.sides, side))

    def channels(self, start: int, stop: int) -> LazyUpsampled:
        """Returns some of the channels."""
        return LazyUpsampled(self.values[:, start:stop], self.sides)

    def computed(self) -> torch.Tensor:
        """Computes the map, float[K, C, S, S]."""
        values = self.values
        for side in self.sides:
            values = resize(values, side)
        return values

    def matrix(self, axis: int) -> torch.Tensor:
        """Returns the float64[S, h] that resizes an axis of the values, -2 (rows) or -1 (columns)."""
        matrix = torch.eye(self.values.shape[axis], dtype=torch.float64)
        for side in self.sides:
            matrix = _resizing_matrix(matrix.shape[0], side) @ matrix
        return matrix

    def is_cheaper_at_low_resolution(self, outputs: int, per_cell: float = 9) -> bool:
        """Tells whether a 3x3 convolution to so many channels is cheaper on the values than on the map.

        per_cell: multiplications that it needs for a cell of the map and a pair of channels.
        """
        (channels, height, width), side = self.values.shape[1:], self.side
        large = per_cell * channels * outputs * side**2
        small = 9 * channels * outputs * height * width + 3 * outputs * width * side * (3 * height + side)
        return large > MIN_SPEEDUP.get(self.values.device.type, MIN_SPEEDUP_ELSEWHERE) * small


def resize(feature_map: torch.Tensor, side: int) -> torch.Tensor:
    """Resizes to side x side, bilinear with aligned corners; computed in float32 at least, kept in the map's dtype."""
    if feature_map.shape[-2:] == (side, side):
        return feature_map
    # Autocast would make float32 copies; the kernel itself computes half precision in float32.
    with torch.autocast(feature_map.device.type, enabled=False):
        return F.interpolate(feature_map, size=(side, side), mode="bilinear", align_corners=True)


def convolve_levels(levels: list[list[LazyUpsampled]], weight: torch.Tensor) -> list[torch.Tensor]:
    """Convolves several maps with the same kernels, with zeros around each.

    levels: for each map its parts, of one size, which taken together are its channels;
    weight: float[O, C, 3, 3], C the channels of all parts in turn. Returns a list of float[K, O, S_l, S_l].
    """
    tiled = winograd.is_cheaper(sum(map(_cells, levels)), weight)
    per_cell = winograd.TILED if tiled else 9
    at_low = [[part.is_cheaper_at_low_resolution(len(weight), per_cell) for part in parts] for parts in levels]
    direct = [level for level, small in enumerate(at_low) if not any(small)]
    results: dict[int, torch.Tensor] = {}
    if winograd.is_cheaper(sum(_cells(levels[level]) for level in direct), weight):
        maps = [torch.cat([part.computed() for part in levels[level]], dim=1) for level in direct]
        results = dict(zip(direct, winograd.convolve(maps, weight), strict=True))
    for level in set(range(len(levels))) - set(results):
        results[level] = _convolve_one(levels[level], at_low[level], weight)
    # Tiles are cut from channels-last maps. Elsewhere the other layout is faster, and PyTorch norms it more precisely.
    layout = torch.channels_last if tiled else torch.contiguous_format
    return [results[level].contiguous(memory_format=layout) for level in range(len(levels))]


def _cells(parts: list[LazyUpsampled]) -> int:
    return len(parts[0].values) * parts[0].side ** 2


def _convolve_one(parts: list[LazyUpsampled], at_low: list[bool], weight: torch.Tensor) -> torch.Tensor:
    """Convolves one map, some of its parts by the formula above and the others directly."""
    kernels = weight.split([part.values.shape[1] for part in parts], dim=1)
    small = [(part, kernel) for part, kernel, chosen in zip(parts, kernels, at_low, strict=True) if chosen]
    large = [
        (part.computed(), kernel) for part, kernel, chosen in zip(parts, kernels, at_low, strict=True) if not chosen
    ]
    results = []
    if large:
        maps, weights = zip(*large, strict=True)
        results.append(F.conv2d(torch.cat(maps, dim=1), torch.cat(weights, dim=1), padding=1))
    if small:
        results.append(_convolve_at_low_resolution(small))
    return sum(results[1:], results[0])


def _convolve_at_low_resolution(parts: list[tuple[LazyUpsampled, torch.Tensor]]) -> torch.Tensor:
    """Convolves maps by the formula above and adds them up; the kernels are float[O, C_part, 3, 3]."""
    bands, column_matrices = [], []
    for part, kernel in parts:
        height = part.values.shape[-2]
        cells = rearrange(part.values, "k c h w -> k (h w) c")
        mixed = cells @ rearrange(kernel, "o c i j -> c (i j o)")
        rows = rearrange(_shifted(part.matrix(-2)), "i s h -> s (h i)").to(mixed.device, mixed.dtype)
        # Rows first: B_j stays on the other side, for all three j and every column of x together.
        band = rows @ rearrange(mixed, "k (h w) (i m) -> k (h i) (w m)", h=height, i=3)
        bands.append(band.unflatten(2, (-1, len(kernel))))
        column_matrices.append(rearrange(_shifted(part.matrix(-1)), "j s w -> s (w j)").to(mixed.device, mixed.dtype))
    return (torch.cat(column_matrices, dim=1) @ torch.cat(bands, dim=2)).permute(0, 3, 1, 2)


def _resizing_matrix(source: int, target: int) -> torch.Tensor:
    """Returns float64[target, source], the weights of bilinear interpolation with aligned corners along an axis."""
    position = torch.arange(target, dtype=torch.float64) * ((source - 1) / max(target - 1, 1))
    # A cell has weight 1 at its own position and 0 from the next one on.
    return (1 - (position[:, None] - torch.arange(source, dtype=torch.float64)).abs()).clamp(min=0)


def _shifted(matrix: torch.Tensor) -> torch.Tensor:
    """Returns [3, S, h]: row s of the i-th one is row s + i - 1 of the matrix, or zeros where there is none."""
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.stack([padded[i : i + len(matrix)] for i in range(3)])
