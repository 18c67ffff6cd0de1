"""RegionEncoderBase: the interface of region encoders, a pyramid for each image and k embeddings for each box."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from gpt4roi.errors import InputError
from gpt4roi.models.compat import execution_device_and_dtype, onload_weights
from gpt4roi.models.kernels.roi_align import pool_masks, validate_masks, validate_unit_boxes
from gpt4roi.structures import MASK_SIZE


class RegionEncoderBase(nn.Module):
    """Turns each box of an image into k embeddings of the language model, one for each of its tokens, in two steps.

    `pyramid` computes what depends on the images alone and may be cached for many boxes; `embed_boxes` does the rest.

    Attributes:
        width: D, the language model's width.
        tokens_per_region: k.
        region_shape: As of GPT4RoIConfig.
        level_shapes: Channels and side of each incoming level.
        uniform_forward: Whether every batch must go through the same modules in the same order, however many boxes it
            has, also none: DeepSpeed gathers weights (ZeRO-3) and adds up gradients (ZeRO-2) of all processes in the
            order of each one.
    """

    width: int
    tokens_per_region: int
    region_shape: str
    level_shapes: list[tuple[int, int]]
    uniform_forward = False

    def pyramid(self, feature_maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Returns list of float[K, C'_l, H'_l, W'_l] of the tower's maps, list of float[K, C_l, H_l, W_l]."""
        raise NotImplementedError

    def embed_boxes(
        self, pyramid: list[torch.Tensor], boxes: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Returns float[M * k, D] of boxes and masks, as of forward, on what `pyramid` returned."""
        raise NotImplementedError

    def mask_cells(
        self, boxes: list[torch.Tensor], masks: list[torch.Tensor] | None, output_size: int
    ) -> torch.Tensor | None:
        """Returns float32[M, 1, P, P], by how much each pooled cell counts; None for an encoder of boxes."""
        if self.region_shape == "box":
            return None
        rows = masks or [one.new_ones(len(one), MASK_SIZE, MASK_SIZE) for one in boxes]
        return pool_masks(torch.cat([one.to(execution_device_and_dtype(self)[0]) for one in rows]), output_size)

    def set_uniform_forward(self, uniform: bool) -> None:
        """Sets whether every batch must go through the same modules."""
        self.uniform_forward = uniform

    def forward(
        self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor], masks: list[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Embeds boxes; k consecutive rows belong to each box, in batch order.

        Args:
            feature_maps: list of float[K, C_l, H_l, W_l], shallow first; may be empty where there is no box.
            boxes: list of K float[N_i, 4], xyxy in [0, 1]; N_i may be 0.
            masks: list of K float[N_i, r, r] in [0, 1], the share of each cell of a box that is of the region, for
                region_shape `mask`; None: all of each box.

        Returns:
            float[M * k, D]. Without any box it has no rows, and its gradient to every parameter is zero, not missing.

        Raises:
            InputError: A box or a mask is not one, or this is an encoder of boxes and gets masks.
        """
        validate_unit_boxes(boxes)
        if masks is not None:
            if self.region_shape == "box":
                raise InputError("masks are given, but the model reads boxes alone (config: region_shape is 'box')")
            validate_masks(masks, boxes)
        if not any(len(rows) for rows in boxes):
            return self.empty_output()
        return self._embed(feature_maps, boxes, masks)

    def _embed(
        self, feature_maps: list[torch.Tensor], boxes: list[torch.Tensor], masks: list[torch.Tensor] | None
    ) -> torch.Tensor:
        return self.embed_boxes(self.pyramid(feature_maps), boxes, masks)

    def empty_output(self) -> torch.Tensor:
        """Returns a float[0, D] that depends on all parameters with gradient zero.

        Under uniform_forward a dummy box is sent through the modules as others' boxes are, and left out.
        """
        if self.uniform_forward:
            device, dtype = execution_device_and_dtype(self)
            shapes = self.level_shapes
            maps = [torch.zeros(1, channels, side, side, device=device, dtype=dtype) for channels, side in shapes]
            return self.forward(maps, [torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device)])[:0]
        with onload_weights(self):
            nothing = cast(torch.Tensor, sum(parameter.reshape(-1)[:0].sum() for parameter in self.parameters()))
            return nothing + nothing.new_zeros(0, self.width)
