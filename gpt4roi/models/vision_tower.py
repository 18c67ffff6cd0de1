"""VisionTower: the frozen vision tower, a ViT or a backbone with a native pyramid, as levels of feature maps."""

from __future__ import annotations

from typing import Any, cast

import torch
from einops import rearrange
from torch import nn
from transformers import AutoModel, PreTrainedModel

from gpt4roi.errors import InputError
from gpt4roi.models.configuration import GPT4RoIConfig


class VisionTower(nn.Module):
    """Turns images into feature maps, shallow first; frozen.

    Attributes:
        image_size: S.
        num_image_tokens: Cells of the last map.
        hidden_size: Channels of the last map.
        level_channels: Channels of each level.
        level_strides: Input pixels a cell, of each level.
    """

    def __init__(self, config: GPT4RoIConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__()
        vision_config = config.vision_config
        self.is_pyramid = vision_config.model_type == "timm_backbone"
        if self.is_pyramid:
            # timm chooses its attention by itself and complains about any other wish.
            vision_config._attn_implementation = "sdpa"
        self.backbone = AutoModel.from_config(vision_config) if backbone is None else backbone
        self.image_size = cast(int, config.image_size)
        self.level_indices: list[int] = []
        if self.is_pyramid:
            info = cast(Any, self.backbone._backbone).feature_info
            self.level_channels, self.level_strides = list(info.channels()), list(info.reduction())
        else:
            self.level_indices = _level_indices(config)
            self.level_channels = [vision_config.hidden_size] * config.num_region_levels
            self.level_strides = [vision_config.patch_size] * config.num_region_levels
        self.hidden_size = self.level_channels[-1]
        # A ViT drops what does not fill a patch; a pyramid of convolutions pads it.
        stride = self.level_strides[-1]
        self.grid_size = -(-self.image_size // stride) if self.is_pyramid else self.image_size // stride
        self.num_image_tokens = self.grid_size**2
        # accelerate keeps these whole on one device; a backbone that names none stays whole itself.
        self._no_split_modules = list(self.backbone._no_split_modules or [type(self.backbone).__name__])
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> VisionTower:
        """Always stays in eval mode: the tower is frozen, its statistics too."""
        return super().train(False)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Encodes images, float[K, 3, S, S]; without a graph, unless a parameter was unfrozen.

        Returns:
            The image tokens float[K, P, C] (the cells of the last map, row by row) and the feature maps, a list of
            float[K, C_l, H_l, W_l], shallow first.

        Raises:
            InputError: The images have another size.
        """
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[-2:]) != (self.image_size, self.image_size):
            raise InputError(
                f"pixel_values must be [K, 3, {self.image_size}, {self.image_size}], got {list(pixel_values.shape)}"
            )
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(trained):
            maps = self._feature_maps(pixel_values)
        return flatten_map(maps[-1]), maps

    def _feature_maps(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        if self.is_pyramid:
            maps = list(self.backbone(pixel_values).feature_maps)
        else:
            states = self.backbone(pixel_values, output_hidden_states=True).hidden_states
            # What precedes the patches (class and register tokens) has no position on a map.
            maps = [
                rearrange(states[index][:, -self.num_image_tokens :], "k (h w) c -> k c h w", h=self.grid_size)
                for index in self.level_indices
            ]
        return maps


def flatten_map(feature_map: torch.Tensor) -> torch.Tensor:
    """Returns the cells of a map, row by row; float[K, C, H, W] becomes float[K, H * W, C]."""
    return rearrange(feature_map, "k c h w -> k (h w) c")


def _level_indices(config: GPT4RoIConfig) -> list[int]:
    """Returns which hidden states are the region levels: every `region_level_stride`-th, going down, shallow first."""
    states = config.vision_config.num_hidden_layers + 1
    going_down = range(states)[config.mm_vision_select_layer :: -config.region_level_stride]
    if len(going_down) < config.num_region_levels:
        raise InputError(
            f"config: the tower's {states} hidden states give {len(going_down)} levels from "
            f"mm_vision_select_layer={config.mm_vision_select_layer} in steps of {config.region_level_stride}, "
            f"but num_region_levels={config.num_region_levels}"
        )
    return sorted(going_down[: config.num_region_levels])
