"""The original's region encoder: a pyramid fused from the tower's levels, and boxes pooled from all of it.

Formulas: GPT4RoI (arXiv:2307.03601), section 3, as the released model computes them.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from gpt4roi.geometry.boxes import to_rois
from gpt4roi.models.compat import execution_device_and_dtype, onload_weights
from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.kernels import winograd
from gpt4roi.models.kernels.interpolation import Stretched, convolve, resize
from gpt4roi.models.kernels.roi_align import check_boxes, choose_backend, roi_align
from gpt4roi.models.vision_tower import VisionTower

POOLING_COST = {("cpu", "torchvision"): 600, ("cpu", "mmcv"): 600}
"""What RoIAlign of one value costs, in multiplications of a convolution that would take as long (measured)."""
DEFAULT_POOLING_COST = 100


class _Norm(nn.GroupNorm):
    """GroupNorm in the precision of its map.

    The kernel itself computes half precision in float32; autocast would keep float32 maps for the gradient besides.
    """

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False):
            weight, bias = self.weight.to(values.dtype), self.bias.to(values.dtype)
            return F.group_norm(values, self.num_groups, weight, bias, self.eps)


class FusionConv(nn.Module):
    """One round's 3x3 convolution, GroupNorm and ReLU; the same one for all levels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = _Norm(groups, channels)

    def forward(self, levels: list[list[Stretched]]) -> list[Stretched]:
        """Returns a float[K, C, S, S] for each level; its parts are maps of one side that have C channels together."""
        return [Stretched(F.relu(self.norm(mixed), inplace=True)) for mixed in convolve(levels, self.conv.weight)]


class FeatureFusion(nn.Module):
    """Makes a pyramid of the levels and lets neighbours exchange channels, round by round.

    level_channels: channels of each incoming level, shallow first; channels: C of the pyramid, a multiple of 4;
    grid_size: side of the last, smallest map; each earlier one is twice as large.
    """

    def __init__(
        self, level_channels: list[int], channels: int, grid_size: int, num_rounds: int = 5, groups: int = 64
    ) -> None:
        super().__init__()
        self.level_shapes = [(width, grid_size) for width in level_channels]
        self.sizes = [grid_size * 2**step for step in reversed(range(len(level_channels)))]
        # Two more channels tell each cell where it is.
        self.input_convs = nn.ModuleList(nn.Conv2d(width + 2, channels, 1) for width in level_channels)
        self.fuse_convs = nn.ModuleList(FusionConv(channels, groups) for _ in range(num_rounds))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights: torch's default for the input, Kaiming's normal (fan out) for the fusion."""
        for conv in self.input_convs:
            conv.reset_parameters()
        for fuse in self.fuse_convs:
            nn.init.kaiming_normal_(fuse.conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.ones_(fuse.norm.weight)
            nn.init.zeros_(fuse.norm.bias)

    def forward(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns a list of float[K, C, H_l, W_l], largest first; feature_maps: list of float[K, C_l, h_l, w_l].

        The formulation resizes each level, appends coordinates, and then mixes channels (1x1) and rounds (3x3). Up to
        the first norm all of this is linear, and here each map is kept as small as it came until a norm needs it.
        """
        levels = zip(self.input_convs, feature_maps, self.sizes, strict=True)
        maps = [_enter(conv, level, size) for conv, level, size in levels]
        for fuse in self.fuse_convs:
            maps = fuse([_exchange(maps, level) for level in range(len(maps))])
        return [level.computed() for level in maps]


def _enter(conv: nn.Module, feature_map: torch.Tensor, side: int) -> Stretched:
    """Gives a level its coordinates and mixes its channels, before it is stretched to its side.

    Interpolation of evenly spaced coordinates gives evenly spaced coordinates, and its weights add up to 1, so that
    coordinates and bias, too, may come before it. It is done after where the map shrinks, and where the map is a
    single row or column, whose one coordinate would not stretch to a range.
    """
    height, width = feature_map.shape[-2:]
    if min(height, width) > 1 and height * width <= side**2:
        return Stretched(conv(_with_coordinates(feature_map))).resized(side)
    return Stretched(conv(_with_coordinates(resize(feature_map, side))))


def _with_coordinates(feature_map: torch.Tensor) -> torch.Tensor:
    """Appends two channels, x then y, each from -1 to 1 over the map."""
    images, _, height, width = feature_map.shape
    x = torch.linspace(-1, 1, width, device=feature_map.device, dtype=feature_map.dtype)
    y = torch.linspace(-1, 1, height, device=feature_map.device, dtype=feature_map.dtype)
    coordinates = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    return torch.cat([feature_map, coordinates.expand(images, 2, height, width)], dim=1)


