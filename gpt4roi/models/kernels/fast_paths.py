"""Fast equivalents of the region encoder's fusion and pooling, and `choose_kernel`, which decides where they are used.

Fusion: up to the first norm everything is linear, so each map is kept as small as it came until a norm needs it.
Pooling: a convolution mixes the channels before RoIAlign where the map has fewer cells than the pooled boxes.
Both take Winograd's tiles where these are cheaper.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from gpt4roi.models.kernels import winograd
from gpt4roi.models.kernels.interpolation import LazyUpsampled, convolve_levels, resize
from gpt4roi.models.kernels.roi_align import choose_backend

POOLING_COST = {("cpu", "torchvision"): 600, ("cpu", "mmcv"): 600}
"""What RoIAlign of one value costs, in multiplications of a convolution that would take as long (measured)."""
DEFAULT_POOLING_COST = 100


class FusionRound(Protocol):
    """A round of the fusion: a 3x3 convolution without bias, and a norm."""

    conv: nn.Conv2d
    norm: nn.GroupNorm


class Fusion(Protocol):
    """What `fuse_levels` reads of FeatureFusion."""

    sizes: list[int]
    input_convs: list[nn.Conv2d]

    @property
    def fuse_convs(self) -> Sequence[FusionRound]:
        """The rounds."""
        ...


class Pooling(Protocol):
    """What `pool_levels` reads of RegionPooler."""

    output_size: int
    sampling_ratio: int
    backend: str
    pool_convs: list[nn.Conv2d]

    def pool(self, level: torch.Tensor, rois: torch.Tensor, extent: int) -> torch.Tensor:
        """RoIAligns boxes from one level."""
        ...


def choose_kernel(
    part: Fusion | Pooling, maps: list[torch.Tensor], num_boxes: int | None = None
) -> Callable[..., list[torch.Tensor] | torch.Tensor] | None:
    """Returns the fast equivalent of a part of the region encoder for such maps, or None where the plain call is best.

    Args:
        part: FeatureFusion, or RegionPooler where num_boxes is given.
        maps: list of float[K, C_l, H_l, W_l]; only shapes, device and layout count.
        num_boxes: M; None for the fusion.
    """
    if num_boxes is None:
        fusion = cast(Fusion, part)
        shapes = zip(maps, fusion.sizes, strict=True)
        # By shapes and device alone: processes that share weights must all go one way, whatever their batches hold.
        helps = any(_comes_before_resizing(level, side) or level.device.type == "cpu" for level, side in shapes)
        return partial(fuse_levels, fusion) if helps else None
    pooler = cast(Pooling, part)
    levels = zip(pooler.pool_convs, maps, strict=True)
    mixed_first = [is_cheaper_mixed_first(pooler, conv, level, num_boxes) for conv, level in levels]
    tiled = winograd.is_cheaper(num_boxes * pooler.output_size**2, pooler.pool_convs[0].weight)
    return partial(pool_levels, pooler, mixed_first=mixed_first) if tiled or any(mixed_first) else None


def fuse_levels(fusion: Fusion, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the pyramid as FeatureFusion's plain formulation does; arguments and result as there."""
    levels = zip(fusion.input_convs, feature_maps, fusion.sizes, strict=True)
    maps = [_project_level(conv, level, side) for conv, level, side in levels]
    for fuse in fusion.fuse_convs:
        parts = [_shuffle_across_levels(maps, level) for level in range(len(maps))]
        mixed = convolve_levels(parts, fuse.conv.weight)
        maps = [LazyUpsampled(F.relu(fuse.norm(values), inplace=True)) for values in mixed]
    return [level.computed() for level in maps]


def _comes_before_resizing(feature_map: torch.Tensor, side: int) -> bool:
    """Tells whether a level's projection is better done on the map as it came.

    Not where the map shrinks, and not where it is a single row or column, whose one coordinate would not stretch to a
    range.
    """
    height, width = feature_map.shape[-2:]
    return min(height, width) > 1 and height * width <= side**2


def _project_level(conv: nn.Conv2d, feature_map: torch.Tensor, side: int) -> LazyUpsampled:
    """Projects a level before it is resized to its side, where that is cheaper.

    Interpolation of evenly spaced coordinates gives evenly spaced coordinates, and its weights add up to 1, so that
    coordinates and bias, too, may come before it.
    """
    if _comes_before_resizing(feature_map, side):
        return LazyUpsampled(conv(with_coordinates(feature_map))).resized(side)
    return LazyUpsampled(conv(with_coordinates(resize(feature_map, side))))


