"""LightRegionEncoder and LightProjector: small ones for towers with a native pyramid; ours, not the original's."""

from __future__ import annotations

import math
from typing import cast

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from transformers import initialization

from gpt4roi.geometry.boxes import center_size_features, to_rois
from gpt4roi.models.classifier_head import ClassifierHead
from gpt4roi.models.compat import execution_device_and_dtype
from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.kernels.roi_align import roi_align
from gpt4roi.models.region_encoder_base import RegionEncoderBase
from gpt4roi.models.vision_tower import VisionTower

CALIBRATION_BATCH = 64
"""Rows that are measured at once."""

BOX_MEAN, BOX_STD = (0.5, 0.5, 0.3, 0.3, 0.3), (0.25, 0.25, 0.2, 0.2, 0.2)
"""Of center_size_features of objects in everyday images, until boxes are measured."""


class Standardise(nn.Module):
    """Subtracts a mean and divides by a standard deviation, channel by channel; both are saved with the weights."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def reset_parameters(self) -> None:
        """Returns to mean 0 and standard deviation 1."""
        nn.init.zeros_(self.mean)
        nn.init.ones_(self.std)

    @torch.no_grad()
    def calibrate(self, values: torch.Tensor) -> None:
        """Measures mean and deviation; values: float[N, C] or float[N, C, H, W]."""
        count, total = 0, torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
        squares = torch.zeros_like(total)
        # In batches, because the values may be in half precision and fill the memory.
        for piece in values.split(CALIBRATION_BATCH):
            piece = piece.double().transpose(0, 1).flatten(1)
            total, squares, count = total + piece.sum(1), squares + piece.square().sum(1), count + piece.shape[1]
        mean = total / count
        self.mean.copy_(mean)
        self.std.copy_((squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=1e-5))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Keeps the shape, float[N, C, …], in the dtype of what was measured."""
        shape = (-1,) + (1,) * (values.ndim - 2)
        return (values.to(self.mean.dtype) - self.mean.view(shape)) / self.std.view(shape)


