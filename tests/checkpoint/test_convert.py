"""Converting changes names and nothing else: bytes, types and the answers stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from forms import save_chat_model
from safetensors.torch import load_file, save_file
from small_weights import CONFIG, add_files, assert_equal, fine_tuned, llama, load, save
from tiny import tiny_model, tiny_processor

from gpt4roi.checkpoint.compare import compare_models
from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.loading import load_processor
from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIForConditionalGeneration
from gpt4roi.models.original_format import to_ours
from gpt4roi.processing.processor import GPT4RoIProcessor

RECORDED = Path(__file__).parents[1] / "golden/original_format_folder"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_originals_folder_goes_to_ours_and_back_bit_for_bit(tmp_path, kind, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in fine_tuned(llama()).items()}
    add_files(save(tmp_path / "first", weights, kind, shards=2))
    plan_convert(tmp_path / "first", tmp_path / "ours", "hf", max_shard_size="9kB").write()
    assert_equal(load(tmp_path / "ours"), {to_ours(name): tensor for name, tensor in weights.items()})
    plan_convert(tmp_path / "ours", tmp_path / "back", "original").write()
    assert_equal(load(tmp_path / "back"), weights)
    for folder in ("ours", "back"):
        assert (tmp_path / folder / "tokenizer.model").read_bytes() == b"carried along"
    config = json.loads((tmp_path / "back/config.json").read_text())
    type_name = str(dtype).removeprefix("torch.")
    kept = CONFIG | {"vocab_size": 26, "mm_vision_tower": "tower", "torch_dtype": type_name}
    assert {name: config.get(name) for name in kept} == kept


def test_rotary_buffers_have_no_place_in_our_format(tmp_path):
    weights = fine_tuned(llama()) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    add_files(save(tmp_path / "first", weights))
    plan_convert(tmp_path / "first", tmp_path / "ours", "hf").write()
    assert len(load(tmp_path / "ours")) == len(weights) - 1


@pytest.fixture
def ours(tmp_path) -> Path:
    """A folder of ours as save_pretrained writes it, tower inside; the tower's numbers are halves, as always."""
    GPT4RoIForConditionalGeneration.from_pretrained(RECORDED).save_pretrained(tmp_path / "ours")
    GPT4RoIProcessor.from_pretrained(RECORDED).save_pretrained(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.heavy
def test_our_folder_goes_to_the_originals_with_its_tower_beside_and_back_bit_for_bit(tmp_path, ours):
    plan_convert(ours, tmp_path / "original", "original").write()
    (tower,) = [path for path in (tmp_path / "original").iterdir() if path.is_dir()]
    assert {path.name for path in tower.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json"}
    plan_convert(tmp_path / "original", tmp_path / "back", "hf").write()
    assert_equal(load(tmp_path / "back"), load(ours))


@pytest.mark.heavy
def test_check_prints_how_far_the_answers_are_apart(tmp_path, ours, capsys):
    assert main(["convert", str(ours), str(tmp_path / "original"), "--to", "original", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "largest relative difference of the logits: 0",
        "largest relative difference of the region features: 0",
    ]


@pytest.mark.heavy
def test_check_tells_a_folder_whose_numbers_changed(tmp_path, ours):
    plan_convert(ours, tmp_path / "original", "original").write()
    file = tmp_path / "original/model.safetensors"
    weights = load_file(file)
    weights["model.spi_module.roi_align.updims.weight"] *= 1.5
    save_file(weights, file, {"format": "pt"})
    assert compare_models(ours, tmp_path / "original")["region features"] > 0.1


@pytest.mark.heavy
def test_the_converted_config_opens_with_the_sizes_of_the_source(tmp_path, ours):
    plan_convert(ours, tmp_path / "original", "original").write()
    plan_convert(tmp_path / "original", tmp_path / "back", "hf").write()
    first, second = (GPT4RoIForConditionalGeneration.from_pretrained(path).config for path in (ours, tmp_path / "back"))
    for name in ("image_size", "image_seq_length", "image_token_id", "region_token_id", "num_region_levels"):
        assert getattr(first, name) == getattr(second, name), name
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "rms_norm_eps"):
        assert getattr(first.text_config, name) == getattr(second.text_config, name), name
    assert not [text for text in (tmp_path / "back").glob("*.json") if str(tmp_path) in text.read_text()]


def test_a_model_that_the_original_has_no_form_for_is_refused_with_its_parts(tmp_path):
    model = tiny_model("pyramid")
    model.save_pretrained(tmp_path / "light")
    tiny_processor(model.config).save_pretrained(tmp_path / "light")
    with pytest.raises(InputError, match=r"region_encoder_type is 'light' and not 'gpt4roi', projector_type is"):
        plan_convert(tmp_path / "light", tmp_path / "original", "original")
    assert not (tmp_path / "original").exists()


def test_a_folder_that_is_in_the_wanted_format_already_is_refused(tmp_path, ours):
    with pytest.raises(InputError, match=r"is in the format 'hf' already"):
        plan_convert(ours, tmp_path / "again", "hf")


@pytest.fixture
def chat(tmp_path) -> Path:
    """A folder of ours that was trained with a chat template, a system prompt and 512 tokens."""
    return save_chat_model(tmp_path / "chat")


@pytest.mark.heavy
def test_a_folder_in_the_originals_format_keeps_how_it_was_prompted(tmp_path, chat, capsys):
    assert main(["convert", str(chat), str(tmp_path / "o"), "--to", "original", "--check"]) == 0
    assert "the same question has the same token ids, stops and answer in both" in capsys.readouterr().err
    first, second = load_processor(chat), load_processor(tmp_path / "o")
    assert (second.prompt_format, second.system_prompt, second.model_max_length) == ("chat", "Be brief.", 512)
    assert second.to_dict() == first.to_dict() and second.stop_token_ids == first.stop_token_ids


@pytest.mark.heavy
def test_check_refuses_a_folder_that_asks_the_same_question_otherwise(tmp_path, chat, capsys):
    plan_convert(chat, tmp_path / "o", "original").write()
    (tmp_path / "o/processor_config.json").unlink()
    with pytest.raises(InputError, match=r"encode a question to other token ids: \[.*\] from place 0"):
        compare_models(chat, tmp_path / "o")


@pytest.mark.heavy
def test_check_refuses_a_folder_that_ends_its_answers_otherwise(tmp_path, chat):
    plan_convert(chat, tmp_path / "o", "original").write()
    (tmp_path / "o/generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(InputError, match=r"end an answer otherwise: .*\[2\]\] and .*\[7\]\]"):
        compare_models(chat, tmp_path / "o")


def test_a_processor_of_something_else_beside_original_weights_is_not_ours(tmp_path, chat):
    plan_convert(chat, tmp_path / "o", "original").write()
    (tmp_path / "o/processor_config.json").write_text('{"processor_class": "LlavaProcessor", "prompt_format": "chat"}')
    assert load_processor(tmp_path / "o").prompt_format == "v0"


def test_a_tower_named_for_the_originals_format_is_refused_and_not_passed_over(tmp_path, chat):
    with pytest.raises(InputError, match=r"--vision-tower clip is for the format hf, .*: leave the flag out"):
        plan_convert(chat, tmp_path / "o", "original", vision_tower="clip")
