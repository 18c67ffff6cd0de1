"""The region encoder step by step as it is defined, every map at its full size: what the fast one must equal."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from gpt4roi.geometry.boxes import to_rois
from gpt4roi.models.region_encoder import RegionEncoder


def resize(feature_map: torch.Tensor, side: int) -> torch.Tensor:
    return F.interpolate(feature_map, size=(side, side), mode="bilinear", align_corners=True)


def plain_pyramid(encoder: RegionEncoder, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Resizes, appends coordinates, mixes, then lets the levels exchange channels round by round."""
    fusion, maps = encoder.fusion, []
    for conv, level, side in zip(fusion.input_convs, feature_maps, fusion.sizes, strict=True):
        large = resize(level, side)
        line = torch.linspace(-1, 1, side, dtype=level.dtype)
        x = line.expand(len(level), 1, side, side)
        maps.append(conv(torch.cat([large, x, x.transpose(2, 3)], dim=1)))
    quarter = maps[0].shape[1] // 4
    for fuse in fusion.fuse_convs:
        mixed = []
        for level, own in enumerate(maps):
            deeper, shallower = maps[min(level + 1, len(maps) - 1)], maps[max(level - 1, 0)]
            borrowed = [deeper[:, 3 * quarter :], shallower[:, 2 * quarter : 3 * quarter]]
            parts = [own[:, : 2 * quarter], *(resize(part, own.shape[-1]) for part in borrowed)]
            mixed.append(F.relu(fuse.norm(fuse.conv(torch.cat(parts, dim=1)))))
        maps = mixed
    return maps


def plain_region_features(
    encoder: RegionEncoder, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor]
) -> torch.Tensor:
    """Pools every level, convolves each pooled box, adds up the levels; float[M, D]."""
    pooler = encoder.pooler
    rois = to_rois(boxes, (encoder.image_size, encoder.image_size)).to(feature_maps[0].dtype)
    total = 0
    for conv, level in zip(pooler.pool_convs, plain_pyramid(encoder, feature_maps), strict=True):
        scale = level.shape[-1] / encoder.extent
        total = total + conv(roi_align(level, rois, pooler.output_size, scale, pooler.sampling_ratio, aligned=True))
    flat = pooler.flatten_linear(F.relu(total).flatten(1))
    return pooler.output_linear(flat + pooler.position_embedding(torch.cat(boxes).to(flat.dtype)))
