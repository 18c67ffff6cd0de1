"""One tiny trained model in every form that people have its weights in."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_config, tiny_processor, tiny_text_config, tiny_tokenizer
from transformers import AutoModelForCausalLM, CLIPVisionConfig

from gpt4roi.checkpoint.loading import with_settings
from gpt4roi.models import GPT4RoIForConditionalGeneration

ORIGINAL_SIZES = {
    "num_region_levels": 4,
    "region_level_stride": 3,
    "num_fusion_rounds": 1,
    "fusion_groups": 64,
}
"""What the original's code has built in, and a single round of fusion."""


def original_config(**changes: object):
    """Returns the configuration of a tiny model that the original's format has a form for."""
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=12,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    return tiny_config(vision_config=tower, mm_vision_tower="clip", **ORIGINAL_SIZES, **changes)


def save_chat_model(folder: Path, seed: int = 0, **changes: object) -> Path:
    """Writes a folder of ours with a chat model whose prompts differ from v0 in everything."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT4RoIForConditionalGeneration(original_config(**changes)).eval()
        for weight in model.region_encoder.parameters():
            weight.data.mul_(8 if weight.ndim > 1 else 1)
    for weight in model.vision_tower.parameters():
        weight.data = weight.data.half().float()
    model.save_pretrained(folder)
    processor = with_settings(tiny_processor(model.config), system_prompt="Be brief.", model_max_length=512)
    processor.save_pretrained(folder)
    return folder


def save_base(folder: Path, **changes: object) -> Path:
    """Writes the language model alone that such a model may have been trained from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        tokenizer = tiny_tokenizer(with_region_tokens=False)
        config = tiny_text_config(**{"vocab_size": len(tokenizer), **changes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