def _exchange(maps: list[Stretched], level: int) -> list[Stretched]:
    """Replaces the second half of a level's channels by quarters of its deeper and its shallower neighbour.

    At both ends the level borrows from itself. Returns the parts of the new map, in the order of its channels.
    """
    own = maps[level]
    channels = own.values.shape[1]
    half, quarter = channels // 2, channels // 4
    deeper, shallower = maps[min(level + 1, len(maps) - 1)], maps[max(level - 1, 0)]
    return [
        own.channels(0, half),
        deeper.channels(half + quarter, channels).resized(own.side),
        shallower.channels(half, half + quarter).resized(own.side),
    ]


class RegionPooler(nn.Module):
    """Pools each box from every level of the pyramid and adds an embedding of its place.

    channels: C of the pyramid; width: D; output_size: cells a side of a pooled box; linear_std: of the linear layers;
    same_way: as of RegionEncoder.
    """

    same_way = False

    def __init__(self, channels: int, num_levels: int, width: int, config: GPT4RoIConfig) -> None:
        super().__init__()
        self.output_size, self.sampling_ratio = config.roi_output_size, config.roi_sampling_ratio
        self.backend = config.roi_align_backend
        self.linear_std = getattr(config.text_config, "initializer_range", 0.02)
        hidden = config.position_hidden_size
        self.pool_convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_levels))
        self.flatten_linear = nn.Linear(channels * self.output_size**2, channels)
        self.position_embedding = nn.Sequential(
            nn.Linear(4, hidden),
            nn.ReLU(),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, channels),
            nn.ReLU(),
            nn.LayerNorm(channels),
        )
        self.output_linear = nn.Linear(channels, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights: small normal for the convolutions, the language model's normal for the linear layers."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=0.01 if isinstance(module, nn.Conv2d) else self.linear_std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, maps: list[torch.Tensor], boxes: list[torch.Tensor], image_size: int, extent: int):
        """Returns float[M, D], in batch order.

        maps: list of float[K, C, H_l, W_l]; boxes: list of K float[N_i, 4], xyxy in [0, 1];
        image_size: side of the input image; extent: how many of its pixels the maps cover along a side.
        """
        rois = to_rois(boxes, (image_size, image_size))
        total, convs, boxes_of_levels = 0, [], []
        for conv, level in zip(self.pool_convs, maps, strict=True):
            if not self.same_way and self._is_better_mixed_first(conv, level, len(rois)):
                total = total + self._mix_and_pool(conv, level, rois, extent)
            else:
                convs.append(conv)
                boxes_of_levels.append(self.pool(level, rois, extent))
        pooled = total + _convolve_sum(convs, boxes_of_levels, self.same_way)
        flat = self.flatten_linear(rearrange(F.relu(pooled), "m c h w -> m (c h w)"))
        place = self.position_embedding(torch.cat(boxes).to(flat.dtype))
        return self.output_linear(flat + place)

    def pool(self, level: torch.Tensor, rois: torch.Tensor, extent: int) -> torch.Tensor:
        """RoIAligns rows of (image, x1, y1, x2, y2) from one level; float[M, C, output_size, output_size]."""
        scale = level.shape[-1] / extent
        return roi_align(level, rois, self.output_size, scale, self.sampling_ratio, self.backend)

    def _mix_and_pool(self, conv: nn.Conv2d, level: torch.Tensor, rois: torch.Tensor, extent: int) -> torch.Tensor:
        """Returns what the convolution makes of the pooled boxes, but mixes the channels on the map.

        The convolution of a pooled box, with zeros around the box, is not the pooled convolution of the map. But it is
        a sum over its nine taps, each of which mixes channels and then shifts the pooled box by a cell, and pooling
        is linear and the same for all channels: mix, pool, and only then shift and add, which is what `fold` does.
        """
        taps = conv.kernel_size[0] * conv.kernel_size[1]
        # `fold` sends a value to where the convolution, which fetches, would not look for it: to the opposite side.
        kernels = rearrange(conv.weight.flip(2, 3), "o c i j -> (o i j) c 1 1")
        side = (self.output_size, self.output_size)
        outputs = []
        # In portions of the channels, so that all nine taps take no more memory than the map.
        for kernel in kernels.split(taps * -(-conv.out_channels // taps)):
            pooled = self.pool(F.conv2d(level, kernel), rois, extent)
            outputs.append(F.fold(pooled.flatten(2), side, conv.kernel_size, padding=conv.padding))
        return torch.cat(outputs, dim=1) + conv.bias[:, None, None]

    def _is_better_mixed_first(self, conv: nn.Conv2d, level: torch.Tensor, count: int) -> bool:
        """Tells whether a level has so few cells that mixing them costs less than mixing so many pooled boxes."""
        images, channels, height, width = level.shape
        backend = choose_backend(self.backend, level, count, self.sampling_ratio)
        pooling = POOLING_COST.get((level.device.type, backend), DEFAULT_POOLING_COST)
        pooled_cells = count * self.output_size**2
        # Mixed first, each of nine taps is pooled by itself.
        mixed_first = 9 * channels * images * height * width + 8 * pooling * pooled_cells
        return mixed_first * conv.out_channels < winograd.cheapest(pooled_cells, conv.weight)


def _convolve_sum(convs: list[nn.Conv2d], maps: list[torch.Tensor], by_calls: bool) -> torch.Tensor | int:
    """Convolves maps float[M, C, H, W], each by its own kernels, and adds up the results; 0 for no map.

    by_calls: whether every convolution must be called.
    """
    if not by_calls and convs and winograd.is_cheaper(maps[0][:, 0].numel(), convs[0].weight):
        # Taken together as the channels of one map, they are added up before the last transformation.
        kernels = torch.cat([conv.weight for conv in convs], dim=1)
        (mixed,) = winograd.convolve([torch.cat(maps, dim=1)], kernels)
        return mixed + sum(conv.bias for conv in convs)[:, None, None]
    return sum(conv(values) for conv, values in zip(convs, maps, strict=True))


class RegionEncoder(nn.Module):
    """Turns each box of an image into one embedding of the language model.

    tower: the tower whose feature maps it will read; only its sizes are used.
    same_way: whether every batch must go through the same modules in the same order, however many boxes it has, also
    none: DeepSpeed gathers weights (ZeRO-3) and adds up gradients (ZeRO-2) of all processes in the order of each one.
    """

    same_way = False

    def __init__(self, config: GPT4RoIConfig, tower: VisionTower) -> None:
        super().__init__()
        self.image_size = tower.image_size
        self.extent = tower.grid_size * tower.level_strides[-1]
        self.width = config.text_config.hidden_size
        channels, levels = tower.hidden_size, tower.level_channels
        self.fusion = FeatureFusion(levels, channels, tower.grid_size, config.num_fusion_rounds, config.fusion_groups)
        self.pooler = RegionPooler(channels, len(levels), self.width, config)

    def forward(self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Returns float[M, D]: row k belongs to the k-th box of the batch.

        feature_maps: list of float[K, C_l, H_l, W_l], shallow first (unused, may be empty, where there is no box);
        boxes: list of K float[N_i, 4], xyxy in [0, 1]; N_i may be 0. Without any box the result has no rows, and its
        gradient to every parameter is zero, not missing. Raises InputError on boxes that are none.
        """
        check_boxes(boxes)
        used = [image for image, rows in enumerate(boxes) if len(rows)]
        if not used:
            return without_boxes(self, self.fusion.level_shapes)
        # An image without boxes has no part in the result: the norms are of each image by itself.
        return self.embed_boxes(self.pyramid([level[used] for level in feature_maps]), [boxes[image] for image in used])

    def pyramid(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns what depends on the images alone, to be kept for many boxes: list of float[K, C, H_l, W_l]."""
        place = execution_device_and_dtype(self.fusion.input_convs[0])
        with onload_weights(self.fusion):
            return self.fusion([level.to(*place) for level in feature_maps])

    def embed_boxes(self, pyramid: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Returns float[M, D] of boxes, list of K float[N_i, 4], on what `pyramid` returned."""
        on_device = [rows.to(pyramid[0].device) for rows in boxes]
        with onload_weights(self.pooler):
            return self.pooler(pyramid, on_device, self.image_size, self.extent)


def without_boxes(encoder: nn.Module, level_shapes: list[tuple[int, int]]) -> torch.Tensor:
    """Returns a region encoder's float[0, width] that depends on all its parameters with gradient zero.

    level_shapes: channels and side of each incoming level. Where all must go the same way, a box that is no one's is
    sent after the others' boxes, and left out.
    """
    if encoder.same_way:
        device, dtype = execution_device_and_dtype(encoder)
        maps = [torch.zeros(1, channels, side, side, device=device, dtype=dtype) for channels, side in level_shapes]
        return encoder.forward(maps, [torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)])[:0]
    with onload_weights(encoder):
        nothing = sum(parameter.reshape(-1)[:0].sum() for parameter in encoder.parameters())
        return nothing + nothing.new_zeros(0, encoder.width)
