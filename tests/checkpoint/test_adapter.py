"""Adapters of peft: trained, saved alone, put on again, merged."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_processor, tiny_text_config

from gpt4roi.checkpoint.adapter import merge_adapter, open_adapter
from gpt4roi.checkpoint.loading import load_model, load_processor, with_settings
from gpt4roi.checkpoint.lora import record_base
from gpt4roi.cli import main
from gpt4roi.errors import InputError
from gpt4roi.region_chat import RegionChat
from gpt4roi.structures import RegionSample, Turn

pytestmark = pytest.mark.heavy

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


def test_merged_is_an_ordinary_folder_with_the_adapter_s_logits(trained, tmp_path, capsys, recwarn):
    place, expected = trained
    assert main(["merge-adapter", str(place / "base"), str(place / "adapter"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'out'}: ")
    assert not [warning for warning in recwarn if warning.category is FutureWarning]
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


def cut_off(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def with_code(adapter):
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({"weight": Code()}, adapter / "adapter_model.bin")


class Code:
    def __reduce__(self):
        return print, ("code of a file was run",)


def of_another_kind(adapter):
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "HOLOGRAPHIC"}))


def with_a_list(adapter):
    (adapter / "adapter_config.json").write_text("[]")


def of_two_names(adapter):
    for name in ("one", "two"):
        shutil.copytree(adapter, adapter.parent / "both" / name)
    shutil.rmtree(adapter)
    (adapter.parent / "both").rename(adapter)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"adapter_model.safetensors is cut off or damaged"),
        (with_code, r"adapter_model.bin asks for .*print, which a file of weights does not need"),
        (of_another_kind, r"is of the kind 'HOLOGRAPHIC', which peft [\d.]+ does not know"),
        (with_a_list, r"adapter_config.json: expected an object, got a list"),
        (of_two_names, r"is not an adapter: .*; there is one in .*adapter/one, .*adapter/two"),
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


def tied_adapter(place, **changes):
    """Writes a base with a tied table, and an adapter that was trained for a few steps; returns its logits."""
    model = tiny_model(text_config=tiny_text_config(tie_word_embeddings=True))
    model.save_pretrained(place / "base")
    tiny_processor(model.config).save_pretrained(place / "base")
    adapted = peft.get_peft_model(load_model(place / "base"), peft.LoraConfig(**LORA | changes))
    generator = torch.Generator().manual_seed(3)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(place / "adapter")
    return logits(adapted)


TABLES = {
    "output layer": {"target_modules": r"language_model\..*\.(q_proj|lm_head)|language_model\.lm_head"},
    "embeddings": {"target_modules": r"language_model\..*\.(q_proj|embed_tokens)"},
    "rows": {"trainable_token_indices": {"embed_tokens": [3, 40, 261]}},
    "output layer in full": {"modules_to_save": ["region_encoder", "lm_head"]},
    "embeddings in full": {"modules_to_save": ["region_encoder", "embed_tokens"]},
}


@pytest.mark.parametrize("changes", TABLES.values(), ids=TABLES)
def test_an_adapter_on_one_of_two_tied_tables_merges_into_that_one_alone(tmp_path, changes):
    expected = tied_adapter(tmp_path, **changes)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    merged = load_model(tmp_path / "out")
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=0)
    assert merged.config.text_config.tie_word_embeddings is False
    assert float((logits(load_model(tmp_path / "base")) - expected).abs().max()) > 0.1


def test_an_adapter_that_touches_no_table_leaves_them_tied(tmp_path):
    tied_adapter(tmp_path)
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert load_model(tmp_path / "out").config.text_config.tie_word_embeddings is True


def test_a_merged_folder_that_computes_something_else_is_not_published(trained, tmp_path, capsys, monkeypatch):
    place = trained[0]
    monkeypatch.setattr("gpt4roi.checkpoint.adapter.LARGEST_DIFFERENCE", (0.0, 0.0))  # less than rounding
    assert main(["merge-adapter", str(place / "base"), str(place / "adapter"), str(tmp_path / "out")]) == 2
    assert "the merged model differs from base and adapter by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def recorded(trained, tmp_path):
    """The base and the adapter, which says on which weights it was trained."""
    for name in ("base", "adapter"):
        shutil.copytree(trained[0] / name, tmp_path / name)
    record_base(tmp_path / "adapter", tmp_path / "base")
    return tmp_path


def test_an_adapter_is_refused_on_another_model_than_it_was_trained_on(recorded, capsys):
    other = load_model(recorded / "base")
    other.language_model.model.norm.weight.data[0] += 0.5
    other.save_pretrained(recorded / "other")
    tiny_processor(other.config).save_pretrained(recorded / "other")
    assert main(["merge-adapter", *(str(recorded / name) for name in ("other", "adapter", "out"))]) == 2
    assert f"was trained on base with other weights than {recorded / 'other'} has" in capsys.readouterr().err
    assert not (recorded / "out").exists()


def test_an_adapter_takes_its_base_in_other_files_and_with_other_names(recorded):
    load_model(recorded / "base").half().save_pretrained(recorded / "half", max_shard_size="100kB")
    tiny_processor().save_pretrained(recorded / "half")
    assert len(list((recorded / "half").glob("*.safetensors"))) == 2
    merge_adapter(recorded / "half", recorded / "adapter", recorded / "out")
    assert load_model(recorded / "out").dtype == torch.float16


def test_an_adapter_takes_a_bfloat16_copy_of_its_base_and_not_of_another_model(recorded):
    model = load_model(recorded / "base").bfloat16()
    tiny_processor().save_pretrained(recorded / "copy")
    model.save_pretrained(recorded / "copy")
    merge_adapter(recorded / "copy", recorded / "adapter", recorded / "out")
    assert load_model(recorded / "out").dtype == torch.bfloat16
    model.language_model.model.norm.weight.data[0] += 0.5
    model.save_pretrained(recorded / "copy")
    with pytest.raises(InputError, match=r"was trained on base with other weights than .*/copy has"):
        merge_adapter(recorded / "copy", recorded / "adapter", recorded / "again")


def test_an_adapter_s_folder_answers_as_its_merged_model(recorded):
    merge_adapter(recorded / "base", recorded / "adapter", recorded / "merged")
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    asked = [
        RegionChat.from_pretrained(recorded / name, dtype="float32").describe(
            image, [[2, 3, 30, 35], [9, 9, 20, 20]], max_new_tokens=12
        )
        for name in ("adapter", "merged", "base")
    ]
    assert asked[0] == asked[1] != asked[2]


def test_an_adapter_finds_a_base_that_was_moved_beside_it_and_says_where_it_looked(recorded, tmp_path):
    config = recorded / "adapter/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "/gone/base"}))
    assert RegionChat.from_pretrained(recorded / "adapter").processor.prompt_format == "chat"
    shutil.rmtree(recorded / "base")
    with pytest.raises(InputError, match=rf"adapter of /gone/base, which is not in /gone/base or {recorded}/base;"):
        RegionChat.from_pretrained(recorded / "adapter")


def test_an_adapter_keeps_how_long_its_training_s_prompts_were(recorded):
    with_settings(load_processor(recorded / "base"), model_max_length=300).save_pretrained(recorded / "adapter")
    merge_adapter(recorded / "base", recorded / "adapter", recorded / "out")
    assert load_processor(recorded / "adapter").model_max_length == 300
    assert load_processor(recorded / "out").model_max_length == 300


def test_an_adapter_of_tokens_before_the_prompt_is_refused_by_its_kind(tmp_path):
    base = tiny_model()
    base.save_pretrained(tmp_path / "base")
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, token_dim=32, num_attention_heads=4, num_layers=2
    )
    peft.get_peft_model(base, settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match=r"is of the kind PREFIX_TUNING, which adds tokens to the prompt"):
        open_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")


def test_a_base_s_config_beside_an_adapter_makes_it_no_model(recorded):
    shutil.copy(recorded / "base/config.json", recorded / "adapter")
    assert RegionChat.from_pretrained(recorded / "adapter", dtype="float32").processor.prompt_format == "chat"
    with pytest.raises(InputError, match=r"holds an adapter, not a model; .*gpt4roi merge-adapter BASE"):
        load_model(recorded / "adapter")


def test_an_adapter_of_transformers_own_add_adapter_is_saved_alone_and_answers_as_the_model(tmp_path):
    model = tiny_model()
    for owner in (model, tiny_processor(model.config)):
        owner.save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    try:
        model.add_adapter(peft.LoraConfig(r=2, target_modules=LORA["target_modules"], init_lora_weights=False))
    except ValueError as error:
        pytest.skip(str(error))  # transformers wants a newer peft for it than all else does
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter/config.json").exists()
    assert not (tmp_path / "adapter/gpt4roi_auto.py").exists()
    assert "# GPT4RoI LoRA adapter" in (tmp_path / "adapter/README.md").read_text()
    again = open_adapter(load_model(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    merge_adapter(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    torch.testing.assert_close(logits(load_model(tmp_path / "out")), logits(model), atol=2e-5, rtol=0)
