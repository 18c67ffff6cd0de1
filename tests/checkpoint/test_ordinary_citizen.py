"""A folder of ours behaves as any other of transformers: Auto classes, devices, precisions, quantization."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from accelerate import infer_auto_device_map, init_empty_weights
from tiny import tiny_config, tiny_model, tiny_processor
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import HfQuantizer

from gpt4roi.checkpoint.loading import load_model
from gpt4roi.models import GPT4RoIForConditionalGeneration
from gpt4roi.models.pretrained import UNQUANTIZED, exclude_from_quantization
from gpt4roi.structures import RegionSample, Turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("citizen") / "model"
    model = tiny_model()
    model.save_pretrained(place)
    tiny_processor(model.config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def inputs():
    return question()


def question(config=None):
    """An image of 32 x 32 pixels with a box, as the model is given it."""
    sample = RegionSample(
        image=torch.arange(3072, dtype=torch.uint8).reshape(32, 32, 3).numpy(),
        boxes_px=[[2, 3, 20, 25]],
        turns=(Turn("user", "What is <region1>?"),),
    )
    batch = tiny_processor(config)([sample], generation=True)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes")}


@torch.no_grad()
def logits(model, inputs) -> torch.Tensor:
    return model.eval()(**inputs).logits.float().cpu()


@pytest.mark.heavy
@pytest.mark.parametrize(
    "first",
    ["import gpt4roi.auto", "from gpt4roi import GPT4RoIForConditionalGeneration", "from gpt4roi import RegionChat"],
)
def test_the_auto_classes_open_the_folder_in_a_fresh_process(folder, first):
    code = (
        f"import sys, gpt4roi; assert not {{'torch', 'transformers'}} & set(sys.modules); {first}\n"
        "from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor\n"
        f"place = {str(folder)!r}\n"
        "print(*[type(auto.from_pretrained(place)).__name__ for auto in "
        "(AutoConfig, AutoModelForImageTextToText, AutoProcessor)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["GPT4RoIConfig", "GPT4RoIForConditionalGeneration", "GPT4RoIProcessor"]


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_gives_the_same_logits(folder, inputs, device_map):
    model = GPT4RoIForConditionalGeneration.from_pretrained(folder, device_map=device_map, low_cpu_mem_usage=True)
    assert torch.equal(logits(model, inputs), logits(load_model(folder), inputs))


PARTS = ["vision_tower", "mm_projector", "region_encoder", "language_model.lm_head"]
PARTS += [f"language_model.model.{name}" for name in ("embed_tokens", "layers.0", "layers.1", "norm", "rotary_emb")]


@pytest.fixture(scope="module", params=["clip", "pyramid"])
def saved(request, tmp_path_factory):
    """A folder, and the model in it with its inputs."""
    place = tmp_path_factory.mktemp("saved")
    tiny_model(request.param).save_pretrained(place)
    model = load_model(place)
    return place, model, question(model.config)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "away",
    [["language_model.model.layers.1"], ["mm_projector"], ["region_encoder"], ["vision_tower"], PARTS],
    ids=["a decoder layer", "the projector", "the region encoder", "the tower", "every part"],
)
def test_what_lies_on_the_disk_gives_the_same_logits_and_answers(saved, tmp_path, away):
    folder, whole, inputs = saved
    device_map = {name: "disk" if name in away else "cpu" for name in PARTS}
    model = load_model(folder, device_map=device_map, offload_folder=str(tmp_path))
    on_disk = {value.device.type for name, value in model.named_parameters() if name.startswith(away[0])}
    assert on_disk == {"meta"}
    assert torch.equal(logits(model, inputs), logits(whole, inputs))
    answers = [one.generate(**inputs, max_new_tokens=3, do_sample=False) for one in (model, whole)]
    assert torch.equal(*answers)
    assert len(model.get_region_features(inputs["pixel_values"], [torch.zeros(0, 4)])) == 0


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_an_automatic_device_map_never_splits_a_decoder_layer_or_the_region_encoder(kind):
    with init_empty_weights():
        model = GPT4RoIForConditionalGeneration(tiny_config(kind))
    encoder, layer = model.region_encoder, model.language_model.model.layers[0]
    assert {type(encoder).__name__, type(layer).__name__} <= set(model._no_split_modules)
    total = sum(value.numel() for value in model.parameters()) * 4
    places = infer_auto_device_map(
        model, max_memory={0: total // 2, "cpu": total}, no_split_module_classes=list(model._no_split_modules)
    )
    assert len(set(places.values())) == 2
    inside = [name for name in places if name.startswith("region_encoder.") or ".layers.0." in name]
    assert not [name for name in inside if not name.startswith("vision_tower")]


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_both_names_of_the_dtype_are_understood(folder, name, dtype):
    assert {value.dtype for value in load_model(folder, **{name: dtype}).parameters()} == {dtype}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantization_leaves_tower_projector_and_region_encoder_out(bits):
    with init_empty_weights():
        model = GPT4RoIForConditionalGeneration(tiny_config())
    config = exclude_from_quantization(BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    skipped = HfQuantizer.get_modules_to_not_convert(model, config.llm_int8_skip_modules, model._keep_in_fp32_modules)
    assert set(skipped) == {"lm_head", *UNQUANTIZED}


def test_modules_that_the_caller_leaves_out_stay_left_out_and_his_configuration_is_not_touched():
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["up_proj"])
    assert exclude_from_quantization(config).llm_int8_skip_modules == ["up_proj", *UNQUANTIZED]
    assert config.llm_int8_skip_modules == ["up_proj"]
    assert exclude_from_quantization({"load_in_8bit": True})["llm_int8_skip_modules"] == ["lm_head", *UNQUANTIZED]


def check_quantized(folder, inputs, tmp_path, bits: int, device: str) -> None:
    config = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = load_model(folder, quantization_config=config, device_map=device, dtype=torch.float32)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    wanted = {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    assert kinds["language_model.model.layers.0.mlp.up_proj"] == wanted
    assert not [name for name, kind in kinds.items() if kind == wanted and not name.startswith("language_model.model.")]
    assert model.region_encoder.pooler.output_linear.weight.dtype == model.mm_projector.weight.dtype == torch.float32
    if (bits, device) == (4, "cpu"):
        return  # the kernel for CPUs needs wider layers than a tiny model has
    moved = {name: value if name == "boxes" else value.to(device) for name, value in inputs.items()}
    whole, quantized = logits(load_model(folder), inputs), logits(model, moved)
    assert 0 < float((quantized - whole).norm() / whole.norm()) < 0.5
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, device_map=device)
    assert type(again.language_model.model.layers[0].mlp.up_proj).__name__ == wanted
    torch.testing.assert_close(logits(again, moved), quantized, atol=1e-4, rtol=0)


@pytest.mark.heavy
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_model_keeps_our_modules_and_opens_again(folder, inputs, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
    check_quantized(folder, inputs, tmp_path, bits, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_model_answers_on_a_gpu(folder, inputs, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="needs the extra bitsandbytes")
    check_quantized(folder, inputs, tmp_path, bits, "cuda")
