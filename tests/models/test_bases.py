"""Every decoder with every tower: opened from folders, joined, and taking a training step; and one's own tower."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import tiny_text_config, tiny_tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackbone,
    TimmBackboneConfig,
)
from transformers.modeling_outputs import BaseModelOutput

from gpt4roi.checkpoint.build import build_from_parts
from gpt4roi.checkpoint.loading import load_model
from gpt4roi.structures import RegionSample, Turn
from gpt4roi.train.param_groups import MODULES, set_trainable

LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DECODERS = {
    "vicuna_or_llama_1": ("llama", {"num_key_value_heads": 4}),
    "llama_2": ("llama", {"num_key_value_heads": 2, "rms_norm_eps": 1e-5}),
    "llama_3": ("llama", {"num_key_value_heads": 2, "rope_parameters": LLAMA_3_ROPE}),
    "qwen_2": ("qwen2", {}),
    "qwen_3": ("qwen3", {}),
    "smollm_2": ("llama", {"tie_word_embeddings": True}),
    "smollm_3": ("smollm3", {}),
}
VIT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 5, "num_attention_heads": 2, "patch_size": 14}
TOWERS = {
    "clip_224": ("clip_vision_model", {**VIT, "image_size": 56}),
    "clip_336": ("clip_vision_model", {**VIT, "image_size": 84}),
    "siglip": ("siglip_vision_model", {**VIT, "image_size": 56}),
    "dinov2": ("dinov2", {**VIT, "image_size": 56}),
    "efficientnet": ("timm_backbone", "test_efficientnet"),
    "convnext": ("timm_backbone", "test_convnext"),
}
SMALL = {"num_region_levels": 2, "region_level_stride": 1, "num_fusion_rounds": 2, "fusion_groups": 4}
POOLED = {"roi_output_size": 3, "position_hidden_size": 8, "pool_channels": 8, "pool_hidden_size": 16}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each decoder, with a tokenizer, and for each tower."""
    root = tmp_path_factory.mktemp("bases")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer(with_region_tokens=False)
        for name, (kind, changes) in DECODERS.items():
            config = tiny_text_config(kind, vocab_size=len(tokenizer), **changes)
            AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
            tokenizer.save_pretrained(root / name)
        for name, (kind, settings) in TOWERS.items():
            if kind == "timm_backbone":
                out = (1, 2, 3, 4) if "efficient" in settings else (0, 1, 2, 3)
                TimmBackbone(TimmBackboneConfig(backbone=settings, out_indices=out)).save_pretrained(root / name)
                preprocessing = {"size": {"height": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
                (root / name / "preprocessor_config.json").write_text(json.dumps(preprocessing))
            else:
                AutoModel.from_config(AutoConfig.for_model(kind, **settings)).save_pretrained(root / name)
    return root


def sample():
    """An image of noise with two boxes and a question about each."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    turns = (
        Turn("user", "What is <region1>?"),
        Turn("assistant", "a red fox"),
        Turn("user", "And <region2>?"),
        Turn("assistant", "a hen"),
    )
    return RegionSample(image, turns, np.array([[2, 2, 30, 30], [20, 10, 60, 62]]))


def take_a_step(model, inputs, modules):
    """Returns the loss before and after one step of the named modules, and the names of what changed."""
    set_trainable(model, modules)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    model.train()
    losses = []
    for _ in range(2):
        loss = model(**inputs, logits_at_targets_only=True).loss
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        if len(losses) == 1:
            optimiser.step()
    changed = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    return losses, changed


def tensors(processor):
    wanted = ("input_ids", "attention_mask", "labels", "pixel_values", "boxes")
    return {name: value for name, value in processor(sample()).items() if name in wanted}


@pytest.mark.heavy
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_and_a_tower_are_joined_and_take_a_step_of_each_stage(folders, decoder, tower):
    light = {"region_encoder_type": "light"} if TOWERS[tower][0] == "timm_backbone" else {}
    model, processor = build_from_parts(
        folders / decoder, folders / tower, prompt_format="chat", **SMALL, **POOLED, **light
    )
    inputs = tensors(processor)
    assert (inputs["input_ids"] == processor.image_patch_token_id).sum() == model.vision_tower.num_image_tokens
    for modules in (("region_encoder",), MODULES):
        (first, second), changed = take_a_step(model, inputs, modules)
        assert changed == set(modules)
        assert 0 < second < first < 20


@pytest.mark.parametrize("attention", [None, "eager", "sdpa"])
def test_a_decoder_that_was_joined_with_a_tower_still_looks_backwards_only(folders, attention):
    model, _ = build_from_parts(
        folders / "llama_2", folders / "siglip", prompt_format="chat", **SMALL, **POOLED, attn_implementation=attention
    )
    assert model.language_model.config._attn_implementation == attention or attention is None
    ids = torch.tensor([[1, 40, 41, 42, 43]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits[:, :3], model(ids[:, :3]).logits, atol=1e-5, rtol=0)


class BarsConfig(PreTrainedConfig):
    """Somebody's own tower: nothing of it is known to transformers."""

    model_type = "bars_of_a_test"

    def __init__(self, hidden_size=8, patch_size=8, image_size=32, num_hidden_layers=3, **kwargs):
        self.hidden_size, self.patch_size, self.image_size = hidden_size, patch_size, image_size
        self.num_hidden_layers = num_hidden_layers
        super().__init__(**kwargs)


class Bars(PreTrainedModel):
    """Patches, then a linear layer for each level."""

    config_class = BarsConfig

    def __init__(self, config):
        super().__init__(config)
        self.patches = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.layers = nn.ModuleList(nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.post_init()

    def forward(self, pixel_values, output_hidden_states=False, **kwargs):
        states = [self.patches(pixel_values).flatten(2).transpose(1, 2)]
        for layer in self.layers:
            states.append(torch.relu(layer(states[-1])))
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


def test_one_s_own_tower_is_registered_joined_trained_and_opened_again(folders, tmp_path):
    AutoConfig.register(BarsConfig.model_type, BarsConfig)
    AutoModel.register(BarsConfig, Bars)
    Bars(BarsConfig()).save_pretrained(tmp_path / "bars")
    model, processor = build_from_parts(
        folders / "llama_2", tmp_path / "bars", prompt_format="chat", **SMALL, **POOLED, mm_vision_select_layer=-1
    )
    inputs = tensors(processor)
    (first, second), changed = take_a_step(model, inputs, MODULES)
    assert second < first and changed == set(MODULES)
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model.eval()(**inputs).logits)
