"""Folders whose weights are stored quantized: they answer, or one line says why not, before anything begins."""

from __future__ import annotations

import importlib.util
import json

import pytest
from forms import BITSANDBYTES, mark_as_quantized, save_base, save_chat_model
from tiny import tiny_text_config

from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.io import model_folders
from gpt4roi.io.model_folders import identify
from gpt4roi.region_chat import RegionChat
from gpt4roi.train import main as train

HERE = importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture
def quantized(tmp_path):
    """A folder whose config.json says that bitsandbytes packed its weights."""
    return mark_as_quantized(save_chat_model(tmp_path / "quantized"), BITSANDBYTES)


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (BITSANDBYTES, "bitsandbytes, 4 bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bit"),
        ({"quant_method": "gptq", "bits": 3}, "gptq, 3 bit"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"group_size": 64, "bits": 4}, "quantized, 4 bit"),
    ],
)
def test_how_the_weights_are_stored_is_told_from_config_json(tmp_path, stored, told):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt4roi", "quantization_config": stored}))
    assert identify(tmp_path).quantization == told
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt4roi", "quantization": stored}))
    assert identify(tmp_path).quantization == told  # as MLX names it
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt4roi", "text_config": {}}))
    assert identify(tmp_path).quantization is None
    (tmp_path / "quantize_config.json").write_text(json.dumps(stored))  # as AutoGPTQ did
    assert identify(tmp_path).quantization == told


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "{quantized}", "{out}", "--to", "original"],
        ["make-delta", "--base", "{base}", "--target", "{quantized}", "--delta", "{out}"],
        ["apply-delta", "--base", "{quantized}", "--delta", "{quantized}", "--target", "{out}"],
        ["merge-adapter", "{quantized}", "{adapter}", "{out}"],
        ["train", "--stage", "2", "--model_name_or_path", "{quantized}", "--output_dir", "{out}"],
        ["train", "--stage", "2", "--model_name_or_path", "{quantized}", "--output_dir", "{out}", "--lora_r", "2"],
        ["train", "--stage", "2", "--model_name_or_path", "{quantized}", "--estimate"],
        ["train", "--stage", "1", "--model_name_or_path", "{decoder}", "--output_dir", "{out}"],
    ],
    ids=lambda words: " ".join(words[:3]) + " …" * (len(words) > 7) + words[-1],
)
def test_what_needs_numbers_refuses_packed_weights_before_it_begins(quantized, tmp_path, capsys, words):
    names = {name: tmp_path / name for name in ("quantized", "out", "base", "decoder", "adapter")}
    save_base(names["base"])
    mark_as_quantized(save_base(names["decoder"]), BITSANDBYTES)
    names["adapter"].mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (names["adapter"] / name).write_text("{}")
    assert main([word.format(**names) for word in words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if ": error: " in line]
    assert "stores quantized weights (bitsandbytes, 4 bit), which cannot be " in line
    assert "take the unquantized weights" in line
    assert not list(tmp_path.glob("out*"))


def test_without_its_library_a_quantized_folder_is_refused_with_how_to_install_it(quantized, capsys, monkeypatch):
    monkeypatch.setattr(model_folders, "find_spec", lambda name: None)
    assert main(["describe", "image.png", "--box", "1,2,3,4", "--model", str(quantized)]) == 2
    assert "needs the package bitsandbytes; pip install 'gpt4roi[bitsandbytes]'" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"needs the package bitsandbytes"):
        RegionChat.from_pretrained(quantized)


def test_a_kind_of_quantization_that_cannot_be_opened_here_is_one_line(tmp_path):
    folder = mark_as_quantized(save_chat_model(tmp_path / "model"), {"quant_method": "gptq", "bits": 4})
    with pytest.raises(InputError, match=r"stores quantized weights \(gptq, 4 bit\), which cannot be opened here: "):
        RegionChat.from_pretrained(folder)


@pytest.mark.heavy
@pytest.mark.skipif(not HERE, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_saved_quantized_answers_as_one_that_is_quantized_when_opened(tmp_path, bits):
    import numpy as np
    import torch
    from transformers import BitsAndBytesConfig

    from gpt4roi.checkpoint.loading import load_model, load_processor

    text = tiny_text_config(hidden_size=64, intermediate_size=128, head_dim=16)
    folder = save_chat_model(tmp_path / "model", text_config=text)
    if bits == 4:
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    load_model(folder, quantization_config=config).save_pretrained(tmp_path / "stored")
    load_processor(folder).save_pretrained(tmp_path / "stored")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    asked = [
        RegionChat.from_pretrained(path, dtype="float32", quantize=quantize).describe(
            image, [[2, 3, 30, 35], [9, 9, 20, 20]], max_new_tokens=8
        )
        for path, quantize in ((tmp_path / "stored", None), (folder, f"{bits}bit"))
    ]
    assert asked[0] == asked[1]
    with pytest.raises(InputError, match=r"stores quantized weights .*; leave the quantization \(4bit\) out"):
        RegionChat.from_pretrained(tmp_path / "stored", quantize="4bit")


def test_a_training_from_a_quantized_folder_is_refused_in_python_too(quantized, tmp_path):
    with pytest.raises(InputError, match=r"which cannot be trained"):
        train(["--stage", "2", "--model_name_or_path", str(quantized), "--output_dir", str(tmp_path / "out")])