class LightRegionEncoder(RegionEncoderBase):
    """Embeds what a box shows (content) and where it is (position), two parts of the same scale, and adds them.

    With a classifier head, the content is what the head says of the box, plus a learned part that starts at nothing.
    Of several tokens, the position starts in the last one alone, so that the others may be words.

    Attributes:
        noise: Standard deviation of a number added to each channel while training.
        mixup: Largest fraction of another region's features mixed into each one while training.
    """

    def __init__(self, config: GPT4RoIConfig, tower: VisionTower) -> None:
        super().__init__()
        self.image_size, self.strides = tower.image_size, tower.level_strides
        sides = [-(-self.image_size // stride) for stride in self.strides]
        self.level_shapes = list(zip(tower.level_channels, sides, strict=True))
        self.output_size, self.sampling_ratio = config.roi_output_size, config.roi_sampling_ratio
        self.backend = config.roi_align_backend
        self.width, self.tokens_per_region = config.text_config.hidden_size, config.tokens_per_region
        self.noise, self.mixup = 0.0, 0.0
        levels = nn.ModuleList(Standardise(channels) for channels in tower.level_channels)
        self.standardise = cast(list[Standardise], levels)
        self.reduce = nn.Conv2d(sum(tower.level_channels), config.pool_channels, 1)
        self.hidden = nn.Linear(config.pool_channels * self.output_size**2, config.pool_hidden_size)
        self.output = nn.Linear(config.pool_hidden_size, self.tokens_per_region * self.width)
        self.norm = nn.RMSNorm(self.width, eps=1e-6)
        self.head: ClassifierHead | None = None
        if config.class_names is not None:
            kind = config.classifier_hidden_size, config.classifier_activation
            width = self.tokens_per_region * self.width
            self.head = ClassifierHead(tower.level_channels[-1], *kind, len(config.class_names), width)
        self.standardise_box = Standardise(5)
        self.place = nn.Linear(5, self.tokens_per_region * self.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights and resets the measured statistics."""
        modules: tuple[nn.Conv2d | nn.Linear | Standardise, ...] = (self.reduce, self.hidden, self.output)
        for module in (*modules, *self.standardise):
            module.reset_parameters()
        if self.head is not None:
            nn.init.ones_(self.head.scale)
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)
        # This copy leaves alone what came from a file.
        initialization.copy_(self.standardise_box.mean, torch.tensor(BOX_MEAN))
        initialization.copy_(self.standardise_box.std, torch.tensor(BOX_STD))
        self.init_output_rms(1.0)

    def set_regularisation(self, noise: float = 0.0, mixup: float = 0.0) -> None:
        """Sets what disturbs pooled features while training; see the attributes."""
        self.noise, self.mixup = noise, mixup

    def init_output_rms(self, value: float) -> None:
        """Starts both parts at one root mean square: that of the language model's own embeddings."""
        nn.init.constant_(self.norm.weight, value)
        nn.init.normal_(self.place.weight, std=value / math.sqrt(self.place.in_features))
        if self.tokens_per_region > 1:
            in_last = self.place.weight.detach().clone()
            in_last[: -self.width] = 0
            initialization.copy_(self.place.weight, in_last)

    def calibrate(self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor] | None = None) -> None:
        """Measures the channels of each level, and the boxes where given.

        Args:
            feature_maps: list of float[K, C_l, H_l, W_l].
            boxes: list of float[N_i, 4], xyxy in [0, 1].
        """
        for standardise, level in zip(self.standardise, feature_maps, strict=True):
            standardise.calibrate(level)
        if boxes:
            self.standardise_box.calibrate(center_size_features(torch.cat(boxes)))

    def content(self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Embeds what each box shows; float[M * k, D] in batch order."""
        return self.embed(self.pool(feature_maps, boxes))

    def content_parts(
        self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what `content` does, and the learned part of it, float[M, k * D], as `embed_parts` does."""
        return self.embed_parts(self.pool(feature_maps, boxes))

    def pool(self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """RoIAligns every standardised level; float[M, sum of C_l, output_size, output_size]."""
        return self._pool_levels(self.pyramid(feature_maps), boxes)

    def _pool_levels(self, pyramid: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        rois = to_rois([rows.to(pyramid[0].device) for rows in boxes], (self.image_size, self.image_size))
        pooled = [
            roi_align(level, rois, self.output_size, 1 / stride, self.sampling_ratio, self.backend)
            for level, stride in zip(pyramid, self.strides, strict=True)
        ]
        return torch.cat(pooled, dim=1)

    def pyramid(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns the standardised levels, list of float[K, C_l, H_l, W_l]."""
        return [standardise(level) for level, standardise in zip(feature_maps, self.standardise, strict=True)]

    def embed_boxes(self, pyramid: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Returns float[M * k, D] of boxes, list of K float[N_i, 4], on what `pyramid` returned."""
        return self.embed(self._pool_levels(pyramid, boxes)) + self.position(boxes)

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embeds pooled boxes, float[M, C, h, w], as float[M * k, D]; disturbs them first while training."""
        return self.embed_parts(pooled)[0]

    def embed_parts(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what `embed` does, and the learned part of it, float[M, k * D]: all of it without a head."""
        # The head was trained on features as they are: it would be sure of other things about disturbed ones.
        named = None if self.head is None else self.head(self._last_level(pooled))
        if self.training:
            pooled = self._disturb(pooled)
        hidden = rearrange(F.gelu(self.reduce(pooled.to(self.reduce.weight.dtype))), "m c h w -> m (c h w)")
        learned = self.output(F.gelu(self.hidden(hidden)))
        output = learned if named is None else learned + named
        # Under autocast the norm would otherwise get two types.
        rows = rearrange(output.to(self.norm.weight.dtype), "m (k d) -> (m k) d", d=self.width)
        return self.norm(rows), learned

    def _last_level(self, pooled: torch.Tensor) -> torch.Tensor:
        """Returns the pooled cells of the last map as the tower made them."""
        standardise = self.standardise[-1]
        cells = pooled[:, -len(standardise.mean) :]
        return cells * standardise.std[:, None, None] + standardise.mean[:, None, None]

    def _disturb(self, pooled: torch.Tensor) -> torch.Tensor:
        if self.mixup > 0 and len(pooled) > 1:
            weight = self.mixup * torch.rand(len(pooled), 1, 1, 1, device=pooled.device, dtype=pooled.dtype)
            other = pooled[torch.randperm(len(pooled), device=pooled.device)]
            pooled = (1 - weight) * pooled + weight * other
        if self.noise > 0:
            pooled = pooled + self.noise * torch.randn_like(pooled[..., :1, :1])
        return pooled

    def position(self, boxes: list[torch.Tensor]) -> torch.Tensor:
        """Embeds where each box is; float[M * k, D] in batch order."""
        device, dtype = execution_device_and_dtype(self.place)
        facts = self.standardise_box(center_size_features(torch.cat(boxes).to(device))).to(dtype)
        return rearrange(self.place(facts), "m (k d) -> (m k) d", d=self.width)


class LightProjector(nn.Module):
    """Pools the last map to g x g cells and embeds each with its position, at the scale of word embeddings."""

    def __init__(self, config: GPT4RoIConfig, tower: VisionTower) -> None:
        super().__init__()
        self.map_size = tower.grid_size
        self.grid_size = config.image_grid_size or tower.grid_size
        self.width = config.text_config.hidden_size
        self.standardise = Standardise(tower.hidden_size)
        self.linear = nn.Linear(tower.hidden_size, self.width)
        self.position = nn.Parameter(torch.empty(self.grid_size**2, self.width))
        self.norm = nn.RMSNorm(self.width, eps=1e-6)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights."""
        self.standardise.reset_parameters()
        self.linear.reset_parameters()
        nn.init.normal_(self.position, std=0.02)
        self.init_output_rms(1.0)

    def init_output_rms(self, value: float) -> None:
        """Starts at one root mean square: that of the language model's own embeddings."""
        nn.init.constant_(self.norm.weight, value)

    def calibrate(self, feature_maps: list[torch.Tensor]) -> None:
        """Measures the channels of the last map; feature_maps: list of float[K, C_l, H_l, W_l]."""
        self.standardise.calibrate(F.adaptive_avg_pool2d(feature_maps[-1].float(), self.grid_size))

    def forward(self, image_tokens: torch.Tensor) -> torch.Tensor:
        """Returns float[K, g * g, D]; image_tokens: float[K, P, C], the cells of the last map, row by row."""
        cells = rearrange(image_tokens, "k (h w) c -> k c h w", h=self.map_size)
        pooled = self.standardise(F.adaptive_avg_pool2d(cells.to(self.standardise.mean.dtype), self.grid_size))
        rows = rearrange(pooled, "k c h w -> k (h w) c").to(self.linear.weight.dtype)
        return self.norm((self.linear(rows) + self.position).to(self.norm.weight.dtype))
