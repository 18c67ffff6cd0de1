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
from gpt4roi.models.classifier_head import TEMPERATURE, ClassifierHead
from gpt4roi.models.compat import execution_device_and_dtype
from gpt4roi.models.configuration import GPT4RoIConfig
from gpt4roi.models.kernels.roi_align import roi_align
from gpt4roi.models.region_encoder_base import RegionEncoderBase
from gpt4roi.models.region_texts import (
    DISCRIMINANT_WEIGHT,
    TRUST_SCALES,
    Judgement,
    LinearDiscriminant,
    directions,
    judge,
    text_directions,
)
from gpt4roi.models.vision_tower import VisionTower

CALIBRATION_BATCH = 64
"""Rows that are measured at once."""

BOX_MEAN, BOX_STD = (0.5, 0.5, 0.3, 0.3, 0.3), (0.25, 0.25, 0.2, 0.2, 0.2)
"""Of center_size_features of objects in everyday images, until boxes are measured."""
LOG_SIZE_MEAN, LOG_SIZE_STD = -1.3, 0.6
"""Of the logarithms of the sizes, which the position in a token of its own holds."""

DISCRIMINANT_SIDE = 2
"""Cells along each side of a box that it reads."""

SHARPNESS = 4.0
"""Power to which probabilities are raised where words are mixed: a half of each would be no word at all."""

POSITION_SCALE = 4.0
"""Of the position in a token of its own, in root mean squares of a word: a language model compares boxes earlier."""

POSITION_LINEAR, POSITION_LIMIT = 1.5, 2.5
"""Standard deviations up to which a measure of a box is linear, and which it approaches: boxes larger than those of the
training would otherwise be so far from any word that the name beside them is not read."""


def _sharpened(probabilities: torch.Tensor) -> torch.Tensor:
    return (SHARPNESS * probabilities.clamp(min=1e-9).log()).softmax(-1)


