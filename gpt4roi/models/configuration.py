"""What a model is: nested configurations of the tower and the language model, and the choices between them."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from gpt4roi.errors import InputError
from gpt4roi.io.auto_map import InPackage, auto_map

CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
"""CLIP ViT-L/14 at 224 px, the tower of the released model."""


class GPT4RoIConfig(InPackage, PreTrainedConfig):
    """Sizes and choices of a model. Every width is derived from the two nested configurations.

    vision_config: any ViT of transformers, or a `timm_backbone` configuration; a dict needs its `model_type`.
    text_config: any decoder of transformers.
    mm_vision_tower: where the tower came from: a hub name or a folder's name, never a path of this machine.
    mm_vision_select_layer: the hidden state of a ViT that gives the image tokens; the region levels go down from it.
    mm_use_im_start_end: whether <im_start> and <im_end> stand around an image's tokens.
    image_size: S, the side of the input image in pixels; taken from vision_config where it has one.
    image_seq_length: image tokens of an image in the prompt; None where only the built tower knows.
    *_token_id: ids of <im_patch>, <bbox>, <im_start> and <im_end>.
    region_encoder_type: `gpt4roi`, the original's function, or `light`, for towers with a native pyramid.
    tokens_per_region: k, the consecutive <bbox> tokens that one region takes in the prompt; 1 is the original's.
    region_shape: `box`, the original's function, or `mask`: the cells of a box count by how much a mask covers of them.
    roi_align_backend: which RoIAlign pools the boxes: `torchvision`, `sparse`, `mmcv`, or `auto`, the faster of two.
    num_region_levels, region_level_stride: how many hidden states of a ViT become levels, and the step between them.
    num_fusion_rounds, fusion_groups: rounds of the pyramid's fusion, and groups of their GroupNorm (gpt4roi).
    roi_output_size, roi_sampling_ratio: cells a side of a pooled box, and samples a side of a cell.
    position_hidden_size: hidden width of the box embedding (gpt4roi).
    pool_channels, pool_hidden_size: widths inside the light encoder.
    class_names: what the tower's own classifier calls its classes, which then names regions (light); None for none.
    classifier_hidden_size, classifier_activation: of the convolution before that classifier; None, where it has none.
    region_texts: what regions of the training were called, for an encoder with class_names; None before it.
    projector_type: `linear`, the original's, or `light`.
    image_grid_size: g; the light projector pools the last map to g x g image tokens; None keeps all cells.
    """

    model_type = "gpt4roi"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "cache",
        "hidden_states",
        "attentions",
        "image_features",
        "region_features",
    ]
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: dict | PreTrainedConfig | None = None,
        text_config: dict | PreTrainedConfig | None = None,
        mm_vision_tower: str | None = None,
        mm_vision_select_layer: int = -2,
        mm_use_im_start_end: bool = True,
        image_size: int | None = None,
        image_seq_length: int | None = None,
        image_token_id: int = 32001,
        region_token_id: int = 32002,
        image_start_token_id: int = 32004,
        image_end_token_id: int = 32005,
        region_encoder_type: str = "gpt4roi",
        tokens_per_region: int = 1,
        region_shape: str = "box",
        roi_align_backend: str = "torchvision",
        num_region_levels: int = 4,
        region_level_stride: int = 3,
        num_fusion_rounds: int = 5,
        fusion_groups: int = 64,
        roi_output_size: int | None = None,
        roi_sampling_ratio: int = 2,
        position_hidden_size: int = 256,
        pool_channels: int = 128,
        pool_hidden_size: int = 512,
        class_names: list[str] | None = None,
        classifier_hidden_size: int | None = None,
        classifier_activation: str = "relu6",
        region_texts: list[str] | None = None,
        projector_type: str | None = None,
        image_grid_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vision_config = _nested(vision_config, CLIP_LARGE)
        self.text_config = _nested(text_config, {"model_type": "llama", "vocab_size": 32006})
        self.mm_vision_tower = mm_vision_tower
        self.mm_vision_select_layer = mm_vision_select_layer
        self.mm_use_im_start_end = mm_use_im_start_end
        self.image_token_id = image_token_id
        self.region_token_id = region_token_id
        self.image_start_token_id = image_start_token_id
        self.image_end_token_id = image_end_token_id
        self.region_encoder_type = region_encoder_type
        self.tokens_per_region = tokens_per_region
        self.region_shape = region_shape
        self.roi_align_backend = roi_align_backend
        self.num_region_levels = num_region_levels
        self.region_level_stride = region_level_stride
        self.num_fusion_rounds = num_fusion_rounds
        self.fusion_groups = fusion_groups
        light = region_encoder_type == "light"
        self.roi_output_size = roi_output_size or (4 if light else 14)
        self.roi_sampling_ratio = roi_sampling_ratio
        self.position_hidden_size = position_hidden_size
        self.pool_channels = pool_channels
        self.pool_hidden_size = pool_hidden_size
        self.class_names = class_names
        self.classifier_hidden_size = classifier_hidden_size
        self.classifier_activation = classifier_activation
        self.region_texts = region_texts
        self.projector_type = projector_type or ("light" if light else "linear")
        self.image_grid_size = image_grid_size
        self.image_size = image_size or getattr(self.vision_config, "image_size", None)
        self.image_seq_length = image_seq_length or self._derive_image_seq_length()
        self._check()
        # Otherwise transformers resets the attention of built parts, whose decoder would then mask nothing.
        parts = {name: getattr(self, name)._attn_implementation for name in ("vision_config", "text_config")}
        kwargs["attn_implementation"] = kwargs.get("attn_implementation") or parts
        super().__init__(**kwargs)

    def _derive_image_seq_length(self) -> int | None:
        if self.image_grid_size is not None:
            return self.image_grid_size**2
        patch = getattr(self.vision_config, "patch_size", None)
        return None if patch is None or self.image_size is None else (self.image_size // patch) ** 2

    def _check(self) -> None:
        for name, allowed in (
            ("region_encoder_type", ("gpt4roi", "light")),
            ("region_shape", ("box", "mask")),
            ("projector_type", ("linear", "light")),
            ("roi_align_backend", ("torchvision", "sparse", "mmcv", "auto")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise InputError(f"config: {name} is {value!r}, expected one of {', '.join(allowed)}")
        if not isinstance(self.tokens_per_region, int) or self.tokens_per_region < 1:
            raise InputError(f"config: tokens_per_region is {self.tokens_per_region!r}, expected 1 or more")
        if self.class_names is not None and self.region_encoder_type != "light":
            raise InputError(f"config: class_names need region_encoder_type='light', got {self.region_encoder_type!r}")
        if not isinstance(self.image_size, int):
            raise InputError(
                f"config: vision_config of type {self.vision_config.model_type!r} has no single image_size "
                f"({self.image_size!r}); set image_size, the side of the input image in pixels"
            )
        if self.image_grid_size is not None and self.projector_type != "light":
            raise InputError(
                f"config: image_grid_size={self.image_grid_size} needs projector_type='light', "
                f"got {self.projector_type!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as plain values, without the paths that its parts were read from."""
        plain = super().to_dict()
        for name in ("vision_config", "text_config"):
            plain[name].pop("_name_or_path", None)
        return plain | {"auto_map": auto_map("AutoConfig", "AutoModelForImageTextToText")}


def _nested(config: dict | PreTrainedConfig | None, default: dict) -> PreTrainedConfig:
    """Builds a nested configuration from a dict that names its `model_type`; takes a built one as it is."""
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(default if config is None else config)
    try:
        model_type = values.pop("model_type")
    except KeyError:
        raise InputError(f"config: a nested configuration has no model_type; it holds {sorted(values)[:5]}") from None
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError:
        raise InputError(f"config: transformers knows no model_type {model_type!r}") from None
