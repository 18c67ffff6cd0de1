"""The model that a training would build, without its weights: parameters that have shapes and types, and no memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig

from gpt4roi.checkpoint.loading import load_tokenizer, tower_image_size, vision_config
from gpt4roi.constants import IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, REGION_TOKEN
from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration, original_format
from gpt4roi.models.pretrained import find_tower
from gpt4roi.processing.tokenizer import add_special_tokens
from gpt4roi.train.arguments import ModelArguments
from gpt4roi.train.build_model import is_ours


def planned_config(given: ModelArguments) -> GPT4RoIConfig:
    """Returns the configuration that a training's model would have; reads configurations and a tokenizer alone.

    Raises InputError where a part has none.
    """
    source = Path(given.model_name_or_path)
    if not is_ours(source):
        return _of_parts(given)
    values = original_format.read_json(source / "config.json")
    if not original_format.is_original(values):
        if "vision_config" not in values:
            values["vision_config"] = vision_config(find_tower(values["mm_vision_tower"], source)).to_dict()
        return GPT4RoIConfig.from_dict(values)
    names = ("model_type", "mm_hidden_size", "architectures")
    text = {name: value for name, value in values.items() if not name.startswith("mm_") and name not in names}
    tower = vision_config(find_tower(str(values.get("mm_vision_tower") or given.vision_tower), source))
    return GPT4RoIConfig(tower, {**text, "model_type": "llama"})


def _of_parts(given: ModelArguments) -> GPT4RoIConfig:
    tokenizer = load_tokenizer(given.model_name_or_path)
    try:
        text = AutoConfig.from_pretrained(given.model_name_or_path)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"language model {given.model_name_or_path}: no configuration there ({reason})") from None
    add_special_tokens(tokenizer, pad_with_unknown=(given.prompt_format or "v0") in ("v1", "llava_v1"))
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    place = find_tower(given.vision_tower)
    tower, vocabulary = vision_config(place), tokenizer.get_vocab()
    return GPT4RoIConfig(
        tower,
        text,
        image_size=tower_image_size(place, tower),
        image_token_id=vocabulary[IMAGE_PATCH_TOKEN],
        region_token_id=vocabulary[REGION_TOKEN],
        image_start_token_id=vocabulary[IMAGE_START_TOKEN],
        image_end_token_id=vocabulary[IMAGE_END_TOKEN],
        region_encoder_type=given.region_encoder_type,
        image_grid_size=given.image_grid_size,
        mm_vision_select_layer=given.mm_vision_select_layer,
        mm_use_im_start_end=given.mm_use_im_start_end,
    )


def planned_model(config: GPT4RoIConfig, attention: str | None = None) -> GPT4RoIForConditionalGeneration:
    """Builds a model on the meta device, where tensors have shapes and types alone.

    attention: the attention of the language model, by default transformers' choice.
    """
    # What only runs on a GPU keeps what sdpa keeps.
    config.text_config._attn_implementation = "sdpa" if (attention or "").startswith("flash") else attention
    with torch.device("meta"):
        return GPT4RoIForConditionalGeneration(config).train()


def runnable(model: nn.Module) -> FakeTensorMode:
    """Gives a model of the meta device tensors that can be run in 16 bits too, and returns the mode to run it in."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                setattr(module, name, nn.Parameter(value, requires_grad=parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return mode