def _bounded(facts: torch.Tensor) -> torch.Tensor:
    """Keeps measures up to POSITION_LINEAR, and draws those beyond towards POSITION_LIMIT, without a bend."""
    room = POSITION_LIMIT - POSITION_LINEAR
    beyond = facts.abs() - POSITION_LINEAR
    return torch.where(beyond > 0, facts.sign() * (POSITION_LINEAR + room * torch.tanh(beyond / room)), facts)


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

    With a classifier head, the content is words: those of the text of the training that the learned embedding is
    nearest to, or those of the head's class, whichever can be trusted. What it was not shown is left to the head.
    Of several tokens, the position starts in the last one alone, where texts have no word.

    Attributes:
        texts: float[T, k * D], the tokens' embeddings of the texts that it was trained with (with a classifier head).
        noise: Standard deviation of a number added to each channel while training.
        mixup: Largest fraction of another region's features mixed into each one while training.
    """

    texts: torch.Tensor

    def __init__(self, config: GPT4RoIConfig, tower: VisionTower) -> None:
        super().__init__()
        self.image_size, self.strides = tower.image_size, tower.level_strides
        sides = [-(-self.image_size // stride) for stride in self.strides]
        self.level_shapes = list(zip(tower.level_channels, sides, strict=True))
        self.output_size, self.sampling_ratio = config.roi_output_size, config.roi_sampling_ratio
        self.backend = config.roi_align_backend
        self.width, self.tokens_per_region = config.text_config.hidden_size, config.tokens_per_region
        self.region_shape = config.region_shape
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
            self.gate = nn.Linear(len(TRUST_SCALES), 1)
            texts = len(config.region_texts or ())
            self.register_buffer("texts", torch.zeros(texts, width))
            channels = sum(tower.level_channels) * min(self.output_size, DISCRIMINANT_SIDE) ** 2
            self.discriminant = LinearDiscriminant(channels, texts)
        self.standardise_box = Standardise(5)
        self.place = nn.Linear(5, self.tokens_per_region * self.width, bias=False)
        self.shape_embedding: nn.Linear | None = None
        if config.region_shape == "mask":
            self.shape_embedding = nn.Linear(self.output_size**2, self.tokens_per_region * self.width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws fresh weights and resets the measured statistics."""
        modules: tuple[nn.Conv2d | nn.Linear | Standardise, ...] = (self.reduce, self.hidden, self.output)
        for module in (*modules, *self.standardise):
            module.reset_parameters()
        if self.head is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        if self.shape_embedding is not None:
            nn.init.zeros_(self.shape_embedding.weight)
        # This copy leaves alone what came from a file.
        mean, std = torch.tensor(BOX_MEAN), torch.tensor(BOX_STD)
        if self.tokens_per_region > 1:
            mean[2:], std[2:] = LOG_SIZE_MEAN, LOG_SIZE_STD
        initialization.copy_(self.standardise_box.mean, mean)
        initialization.copy_(self.standardise_box.std, std)
        self.init_output_rms(1.0)

    def set_regularisation(self, noise: float = 0.0, mixup: float = 0.0) -> None:
        """Sets what disturbs pooled features while training; see the attributes."""
        self.noise, self.mixup = noise, mixup

    def init_output_rms(self, value: float) -> None:
        """Starts both parts at one root mean square: that of the language model's own embeddings."""
        nn.init.constant_(self.norm.weight, value)
        nn.init.normal_(self.place.weight, std=value / math.sqrt(self.place.in_features))
        if self.tokens_per_region > 1:
            in_last = POSITION_SCALE * self.place.weight.detach()
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
            self.standardise_box.calibrate(self.measures(torch.cat(boxes)))

    def measures(self, boxes: torch.Tensor) -> torch.Tensor:
        """Returns center_size_features, float[M, 5], of several tokens with the logarithms of sizes: those have ratios.

        boxes: float[M, 4], xyxy in [0, 1].
        """
        facts = center_size_features(boxes)
        if self.tokens_per_region > 1:
            facts[:, 2:] = facts[:, 2:].clamp(min=1e-3).log()
        return facts

    def content(self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor]) -> torch.Tensor:
        """Embeds what each box shows; float[M * k, D] in batch order."""
        return self.embed(self.pool(feature_maps, boxes))

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

    def embed_boxes(
        self, pyramid: list[torch.Tensor], boxes: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns float[M * k, D] of boxes and masks, as of forward, on what `pyramid` returned."""
        cells = self.mask_cells(boxes, masks, self.output_size)
        return self.embed(self._pool_levels(pyramid, boxes), cells) + self.position(boxes, cells)

    def embed(self, pooled: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """Embeds pooled boxes, float[M, C, h, w], as float[M * k, D]; disturbs them first while training.

        cells: float[M, 1, h, w], by how much each pooled cell counts, for region_shape `mask`.
        """
        rows, judgement = self.learned(pooled, cells)
        if judgement is None or self.head is None or len(self.texts) < 2:
            return rows
        share = torch.sigmoid(SHARPNESS * judgement.trust)[:, None].to(self.texts.dtype)
        words = share * (_sharpened(judgement.of_texts).to(self.texts.dtype) @ self.texts)
        words = words + (1 - share) * self.head.mix(_sharpened(judgement.of_classes))
        return self.norm(words.unflatten(1, (-1, self.width)).flatten(0, 1).to(self.norm.weight.dtype))

    def learned(self, pooled: torch.Tensor, cells: torch.Tensor | None = None) -> tuple[torch.Tensor, Judgement | None]:
        """Returns what is learned of pooled boxes, float[M * k, D], and where there is a head, which one to trust."""
        # The head was trained on features as they are: it would be sure of other things about disturbed ones.
        logits = None if self.head is None else self.head.logits(self._last_level(pooled), cells)
        if self.training:
            pooled = self._disturb(pooled)
        if cells is not None:  # 0 is what a channel is on average
            pooled = pooled * cells.to(pooled.dtype)
        hidden = rearrange(F.gelu(self.reduce(pooled.to(self.reduce.weight.dtype))), "m c h w -> m (c h w)")
        output = rearrange(self.output(F.gelu(self.hidden(hidden))), "m (k d) -> (m k) d", d=self.width)
        # Under autocast the norm would otherwise get two types.
        rows = self.norm(output.to(self.norm.weight.dtype))
        if logits is None or len(self.texts) < 2:
            return rows, None
        with torch.autocast(rows.device.type, enabled=False):
            targets, centre = text_directions(self.texts.float().unflatten(1, (-1, self.width)))
            near = directions(rows, self.tokens_per_region, centre) @ targets.T
            near = near + DISCRIMINANT_WEIGHT * self.discriminant(self.coarse(pooled))
            return rows, judge(near, logits / TEMPERATURE, self.gate)

    def coarse(self, pooled: torch.Tensor) -> torch.Tensor:
        """Returns what `discriminant` reads of pooled boxes, float[M, F]."""
        return F.adaptive_avg_pool2d(pooled.float(), min(self.output_size, DISCRIMINANT_SIDE)).flatten(1)

    def set_texts(self, embeddings: torch.Tensor, known: torch.Tensor | None = None) -> None:
        """Takes the texts that regions are compared with.

        Args:
            embeddings: float[T, k, D], in tokens.
            known: int64[T], which of those before each is, -1 for a new one; all are new by default.
        """
        self.texts = embeddings.flatten(1).to(self.norm.weight)
        self.discriminant.keep(torch.full((len(self.texts),), -1) if known is None else known)

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

    def position(self, boxes: list[torch.Tensor], cells: torch.Tensor | None = None) -> torch.Tensor:
        """Embeds where each box is, and what its mask leaves out of it; float[M * k, D] in batch order."""
        device, dtype = execution_device_and_dtype(self.place)
        facts = self.standardise_box(self.measures(torch.cat(boxes).to(device)))
        if self.tokens_per_region > 1:
            facts = _bounded(facts)
        rows = self.place(facts.to(dtype))
        if cells is not None and self.shape_embedding is not None:
            rows = rows + self.shape_embedding((1 - cells).flatten(1).to(dtype))
        return rearrange(rows, "m (k d) -> (m k) d", d=self.width)


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
