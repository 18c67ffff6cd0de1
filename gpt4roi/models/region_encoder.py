"""The region encoder of the paper: a pyramid fused from the tower's levels, and boxes pooled from all of it.

    pyramid  =  fuse rounds of  ReLU(GroupNorm(conv3x3(shuffle across levels)))  on  conv1x1([resized level, x, y])
    region   =  linear(linear(flatten(ReLU(sum over levels of conv3x3(RoIAlign(level, box))))) + position(box))

With region_shape `mask`, ours, the cells after the ReLU are multiplied by RoIAlign(mask), and a linear map of
1 - RoIAlign(mask) is added to the position.

GPT4RoI (arXiv:2307.03601), section 3, as the released model computes it. This is the plain formulation;
`choose_kernel` takes a fast equivalent in its place wherever there is one.
"""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from gpt4roi.geometry.boxes import to_rois
from gpt4roi.models.compat import execution_device_and_dtype, onload_weights
from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.kernels.fast_paths import choose_kernel, with_coordinates
from gpt4roi.models.kernels.group_norm import GroupNorm
from gpt4roi.models.kernels.interpolation import resize
from gpt4roi.models.kernels.roi_align import roi_align
from gpt4roi.models.region_encoder_base import RegionEncoderBase
from gpt4roi.models.vision_tower import VisionTower


class FusionConv(nn.Module):
    """One round's 3x3 convolution, GroupNorm and ReLU; the same one for all levels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm: nn.GroupNorm = GroupNorm(groups, channels)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Keeps the shape, float[K, C, S, S]."""
        return F.relu(self.norm(self.conv(values)))


class FeatureFusion(nn.Module):
    """Makes a pyramid of the tower's levels, each with a share of its neighbours' channels in every round.

    Args:
        level_channels: Channels of each incoming level, shallow first.
        channels: C of the pyramid, a multiple of 4.
        grid_size: Side of the last, smallest map; each earlier one is twice as large.
    """

    def __init__(
        self, level_channels: list[int], channels: int, grid_size: int, num_rounds: int = 5, groups: int = 64
    ) -> None:
        super().__init__()
        self.sizes = [grid_size * 2**step for step in reversed(range(len(level_channels)))]
        # Two more channels tell each cell where it is.
        convs = nn.ModuleList(nn.Conv2d(width + 2, channels, 1) for width in level_channels)
        self.input_convs = cast(list[nn.Conv2d], convs)
        rounds = nn.ModuleList(FusionConv(channels, groups) for _ in range(num_rounds))
        self.fuse_convs = cast(list[FusionConv], rounds)
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
        """Returns a list of float[K, C, H_l, W_l], largest first; feature_maps: list of float[K, C_l, h_l, w_l]."""
        kernel = choose_kernel(self, feature_maps)
        if kernel is not None:
            return cast(list[torch.Tensor], kernel(feature_maps))
        levels = zip(self.input_convs, feature_maps, self.sizes, strict=True)
        maps = [_project_level(conv, level, side) for conv, level, side in levels]
        for fuse in self.fuse_convs:
            maps = [fuse(_shuffle_across_levels(maps, level)) for level in range(len(maps))]
        return maps


def _project_level(conv: nn.Conv2d, feature_map: torch.Tensor, side: int) -> torch.Tensor:
    """Resizes a level to its side in the pyramid, appends coordinates and mixes the channels."""
    return conv(with_coordinates(resize(feature_map, side)))


def _shuffle_across_levels(maps: list[torch.Tensor], level: int) -> torch.Tensor:
    """Replaces the second half of a level's channels by quarters of its deeper and its shallower neighbour.

    At both ends the level borrows from itself.
    """
    own, deeper, shallower = maps[level], maps[min(level + 1, len(maps) - 1)], maps[max(level - 1, 0)]
    half, side = own.shape[1] // 2, own.shape[-1]
    quarter = half // 2
    borrowed = [resize(deeper[:, half + quarter :], side), resize(shallower[:, half : half + quarter], side)]
    return torch.cat([own[:, :half], *borrowed], dim=1)


