"""Adapters of peft: trained, saved alone, put on again, merged."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_processor

from gpt4roi.checkpoint.adapter import open_adapter
from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn

peft = pytest.importorskip("peft")

LORA = {
    "r": 2,
    "target_modules": r"language_model\..*\.(q_proj|v_proj|up_proj)",
    "modules_to_save": ["region_encoder", "mm_projector"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base's folder, the folder of an adapter whose every tensor was moved, and the logits with it on."""
    place = tmp_path_factory.mktemp("adapter")
    model = tiny_model()
    model.save_pretrained(place / "base")
    tiny_processor(model.config).save_pretrained(place / "base")
    adapted = peft.get_peft_model(load_model(place / "base"), peft.LoraConfig(**LORA))
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(place / "adapter")
    return place, logits(adapted)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    sample = RegionSample(
        image=torch.arange(3072, dtype=torch.uint8).reshape(32, 32, 3).numpy(),
        boxes_px=[[2, 3, 20, 25], [10, 5, 31, 30]],
        turns=(Turn("user", "Which is larger, <region1> or <region2>?"),),
    )
    inputs = tiny_processor()([sample], generation=True)
    names = ("input_ids", "attention_mask", "pixel_values", "boxes")
    return model.eval()(**{name: inputs[name] for name in names}).logits


def test_an_adapter_holds_the_region_encoder_and_nothing_of_the_frozen_parts(trained):
    names = load_file(trained[0] / "adapter/adapter_model.safetensors").keys()
    assert any("region_encoder.pooler.output_linear.weight" in name for name in names)
    assert not [name for name in names if "vision_tower" in name or "embed_tokens" in name]


def test_an_adapter_put_on_again_gives_the_logits_it_was_saved_with(trained):
    place, expected = trained
    again = open_adapter(load_model(place / "base"), place / "adapter")
    assert torch.equal(logits(again), expected)
    assert float((logits(load_model(place / "base")) - expected).abs().max()) > 0.1


def test_merged_is_an_ordinary_folder_with_the_adapter_s_logits(trained, tmp_path, capsys):
    place, expected = trained
    assert main(["merge-adapter", str(place / "base"), str(place / "adapter"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'out'}: ")
    merged = load_model(tmp_path / "out")
    # The bound for logits everywhere here: a merged weight is rounded once more than weight and adapter apart.
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=0)
    assert merged.state_dict().keys() == load_model(place / "base").state_dict().keys()
    assert load_processor(tmp_path / "out").region_token_id == merged.config.region_token_id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def without_a_tensor(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    del tensors[next(name for name in tensors if "output_linear.bias" in name)]
    save_file(tensors, adapter / "adapter_model.safetensors")


def of_another_width(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_A" in name)
    tensors[name] = torch.zeros(2, 7)
    save_file(tensors, adapter / "adapter_model.safetensors")


def of_other_modules(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["nowhere"]}))


def without_config(adapter):
    (adapter / "adapter_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_a_tensor, r"does not fit the base: .*output_linear.bias"),
        (of_another_width, r"does not fit the base: .*size mismatch"),
        (of_other_modules, r"does not fit the base: "),
        (without_config, r"is not an adapter: expected adapter_config.json and"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line_and_nothing_is_written(trained, tmp_path, capsys, damage, message):
    place = trained[0]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for file in (place / "adapter").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    damage(adapter)
    assert main(["merge-adapter", str(place / "base"), str(adapter), str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gpt4roi merge-adapter: error")]
    assert re.search(message, line)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_opening_an_adapter_as_a_model_names_the_command(trained):
    with pytest.raises(InputError, match=r"holds an adapter, not a model; .*gpt4roi merge-adapter BASE"):
        load_model(trained[0] / "adapter")
