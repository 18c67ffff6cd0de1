"""Where a model computes: precisions, quantization, compilation."""

from __future__ import annotations

import logging

import pytest
import torch
from test_region_chat import BOXES, chat_with, make_image
from tiny import tiny_model, tiny_processor, tiny_text_config
from torch.utils._python_dispatch import TorchDispatchMode

from gpt4roi import InputError, RegionChat
from gpt4roi.checkpoint.loading import open_model
from gpt4roi.devices import choose_dtype, compile_model, move_for_inference


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model as wide as quantization needs."""
    path = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4, "head_dim": 16}
    model = tiny_model("pyramid", text_config=tiny_text_config(**sizes))
    model.save_pretrained(path)
    tiny_processor(model.config).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "bf16", "float16"])
def test_every_precision_answers_and_is_said(folder, dtype, caplog):
    with caplog.at_level(logging.INFO, "gpt4roi"):
        chat = RegionChat.from_pretrained(folder, "cpu", dtype)

    wanted = choose_dtype(torch.device("cpu"), dtype)
    assert chat.model.language_model.dtype == wanted
    assert chat.model.region_encoder.hidden.weight.dtype == torch.float32  # on the CPU
    assert caplog.messages[-1] == f"computing on cpu in {str(wanted).removeprefix('torch.')}"
    assert len(chat.describe(make_image(), BOXES[:2], max_new_tokens=3)) == 2


def test_the_default_is_what_the_machine_can_do():
    assert choose_dtype(torch.device("mps")) == torch.float32
    assert choose_dtype(torch.device("cpu")) in (torch.float32, torch.bfloat16)


@pytest.mark.heavy
@pytest.mark.parametrize(("bits", "kind", "most"), [("8bit", torch.int8, 0.1), ("4bit", torch.uint8, 0.6)])
def test_the_language_model_alone_is_quantized(folder, bits, kind, most, caplog):
    pytest.importorskip("bitsandbytes")
    whole = RegionChat.from_pretrained(folder, "cpu", "float32")

    with caplog.at_level(logging.INFO, "gpt4roi"):
        chat = RegionChat.from_pretrained(folder, "cpu", "float32", quantize=bits)

    assert chat.model.language_model.model.layers[0].mlp.up_proj.weight.dtype == kind
    for part in (chat.model.region_encoder, chat.model.mm_projector, chat.model.vision_tower):
        assert all(weight.dtype == torch.float32 for weight in part.parameters())
    assert caplog.messages[-1] == f"computing on cpu in float32, the language model in {bits}"
    ids = torch.arange(5, 40)[None]
    exact, near = (one.model(input_ids=ids).logits for one in (whole, chat))
    assert 0 < (near - exact).norm() / exact.norm() < most
    caplog.clear()
    assert len(chat.describe(make_image(), BOXES[:2], max_new_tokens=3)) == 2
    assert caplog.messages == [], "nothing is said at every token"


def test_quantization_that_is_not_possible_is_told(folder, monkeypatch):
    with pytest.raises(InputError, match="quantize must be one of 4bit, 8bit, got '2bit'"):
        open_model(folder, "cpu", quantize="2bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="4bit needs the package bitsandbytes; pip install"):
        open_model(folder, "cpu", quantize="4bit")


def test_compilation_without_a_compiler_is_told(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(InputError, match="needs a C\\+\\+ compiler"):
        compile_model(tiny_model("pyramid"))


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_answers():
    chat, compiled = chat_with("pyramid"), chat_with("pyramid")
    compile_model(compiled.model)

    for boxes in (BOXES, BOXES[:2]):
        answers = compiled.describe(make_image(), boxes, max_new_tokens=8)
        assert answers == chat.describe(make_image(), boxes, max_new_tokens=8)


def test_a_language_model_in_16_bits_is_never_copied_to_float32():
    float32 = set()

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                float32.add(tuple(result.shape))
            return result

    model = tiny_model("pyramid").half()
    with Copies():
        move_for_inference(model, torch.device("cpu"), torch.bfloat16)

    assert model.language_model.dtype == torch.bfloat16
    assert tuple(model.region_encoder.hidden.weight.shape) in float32
    assert tuple(model.language_model.get_input_embeddings().weight.shape) not in float32
