"""Models small enough to train in a test: built from configurations, with seeds, below half a million parameters."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    TimmBackboneConfig,
)

from gpt4roi.constants import IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, REGION_TOKEN
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.processing.tokenizer import add_special_tokens

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
ADDED_ROWS = 5
"""The image and region tokens; the padding token is there already."""


def tiny_tokenizer(with_region_tokens: bool = True) -> PreTrainedTokenizerFast:
    """Builds a tokenizer that has one token for each byte, with a chat template and a padding token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    fast.chat_template = CHAT_TEMPLATE
    if with_region_tokens:
        add_special_tokens(fast)
    return fast


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Returns the fields of GPT4RoIConfig that hold ids."""
    vocabulary = tokenizer.get_vocab()
    return {
        "image_token_id": vocabulary[IMAGE_PATCH_TOKEN],
        "region_token_id": vocabulary[REGION_TOKEN],
        "image_start_token_id": vocabulary[IMAGE_START_TOKEN],
        "image_end_token_id": vocabulary[IMAGE_END_TOKEN],
    }


def tiny_text_config(model_type: str = "llama", **changes: object) -> PreTrainedConfig:
    """Two decoder layers of width 32."""
    values = {
        "vocab_size": len(tiny_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return LlamaConfig(**values) if model_type == "llama" else AutoConfig.for_model(model_type, **values)


def tiny_vision_config(model_type: str = "clip_vision_model") -> PreTrainedConfig:
    """Five layers of width 16 over 4 x 4 patches of 8 pixels; or a pyramid of strides 4 to 32 over 64 pixels."""
    if model_type == "timm_backbone":
        return TimmBackboneConfig(backbone="test_efficientnet", out_indices=(1, 2, 3, 4))
    values = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    if model_type == "clip_vision_model":
        return CLIPVisionConfig(**values, initializer_range=0.3)
    return AutoConfig.for_model(model_type, **values)


def tiny_config(kind: str = "clip", text_type: str = "llama", **changes: object) -> GPT4RoIConfig:
    """Returns the configuration of a tiny model.

    kind: `pyramid` for the light region encoder on a timm pyramid, or clip, siglip, dinov2, dinov2_with_registers.
    """
    towers = {"pyramid": "timm_backbone", "clip": "clip_vision_model", "siglip": "siglip_vision_model"}
    common = {
        "vision_config": tiny_vision_config(towers.get(kind, kind)),
        "text_config": tiny_text_config(text_type),
        **token_ids(tiny_tokenizer()),
    }
    if kind == "pyramid":
        own = {"region_encoder_type": "light", "image_size": 64, "pool_channels": 16, "pool_hidden_size": 32}
    else:
        own = {
            "num_region_levels": 2,
            "region_level_stride": 1,
            "num_fusion_rounds": 2,
            "fusion_groups": 4,
            "roi_output_size": 3,
            "position_hidden_size": 8,
        }
    return GPT4RoIConfig(**{**common, **own, **changes})


def tiny_model(kind: str = "clip", text_type: str = "llama", seed: int = 0, **changes: object):
    """Builds a tiny model with seeded weights, in evaluation mode; arguments as of tiny_config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT4RoIForConditionalGeneration(tiny_config(kind, text_type, **changes))
    return model.eval()


def tiny_processor(config: GPT4RoIConfig | None = None, prompt_format: str = "chat") -> GPT4RoIProcessor:
    """Builds the processor of a tiny model."""
    config = config or tiny_model().config
    return GPT4RoIProcessor(
        tiny_tokenizer(),
        image_size=config.image_size,
        image_seq_length=config.image_seq_length,
        prompt_format=prompt_format,
        tokens_per_region=config.tokens_per_region,
        region_shape=config.region_shape,
    )


def region_sensitive_chat(**changes: object):
    """A RegionChat over a tiny model whose answers depend on the region: its encoder's weights are enlarged."""
    from gpt4roi import RegionChat

    model = tiny_model("pyramid", **changes)
    with torch.no_grad():
        for weight in model.region_encoder.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return RegionChat(model, tiny_processor(model.config))
