"""Maps that are interpolations of smaller ones, and 3x3 convolutions of them at the price of the smaller ones.

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

WORTHWHILE = {"cpu": 1.25}
"""How many times fewer multiplications the small map must need; a device's own number, or else the next one."""
WORTHWHILE_ELSEWHERE = 4.0


class Stretched(NamedTuple):
    """A map float[K, C, S, S] that was not computed yet: `values`, resized in turn to each side of `sides`."""

    values: torch.Tensor
    sides: tuple[int, ...] = ()

    @property
    def side(self) -> int:
        """S, the side of the map."""
        return self.sides[-1] if self.sides else self.values.shape[-1]

    def resized(self, side: int) -> Stretched:
        """Returns the map resized to another side."""
        return self if side == self.side else Stretched(self.values, (*self.sides, side))

    def channels(self, start: int, stop: int) -> Stretched:
        """Returns some of the channels."""
        return Stretched(self.values[:, start:stop], self.sides)

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

    def is_better_mixed_small(self, outputs: int) -> bool:
        """Tells whether a 3x3 convolution to so many channels is cheaper on the values than on the map."""
        (channels, height, width), side = self.values.shape[1:], self.side
        large = 9 * channels * outputs * side**2
        small = 9 * channels * outputs * height * width + 3 * outputs * height * side * (3 * width + side)
        return large > WORTHWHILE.get(self.values.device.type, WORTHWHILE_ELSEWHERE) * small


def resize(feature_map: torch.Tensor, side: int) -> torch.Tensor:
    """Resizes to side x side, bilinear with aligned corners; computed in float32 at least, kept in the map's dtype."""
    if feature_map.shape[-2:] == (side, side):
        return feature_map
    # Autocast would make float32 copies; the kernel itself computes half precision in float32.
    with torch.autocast(feature_map.device.type, enabled=False):
        return F.interpolate(feature_map, size=(side, side), mode="bilinear", align_corners=True)


def convolve(parts: list[Stretched], weight: torch.Tensor) -> torch.Tensor:
    """Convolves maps of one size, taken together as the channels of one map, with zeros around it.

    weight: float[O, C, 3, 3], C the channels of all parts in turn. Returns float[K, O, S, S].
    """
    large: list[tuple[torch.Tensor, torch.Tensor]] = []
    small: list[tuple[Stretched, torch.Tensor]] = []
    for part, kernel in zip(parts, weight.split([part.values.shape[1] for part in parts], dim=1), strict=True):
        if part.is_better_mixed_small(len(weight)):
            small.append((part, kernel))
        else:
            large.append((part.computed(), kernel))
    results = []
    if large:
        maps, kernels = zip(*large, strict=True)
        results.append(F.conv2d(torch.cat(maps, dim=1), torch.cat(kernels, dim=1), padding=1))
    if small:
        results.append(_convolve_small(small))
    return sum(results[1:], results[0])


def _convolve_small(parts: list[tuple[Stretched, torch.Tensor]]) -> torch.Tensor:
    """Convolves maps by the formula above and adds them up; the kernels are float[O, C_part, 3, 3]."""
    bands, row_matrices = [], []
    for part, kernel in parts:
        outputs, height = len(kernel), part.values.shape[-2]
        mixed = F.conv2d(part.values, rearrange(kernel, "o c i j -> (j o i) c 1 1"))
        mixed = mixed.unflatten(1, (3, outputs, 3))
        columns = _shifted(part.matrix(-1)).to(mixed.device, mixed.dtype)
        # Columns first: A_i stays on its left, for all three i and every row of x together.
        band = sum(mixed[:, j] @ columns[j].T for j in range(3))
        bands.append(band.reshape(len(band), outputs, 3 * height, part.side))
        row_matrices.append(rearrange(_shifted(part.matrix(-2)), "i s h -> s (i h)").to(mixed.device, mixed.dtype))
    return torch.cat(row_matrices, dim=1) @ torch.cat(bands, dim=2)


def _resizing_matrix(source: int, target: int) -> torch.Tensor:
    """Returns float64[target, source], the weights of bilinear interpolation with aligned corners along an axis."""
    place = torch.arange(target, dtype=torch.float64) * ((source - 1) / max(target - 1, 1))
    # A cell has weight 1 at its own place and 0 from the next one on.
    return (1 - (place[:, None] - torch.arange(source, dtype=torch.float64)).abs()).clamp(min=0)


def _shifted(matrix: torch.Tensor) -> torch.Tensor:
    """Returns [3, S, h]: row s of the i-th one is row s + i - 1 of the matrix, or zeros where there is none."""
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.stack([padded[i : i + len(matrix)] for i in range(3)])