class RegionPooler(nn.Module):
    """Pools each box from every level of the pyramid and adds an embedding of its position.

    Args:
        channels: C of the pyramid.
        width: D of the output: the language model's width for each of a region's tokens.
    """

    def __init__(self, channels: int, num_levels: int, width: int, config: GPT4RoIConfig) -> None:
        super().__init__()
        self.output_size, self.sampling_ratio = config.roi_output_size, config.roi_sampling_ratio
        self.backend = config.roi_align_backend
        self.linear_std = getattr(config.text_config, "initializer_range", 0.02)
        hidden = config.position_hidden_size
        convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_levels))
        self.pool_convs = cast(list[nn.Conv2d], convs)
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
        if config.region_shape == "mask":
            self.shape_embedding = nn.Linear(self.output_size**2, channels, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights: small normal for the convolutions, the language model's normal for the linear layers."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=0.01 if isinstance(module, nn.Conv2d) else self.linear_std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(
        self,
        maps: list[torch.Tensor],
        boxes: list[torch.Tensor],
        image_size: int,
        extent: int,
        uniform_forward: bool = False,
        cells: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeds boxes.

        Args:
            maps: list of float[K, C, H_l, W_l].
            boxes: list of K float[N_i, 4], xyxy in [0, 1].
            image_size: Side of the input image.
            extent: How many of its pixels the maps cover along a side.
            uniform_forward: As of RegionEncoderBase: call every convolution.
            cells: float[M, 1, P, P], by how much each pooled cell counts, for region_shape `mask`.

        Returns:
            float[M, D], in batch order.
        """
        rois = to_rois(boxes, (image_size, image_size))
        kernel = None if uniform_forward else choose_kernel(self, maps, len(rois))
        if kernel is not None:
            pooled = cast(torch.Tensor, kernel(maps, rois, extent))
        else:
            levels = zip(self.pool_convs, maps, strict=True)
            pooled = cast(torch.Tensor, sum(conv(self.pool(level, rois, extent)) for conv, level in levels))
        pooled = F.relu(pooled)
        if cells is not None:
            pooled = pooled * cells.to(pooled.dtype)
        flat = self.flatten_linear(rearrange(pooled, "m c h w -> m (c h w)"))
        position = self.position_embedding(torch.cat(boxes).to(flat.dtype))
        if cells is not None:  # of a full mask 0
            position = position + self.shape_embedding((1 - cells).flatten(1).to(flat.dtype))
        return self.output_linear(flat + position)

    def pool(self, level: torch.Tensor, rois: torch.Tensor, extent: int) -> torch.Tensor:
        """RoIAligns rows of (image, x1, y1, x2, y2) from one level; float[M, C, output_size, output_size]."""
        scale = level.shape[-1] / extent
        return roi_align(level, rois, self.output_size, scale, self.sampling_ratio, self.backend)


class RegionEncoder(RegionEncoderBase):
    """The paper's region encoder; tower: the tower whose feature maps it will read, only its sizes are used."""

    def __init__(self, config: GPT4RoIConfig, tower: VisionTower) -> None:
        super().__init__()
        self.image_size = tower.image_size
        self.extent = tower.grid_size * tower.level_strides[-1]
        self.width, self.tokens_per_region = config.text_config.hidden_size, config.tokens_per_region
        self.region_shape = config.region_shape
        channels, levels = tower.hidden_size, tower.level_channels
        self.level_shapes = [(width, tower.grid_size) for width in levels]
        self.fusion = FeatureFusion(levels, channels, tower.grid_size, config.num_fusion_rounds, config.fusion_groups)
        self.pooler = RegionPooler(channels, len(levels), self.width * self.tokens_per_region, config)

    def _embed(
        self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor], masks: list[torch.Tensor] | None
    ) -> torch.Tensor:
        # An image without boxes has no part in the result: the norms are of each image by itself.
        used = [image for image, rows in enumerate(boxes) if len(rows)]
        kept = None if masks is None else [masks[image] for image in used]
        return super()._embed([level[used] for level in feature_maps], [boxes[image] for image in used], kept)

    def pyramid(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the fused pyramid, list of float[K, C, H_l, W_l], largest first."""
        device, dtype = execution_device_and_dtype(self.fusion.input_convs[0])
        with onload_weights(self.fusion):
            return self.fusion([level.to(device, dtype) for level in feature_maps])

    def embed_boxes(
        self, pyramid: list[torch.Tensor], boxes: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns float[M * k, D] of boxes and masks, as of forward, on what `pyramid` returned."""
        on_device = [rows.to(pyramid[0].device) for rows in boxes]
        cells = self.mask_cells(on_device, masks, self.pooler.output_size)
        with onload_weights(self.pooler):
            rows = self.pooler(pyramid, on_device, self.image_size, self.extent, self.uniform_forward, cells)
        return rearrange(rows, "m (k d) -> (m k) d", k=self.tokens_per_region)
