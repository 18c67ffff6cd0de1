"""Every size comes from tensors and config: 7B and 13B, 224 and 336 px, without reserving their memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration, original_format

GOLDEN = Path(__file__).parents[1] / "golden/model"
LISTED = json.loads((GOLDEN / "gpt4roi_7b_state_dict.json").read_text())
SIZES = {"7B": (4096, 11008, 32, 32006), "13B": (5120, 13824, 40, 32006), "13B, more tokens": (5120, 13824, 40, 32009)}


def original_shapes(width: int, inner: int, layers: int, rows: int) -> dict[str, list[int]]:
    """The recorded names and shapes of 7B, with a language model of another size."""
    other = {4096: width, 11008: inner, 32006: rows}
    shapes = {}
    for name, shape in LISTED["entries"].items():
        if "spi_module" in name and "updims" not in name:
            shapes[name] = shape
            continue
        sized = [other.get(side, side) for side in shape]
        if ".layers." not in name:
            shapes[name] = sized
        elif ".layers.0." in name:
            shapes |= {name.replace(".layers.0.", f".layers.{layer}."): sized for layer in range(layers)}
    return shapes


@pytest.mark.heavy
@pytest.mark.parametrize("side", [224, 336])
@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_fit_the_model_that_is_built_from_them(size, side):
    width, inner, layers, rows = SIZES[size]
    shapes = original_shapes(width, inner, layers, rows)
    config = {
        "model_type": "llava",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 128,
        "vocab_size": 32000,
        "mm_vision_tower": "openai/clip",
    }
    ids = {
        "image_token_id": 32001,
        "region_token_id": 32002,
        "image_start_token_id": 32004,
        "image_end_token_id": 32005,
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": side,
        "patch_size": 14,
    }
    translated = GPT4RoIConfig(**original_format.config_values(config, shapes, ids), vision_config=vision)
    with torch.device("meta"):
        model = GPT4RoIForConditionalGeneration(translated)
    built = {name: list(value.shape) for name, value in model.state_dict().items() if "vision_tower" not in name}
    ours = {original_format.to_ours(name): shape for name, shape in shapes.items()}
    ours.pop(None, None)
    assert built == ours
    assert (translated.image_seq_length, translated.text_config.vocab_size) == ((side // 14) ** 2, rows)
    assert {original_format.to_original(name) for name in built} == {name for name in shapes if "inv_freq" not in name}
    assert model.region_encoder.fusion.sizes == [side // 14 * step for step in (8, 4, 2, 1)]
    pooler = model.region_encoder.pooler
    pooled = torch.empty(2, 1024 * 196, device="meta")
    assert pooler.output_linear(pooler.flatten_linear(pooled)).shape == (2, width)
