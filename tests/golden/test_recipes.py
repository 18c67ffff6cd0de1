"""Parts of the region encoder at other widths, with weights from a written recipe."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, LlamaConfig

from gpt4roi.models import GPT4RoIConfig, original_format
from gpt4roi.models.kernels.roi_align import roi_align
from gpt4roi.models.region_encoder import FeatureFusion, RegionPooler

RECORDINGS = Path(__file__).parent / "model"
BLOCK = 2**22


def recipe(name: str, shape: list[int], plain: bool = False) -> torch.Tensor:
    """Draws the values that the recordings were made with: they follow from the name alone."""
    generator = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    values = np.empty(math.prod(shape), dtype=np.float32)
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        part[:] = generator.standard_normal(len(part)).astype(np.float32)
    if not plain:
        if len(shape) > 1:
            values *= np.float32(1.4 / math.sqrt(math.prod(shape[1:])))
        else:
            values *= np.float32(0.2)
            values += np.float32(name.endswith("weight"))
    return torch.from_numpy(values.reshape(shape))


def fill(module: torch.nn.Module, case: str, original_prefix: str, our_prefix: str) -> None:
    """Fills a module by the recipe, under the original's names; case: what they begin with in the recording."""
    values = {}
    for name, parameter in module.named_parameters():
        original = original_format.to_original(our_prefix + name).removeprefix(original_prefix)
        values[name] = recipe(case + original, list(parameter.shape))
    module.load_state_dict(values, assign=True)


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDINGS / "recipe_io.safetensors")


@pytest.fixture(scope="module")
def facts():
    return json.loads((RECORDINGS / "recipe_facts.json").read_text())


def test_fusion_of_128_channels_equals_the_recording(recorded, facts):
    fusion = FeatureFusion([128] * 4, 128, grid_size=8)
    fill(fusion, "fuse128.", "model.spi_module.mlvl_fuse.", "region_encoder.fusion.")
    shapes = facts["fuse128"]["input_shapes"]
    inputs = [recipe(f"fuse128.input.level{level}", shape, plain=True) for level, shape in enumerate(shapes)]
    with torch.no_grad():
        outputs = fusion(inputs)
    for level, output in enumerate(outputs):
        torch.testing.assert_close(output, recorded[f"fuse128.out{level}"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("level", range(4))
def test_roi_align_and_its_gradient_equal_the_recording(recorded, facts, level):
    side = 128 >> level
    values = recipe(f"roi_unit.level{level}", [1, 4, side, side], plain=True).requires_grad_()
    pooled = roi_align(values, recorded["roi_unit.rois"], 14, facts["roi_unit"][level]["spatial_scale"], 2)
    torch.testing.assert_close(pooled, recorded[f"roi_unit.out{level}"], atol=2e-5, rtol=0)
    pooled.square().sum().backward()
    expected = recorded[f"roi_unit.grad{level}_sum_c"]
    difference = (values.grad.sum(1) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()


@pytest.mark.slow
def test_region_encoder_at_full_width_equals_the_recording(recorded, facts):
    case = facts["full"]
    config = GPT4RoIConfig(
        vision_config=CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, num_hidden_layers=24, patch_size=14),
        text_config=LlamaConfig(hidden_size=4096),
    )
    with torch.device("meta"):
        fusion = FeatureFusion([1024] * 4, 1024, grid_size=16)
        pooler = RegionPooler(1024, 4, 4096, config)
    fill(fusion, "spi_module.", "model.spi_module.", "region_encoder.fusion.")
    fill(pooler, "spi_module.", "model.spi_module.", "region_encoder.pooler.")
    inputs = [recipe(f"spi_module.input.level{level}", [1, 256, 1024], plain=True) for level in range(4)]
    with torch.no_grad():
        maps = fusion([tokens.transpose(1, 2).reshape(1, 1024, 16, 16) for tokens in inputs])
        features = pooler(maps, [torch.tensor(case["boxes"])], 224, 224)
    for level, feature_map in enumerate(maps):
        torch.testing.assert_close(feature_map.mean((2, 3)), recorded[f"full.fuse{level}_mean_c"], atol=2e-5, rtol=0)
    torch.testing.assert_close(features, recorded["full.region"], atol=5e-5, rtol=0)
    assert features.mean().item() == pytest.approx(case["region_mean"], abs=1e-5)
    assert features.std().item() == pytest.approx(case["region_std"], abs=1e-5)
