"""Sizes come from the nested configurations; wrong choices are refused."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import tiny_config, tiny_model, tiny_text_config, tiny_vision_config
from transformers import AutoConfig, AutoModelForImageTextToText

import gpt4roi
from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIConfig, GPT4RoIForConditionalGeneration, RegionEncoder


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_a_configuration_survives_saving(kind, tmp_path):
    config = tiny_config(kind)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, GPT4RoIConfig)
    assert again.to_diff_dict() == config.to_diff_dict()


def test_a_saved_configuration_holds_no_path(tmp_path):
    model = tiny_model()
    model.config.text_config._name_or_path = "/home/somebody/llama"
    model.save_pretrained(tmp_path)
    again = GPT4RoIForConditionalGeneration.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        text = (folder / "config.json").read_text()
        assert "/home" not in text and str(tmp_path) not in text


def test_defaults_are_the_released_model():
    config = GPT4RoIConfig()
    assert (config.image_size, config.image_seq_length, config.roi_output_size) == (224, 256, 14)
    assert (config.text_config.hidden_size, config.text_config.vocab_size) == (4096, 32006)
    assert (config.region_encoder_type, config.projector_type) == ("gpt4roi", "linear")


def test_13b_at_336_pixels_has_its_shapes_on_the_meta_device():
    vision = {**GPT4RoIConfig().vision_config.to_dict(), "image_size": 336}
    text = {"model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 2}
    with torch.device("meta"):
        model = GPT4RoIForConditionalGeneration(GPT4RoIConfig(vision_config=vision, text_config=text))
    assert model.config.image_seq_length == 576
    assert model.region_encoder.fusion.sizes == [192, 96, 48, 24]
    assert model.region_encoder.extent == 336
    assert tuple(model.region_encoder.pooler.output_linear.weight.shape) == (5120, 1024)
    assert tuple(model.mm_projector.weight.shape) == (5120, 1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_encoder_type": "heavy"}, "region_encoder_type is 'heavy', expected one of gpt4roi, light"),
        ({"projector_type": "mlp"}, "projector_type is 'mlp', expected one of linear, light"),
        ({"roi_align_backend": "cuda"}, "roi_align_backend is 'cuda', expected one of torchvision, sparse, mmcv, auto"),
        ({"image_grid_size": 2}, "image_grid_size=2 needs projector_type='light'"),
        ({"text_config": {"hidden_size": 4}}, "a nested configuration has no model_type"),
        ({"text_config": {"model_type": "nonsense"}}, "transformers knows no model_type 'nonsense'"),
        ({"vision_config": tiny_vision_config("timm_backbone")}, "has no single image_size"),
    ],
)
def test_wrong_choices_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_config("clip", **changes)


def test_more_levels_than_the_tower_has_are_refused():
    with pytest.raises(InputError, match=r"6 hidden states give 2 levels .* but num_region_levels=4"):
        tiny_model("clip", num_region_levels=4, region_level_stride=3)


def test_the_public_names_and_those_of_the_original_are_the_same_classes():
    assert gpt4roi.SPILlavaMPTForCausalLM is gpt4roi.GPT4RoIForConditionalGeneration
    assert gpt4roi.MLVLROIQueryModule is RegionEncoder


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_the_auto_class_opens_a_saved_model_with_tied_or_free_embeddings(kind, tmp_path):
    for tied in (True, False):
        model = tiny_model(kind, text_config=tiny_text_config(tie_word_embeddings=tied))
        folder = tmp_path / str(tied)
        model.save_pretrained(folder)
        again = AutoModelForImageTextToText.from_pretrained(folder)
        assert type(again) is GPT4RoIForConditionalGeneration
        assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt4roi"
        assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value), name
        assert not any(value.requires_grad for value in again.vision_tower.parameters())


def test_gradient_checkpointing_changes_no_gradient(clip_model):
    config = clip_model.config
    image = [config.image_start_token_id, *[config.image_token_id] * 16, config.image_end_token_id]
    ids = torch.tensor([[1, *image, config.region_token_id, 40, 41]])
    inputs = {
        "input_ids": ids,
        "labels": ids,
        "pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "boxes": [torch.tensor([[0.1, 0.1, 0.5, 0.9]])],
    }
    clip_model.train()
    clip_model(**inputs).loss.backward()
    plain = {name: value.grad.clone() for name, value in clip_model.named_parameters() if value.grad is not None}
    clip_model.zero_grad()
    clip_model.gradient_checkpointing_enable()
    assert clip_model.language_model.is_gradient_checkpointing
    clip_model(**inputs).loss.backward()
    for name, value in clip_model.named_parameters():
        if name in plain:
            torch.testing.assert_close(value.grad, plain[name], atol=1e-6, rtol=1e-5)
