"""The original's region encoder: exchange of channels, initialisation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from transformers import CLIPVisionConfig

from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration, original_format
from gpt4roi.models.kernels import fast_paths
from gpt4roi.models.kernels.interpolation import LazyUpsampled
from gpt4roi.models.region_encoder import _shuffle_across_levels

FACTS = json.loads((Path(__file__).parents[1] / "golden" / "model" / "narrow_facts.json").read_text())


def test_a_level_borrows_a_quarter_from_each_neighbour_and_from_itself_at_the_ends():
    maps = [
        torch.full((1, 8, 4 >> level, 4 >> level), 10.0 * level) + torch.arange(8.0).view(8, 1, 1) for level in range(3)
    ]
    lazy = [LazyUpsampled(values) for values in maps]
    parts = [[part.computed() for part in fast_paths._shuffle_across_levels(lazy, level)] for level in range(3)]
    mixed = [torch.cat(own, dim=1)[0, :, 0, 0].tolist() for own in parts]
    plain = [_shuffle_across_levels(maps, level)[0, :, 0, 0].tolist() for level in range(3)]
    assert (
        mixed
        == plain
        == [
            [0, 1, 2, 3, 16, 17, 4, 5],
            [10, 11, 12, 13, 26, 27, 4, 5],
            [20, 21, 22, 23, 26, 27, 14, 15],
        ]
    )


def test_coordinates_are_appended_x_first():
    marked = fast_paths.with_coordinates(torch.zeros(2, 1, 2, 3))
    assert marked[1, 1].tolist() == [[-1, 0, 1], [-1, 0, 1]]
    assert marked[1, 2].tolist() == [[-1, -1, -1], [1, 1, 1]]


def test_images_without_boxes_do_not_change_the_others(clip_model):
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
    with torch.no_grad():
        together = clip_model.get_region_features(pixels, [torch.zeros(0, 4), box, torch.zeros(0, 4)])
        alone = clip_model.get_region_features(pixels[1:2], [box])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def fresh():
    """A model of the recorded sizes with fresh weights."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=13, num_attention_heads=4, patch_size=14
    )
    text = {
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 606,
    }
    return GPT4RoIForConditionalGeneration(GPT4RoIConfig(vision_config=vision, text_config=text))


def test_fresh_weights_are_spread_as_the_original_s(fresh):
    ours = {original_format.to_original(name): value.detach() for name, value in fresh.named_parameters()}
    assert len(FACTS["init_stats"]) == 45
    for name, (shape, mean, std) in FACTS["init_stats"].items():
        value = ours[name]
        assert [list(value.shape)] == [shape] or list(value.shape) == shape[0], name
        if std == 0:
            assert value.std() == 0 and value.mean().item() == mean, name
            continue
        count = value.numel()
        # Both are samples of one distribution: five standard errors, with room for small tensors.
        assert value.std().item() == pytest.approx(std, rel=5 / count**0.5 + 0.01), name
        assert abs(value.mean().item() - mean) < 8 * std / count**0.5, name


def test_fresh_weights_survive_parts_that_are_given(fresh):
    language_model = fresh.language_model
    before = {name: value.clone() for name, value in language_model.state_dict().items()}
    tower = {name: value.clone() for name, value in fresh.vision_tower.backbone.state_dict().items()}
    GPT4RoIForConditionalGeneration(fresh.config, fresh.vision_tower.backbone, language_model)
    assert all(torch.equal(value, before[name]) for name, value in language_model.state_dict().items())
    assert all(torch.equal(value, tower[name]) for name, value in fresh.vision_tower.backbone.state_dict().items())


def test_the_released_model_s_names_and_shapes_map_both_ways():
    listed = json.loads((Path(__file__).parents[1] / "golden" / "model" / "gpt4roi_7b_state_dict.json").read_text())
    with torch.device("meta"):
        model = GPT4RoIForConditionalGeneration(GPT4RoIConfig())
    ours = {
        name: list(value.shape) for name, value in model.state_dict().items() if not name.startswith("vision_tower.")
    }
    released = {name: shape for name, shape in listed["entries"].items() if not name.endswith("inv_freq")}
    assert {original_format.to_ours(name): shape for name, shape in released.items()} == ours
    assert {original_format.to_original(name): shape for name, shape in ours.items()} == released
    assert all(original_format.to_ours(name) is None for name in listed["entries"].keys() - released.keys())
    learnt = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("vision_tower."))
    assert learnt == listed["n_parameters"]
    assert sum(value.numel() for value in model.region_encoder.parameters()) == listed["n_spi_parameters"]


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_under_uniform_forward_a_batch_without_boxes_calls_what_others_call(kind):
    model = tiny_model(kind)
    encoder, called = model.region_encoder, []
    model.set_uniform_forward(True)
    for name, module in encoder.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    pixels = torch.randn(1, 3, model.config.image_size, model.config.image_size)
    model.get_region_features(pixels, [torch.tensor([[0.1, 0.1, 0.6, 0.8]] * 3)])
    others, called[:] = called[:], []
    rows = model.get_region_features(pixels, [torch.zeros(0, 4)])
    assert called == others and len(called) > 5
    assert rows.shape == (0, model.config.text_config.hidden_size)
    rows.sum().backward()
    assert all(not parameter.grad.any() for parameter in encoder.parameters())


def test_every_convolution_is_called_under_uniform_forward_however_many_boxes_there_are(monkeypatch):
    pooler, called = tiny_model("clip").region_encoder.pooler, []
    monkeypatch.setattr(fast_paths, "is_cheaper_mixed_first", lambda *_: True)
    for conv in pooler.pool_convs:
        conv.register_forward_hook(lambda module, *_: called.append(module))
    channels, sides = pooler.pool_convs[0].in_channels, [16 >> level for level in range(len(pooler.pool_convs))]
    maps = [torch.randn(1, channels, side, side) for side in sides]
    boxes = [torch.tensor([[0.1, 0.1, 0.6, 0.8]] * 3)]
    with torch.no_grad():
        mixed_first = pooler(maps, boxes, 32, 32)
        assert called == []
        pooled_first = pooler(maps, boxes, 32, 32, uniform_forward=True)
    assert called == list(pooler.pool_convs)
    torch.testing.assert_close(pooled_first, mixed_first, atol=1e-5, rtol=1e-5)
