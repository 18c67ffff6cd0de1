"""ViewRegionEncoder: the light region encoder on what a pretrained vision-language model's tower sees of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch

from gpt4roi.models.light_encoder import LightRegionEncoder
from gpt4roi.models.vlm_families import WHOLE, View, choose_views, join_tiles


@dataclass(frozen=True)
class RegionConfig:
    """What is added to a base.

    Attributes:
        region_token_id: Id of `<bbox>`.
        levels: Which blocks of the vision tower give feature maps.
        channels: Of these maps.
        hidden_size: D, the width of the base's decoder.
        tokens_per_region: k, the consecutive `<bbox>` tokens that one region takes.
        region_shape, roi_output_size, roi_sampling_ratio, roi_align_backend: As of GPT4RoIConfig.
        pool_channels, pool_hidden_size: Likewise.
    """

    region_token_id: int
    levels: tuple[int, ...]
    channels: int
    hidden_size: int
    tokens_per_region: int = 1
    region_shape: str = "box"
    roi_output_size: int = 4
    roi_sampling_ratio: int = 2
    roi_align_backend: str = "torchvision"
    pool_channels: int = 128
    pool_hidden_size: int = 512


Frames = Sequence[torch.Tensor]
"""Of each image, float[V_i, 4]: where its views lie in it, xyxy in sides of the image."""


class ViewRegionEncoder(LightRegionEncoder):
    """The light region encoder on the views of each image, of any number and size."""

    def __init__(self, config: RegionConfig) -> None:
        count = len(config.levels)
        tower: Any = SimpleNamespace(image_size=1, level_strides=[1] * count, level_channels=[config.channels] * count)
        own: Any = SimpleNamespace(
            **asdict(config), text_config=SimpleNamespace(hidden_size=config.hidden_size), class_names=None
        )
        super().__init__(own, tower)

    def pyramid(self, feature_maps: Any) -> Any:
        """Returns the standardised views of each image, tiles joined; list of K lists of View."""
        return [
            [replace(view, levels=self._standardised(view.levels)) for view in join_tiles(views)]
            for views in feature_maps
        ]

    def _standardised(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        return [level[0] for level in super().pyramid([level[None] for level in levels])]

    def embed_boxes(
        self, pyramid: Any, boxes: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns float[M * k, D] of boxes and masks, as of forward, on what `pyramid` returned."""
        pooled = [self._pool_image(views, rows) for views, rows in zip(pyramid, boxes, strict=True) if len(rows)]
        cells = self.mask_cells(boxes, masks, self.output_size)
        return self.embed(torch.cat(pooled), cells) + self.position(boxes, cells)

    def _pool_image(self, views: list[View], boxes: torch.Tensor) -> torch.Tensor:
        """Pools each box of an image from the view that shows most of it; float[N, sum of C_l, s, s]."""
        boxes = boxes.to(views[0].levels[0].device).float()
        chosen, cells = choose_views(boxes, views)
        rows = [(chosen == number).nonzero().flatten() for number in range(len(views))]
        pooled = [
            self._pool_levels([level[None] for level in view.levels], [cells[row]])
            for view, row in zip(views, rows, strict=True)
            if len(row)
        ]
        return torch.cat(pooled)[torch.argsort(torch.cat(rows))]

    def empty_output(self) -> torch.Tensor:
        """Returns a float[0, D] that depends on all parameters with gradient zero."""
        if not self.uniform_forward:
            return super().empty_output()
        weight = self.reduce.weight
        levels = [weight.new_zeros(channels, 1, 1) for channels, _ in self.level_shapes]
        box = weight.new_tensor([WHOLE]).float()
        return self([[View(levels, (1.0, 1.0), box[0])]], [box])[:0]

    def calibrate(self, feature_maps: Any, boxes: list[torch.Tensor] | None = None) -> None:
        """Measures the channels of each level, and the boxes; feature_maps: list of K lists of View."""
        levels = zip(*(view.levels for views in feature_maps for view in views), strict=True)
        super().calibrate([torch.cat([level.flatten(1).T for level in views]) for views in levels], boxes)