def with_coordinates(feature_map: torch.Tensor) -> torch.Tensor:
    """Appends two channels, x then y, each from -1 to 1 over the map."""
    images, _, height, width = feature_map.shape
    x = torch.linspace(-1, 1, width, device=feature_map.device, dtype=feature_map.dtype)
    y = torch.linspace(-1, 1, height, device=feature_map.device, dtype=feature_map.dtype)
    coordinates = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return torch.cat([feature_map, coordinates.expand(images, 2, height, width)], dim=1)


def _shuffle_across_levels(maps: list[LazyUpsampled], level: int) -> list[LazyUpsampled]:
    """Returns the parts of a level's new map in the order of its channels, as the plain formulation has them."""
    own = maps[level]
    channels = own.values.shape[1]
    half, quarter = channels // 2, channels // 4
    deeper, shallower = maps[min(level + 1, len(maps) - 1)], maps[max(level - 1, 0)]
    return [
        own.channels(0, half),
        deeper.channels(half + quarter, channels).resized(own.side),
        shallower.channels(half, half + quarter).resized(own.side),
    ]


def pool_levels(
    pooler: Pooling, levels: list[torch.Tensor], rois: torch.Tensor, extent: int, mixed_first: list[bool]
) -> torch.Tensor:
    """Returns the sum over levels of each one's convolution of its pooled boxes, float[M, C, P, P].

    Args:
        pooler: A RegionPooler.
        levels: list of float[K, C, H_l, W_l].
        rois: float[M, 5], (image, x1, y1, x2, y2) in input pixels.
        extent: As of RegionPooler.
        mixed_first: For each level, whether its channels are mixed before they are pooled.
    """
    total: torch.Tensor | int = 0
    convs, boxes_of_levels = [], []
    for conv, level, first in zip(pooler.pool_convs, levels, mixed_first, strict=True):
        if first:
            total = total + _mix_and_pool(pooler, conv, level, rois, extent)
        else:
            convs.append(conv)
            boxes_of_levels.append(pooler.pool(level, rois, extent))
    return cast(torch.Tensor, total + _convolve_sum(convs, boxes_of_levels))


def _mix_and_pool(
    pooler: Pooling, conv: nn.Conv2d, level: torch.Tensor, rois: torch.Tensor, extent: int
) -> torch.Tensor:
    """Returns what the convolution makes of the pooled boxes, but mixes the channels on the map.

    The convolution of a pooled box, with zeros around the box, is not the pooled convolution of the map. But it is
    a sum over its nine taps, each of which mixes channels and then shifts the pooled box by a cell, and pooling
    is linear and the same for all channels: mix, pool, and only then shift and add, which is what `fold` does.
    """
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    # `fold` sends a value to where the convolution, which fetches, would not look for it: to the opposite side.
    kernels = rearrange(conv.weight.flip(2, 3), "o c i j -> (o i j) c 1 1")
    side = (pooler.output_size, pooler.output_size)
    outputs = []
    # In portions of the channels, so that all nine taps take no more memory than the map.
    for kernel in kernels.split(taps * -(-conv.out_channels // taps)):
        pooled = pooler.pool(F.conv2d(level, kernel), rois, extent)
        outputs.append(F.fold(pooled.flatten(2), side, conv.kernel_size, padding=1))
    return torch.cat(outputs, dim=1) + cast(torch.Tensor, conv.bias)[:, None, None]


def is_cheaper_mixed_first(pooler: Pooling, conv: nn.Conv2d, level: torch.Tensor, num_boxes: int) -> bool:
    """Tells whether a level has so few cells that mixing them costs less than mixing so many pooled boxes."""
    images, channels, height, width = level.shape
    backend = choose_backend(pooler.backend, level, num_boxes, pooler.sampling_ratio)
    pooling = POOLING_COST.get((level.device.type, backend), DEFAULT_POOLING_COST)
    pooled_cells = num_boxes * pooler.output_size**2
    # Mixed first, each of nine taps is pooled by itself.
    mixed_first = 9 * channels * images * height * width + 8 * pooling * pooled_cells
    return mixed_first * conv.out_channels < winograd.cheapest(pooled_cells, conv.weight)


def _convolve_sum(convs: list[nn.Conv2d], maps: list[torch.Tensor]) -> torch.Tensor | int:
    """Convolves maps float[M, C, H, W], each by its own kernels, and adds up the results; 0 for no map."""
    if convs and winograd.is_cheaper(maps[0][:, 0].numel(), convs[0].weight):
        # Taken together as the channels of one map, they are added up before the last transformation.
        kernels = torch.cat([conv.weight for conv in convs], dim=1)
        (mixed,) = winograd.convolve([torch.cat(maps, dim=1)], kernels)
        bias = cast(torch.Tensor, sum(cast(torch.Tensor, conv.bias) for conv in convs))
        return mixed + bias[:, None, None]
    return sum(conv(values) for conv, values in zip(convs, maps, strict=True))
