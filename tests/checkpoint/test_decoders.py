"""Which decoders a training can start from, and what it takes over from them."""

from __future__ import annotations

import json

import pytest
from forms import save_base
from tiny import tiny_model, tiny_processor, tiny_vision_config
from transformers import AutoConfig

from gpt4roi.checkpoint.build import decoder_config
from gpt4roi.checkpoint.loading import add_stop_tokens, load_tokenizer, vision_config
from gpt4roi.errors import InputError
from gpt4roi.models.pretrained import load_tower


def test_generate_stops_where_the_training_teaches_answers_to_end():
    model, processor = tiny_model(), tiny_processor()
    model.generation_config.eos_token_id = 7
    add_stop_tokens(model, processor)
    assert model.generation_config.eos_token_id == [7, *processor.stop_token_ids] == [7, 2]
    model.generation_config.eos_token_id = 2
    add_stop_tokens(model, processor)
    assert model.generation_config.eos_token_id == 2


def test_a_decoder_without_attention_is_refused_in_one_line(tmp_path):
    AutoConfig.for_model("mamba", hidden_size=8, num_hidden_layers=1, vocab_size=20).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"mamba keeps a running state in place of attention to every token"):
        decoder_config(tmp_path)


@pytest.mark.parametrize("kind", ["lfm2", "minimax"])
def test_a_decoder_with_a_state_in_some_layers_is_refused_in_one_line(tmp_path, kind):
    types = ["conv" if kind == "lfm2" else "linear_attention", "full_attention"]
    AutoConfig.for_model(kind, num_hidden_layers=2, layer_types=types).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"{kind} keeps a running state in place of attention to every token"):
        decoder_config(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_an_encoder_that_reads_what_it_should_answer_is_refused_unless_it_is_made_a_decoder(tmp_path, kind):
    config = AutoConfig.for_model(kind, hidden_size=8, num_hidden_layers=1, vocab_size=20)
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"{kind} reads in both directions, .*; choose a decoder"):
        decoder_config(tmp_path)
    config.is_decoder = True
    config.save_pretrained(tmp_path)
    assert decoder_config(tmp_path).model_type == kind


def test_what_is_no_decoder_is_refused_by_its_kind(tmp_path):
    tiny_vision_config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"clip_vision_model is no decoder language model of transformers"):
        decoder_config(tmp_path)


def test_python_code_in_a_folder_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked {question}"))
    code = f"from pathlib import Path\nPath({str(tmp_path / 'seen')!r}).touch()\n"
    (tmp_path / "configuration_x.py").write_text(code + "from transformers import PretrainedConfig as X\n")
    values = {"model_type": "x", "auto_map": {"AutoConfig": "configuration_x.X", "AutoTokenizer": ["t.T", None]}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", **values}))
    for look in (decoder_config, load_tokenizer, vision_config, load_tower):
        with pytest.raises(InputError, match=r"asks for Python code of the folder, which is never run"):
            look(tmp_path)
    assert not (tmp_path / "seen").exists()


@pytest.mark.parametrize(("kind", "layer"), [("clip", "CLIPEncoderLayer"), ("pyramid", "TimmBackbone")])
def test_no_layer_of_a_tower_is_split_over_devices(kind, layer):
    assert layer in tiny_model(kind)._no_split_modules


def test_a_decoder_that_can_be_used_is_read_without_its_weights(tmp_path):
    save_base(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert decoder_config(tmp_path).model_type == "llama"
