"""Folders in the original's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.errors import InputError
from gpt4roi.models import GPT4RoIForConditionalGeneration, original_format
from gpt4roi.models.pretrained import load_tower

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = ("input_ids", "attention_mask", "pixel_values", "labels")


@pytest.fixture
def folder(tmp_path):
    """A copy of the original-format folder that a test may damage."""
    return Path(shutil.copytree(GOLDEN / "original_format_folder", tmp_path / "model"))


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "model" / "narrow_io.safetensors")


def assert_recorded_logits(model, recorded, tolerance: float = 2e-5) -> None:
    tokens = recorded["attention_mask"][1:2].bool()
    with torch.no_grad():
        logits = model(recorded["input_ids"][1:2], tokens, recorded["pixel_values"][1:2], [recorded["boxes_1"]]).logits
    torch.testing.assert_close(logits[tokens], recorded["logits"][1:2][tokens], atol=tolerance, rtol=0)


def write_weights(folder: Path, form: str) -> None:
    """Rewrites the one .bin of a folder in another form."""
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    path.unlink()
    if form == "safetensors":
        save_file(tensors, folder / "model.safetensors")
        return
    if form == "old-format bin":
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
        return
    names = sorted(tensors)
    shards = {f"shard-{number}": names[number::3] for number in range(3)}
    ending = "bin" if form == "sharded bin" else "safetensors"
    for shard, members in shards.items():
        part = {name: tensors[name] for name in members}
        if ending == "bin":
            torch.save(part, folder / f"{shard}.bin")
        else:
            save_file(part, folder / f"{shard}.safetensors")
    index = {"weight_map": {name: f"{shard}.{ending}" for shard, members in shards.items() for name in members}}
    name = "pytorch_model.bin" if ending == "bin" else "model.safetensors"
    (folder / f"{name}.index.json").write_text(json.dumps(index))


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["safetensors", "old-format bin", "sharded bin", "sharded safetensors"])
def test_every_form_of_weight_files_gives_the_recorded_logits(folder, recorded, form):
    write_weights(folder, form)
    assert_recorded_logits(GPT4RoIForConditionalGeneration.from_pretrained(folder), recorded)


@pytest.mark.heavy
def test_a_model_saved_in_our_format_gives_the_recorded_logits_without_the_tower_beside_it(folder, recorded, tmp_path):
    ours = tmp_path / "ours"
    load_model(folder).save_pretrained(ours)
    shutil.rmtree(folder)
    assert_recorded_logits(load_model(ours), recorded)
    assert json.loads((ours / "config.json").read_text())["mm_vision_tower"] == "clip"


@pytest.mark.heavy
def test_half_precision_folders_open_in_half_precision_or_as_asked(folder):
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, folder / "pytorch_model.bin")
    assert load_model(folder).dtype == torch.float16
    model = load_model(folder, dtype=torch.float32)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    expected = tensors["lm_head.weight"].half().float()
    assert torch.equal(model.get_output_embeddings().weight, expected)


@pytest.mark.heavy
def test_the_tower_is_found_in_the_working_directory(folder, recorded, tmp_path, monkeypatch):
    shutil.move(folder / "clip", tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    assert_recorded_logits(load_model(folder), recorded)


@pytest.mark.heavy
def test_the_tower_may_be_named(folder, recorded, tmp_path):
    shutil.move(folder / "clip", tmp_path / "elsewhere")
    assert_recorded_logits(load_model(folder, vision_tower=tmp_path / "elsewhere"), recorded)
    assert load_processor(folder, vision_tower=tmp_path / "elsewhere").image_size == 224


def test_a_missing_tower_is_an_error_that_says_how_to_name_it(folder):
    shutil.rmtree(folder / "clip")
    with pytest.raises(InputError, match=r"vision tower 'clip' not found: looked for .*model/clip.* as vision_tower"):
        load_model(folder)


def test_missing_unexpected_and_misshaped_tensors_are_listed(folder):
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(2, 2)
    tensors["model.norm.weight"] = torch.zeros(64)
    torch.save(tensors, path)
    with pytest.raises(InputError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "1 missing: language_model.model.layers.1.mlp.up_proj.weight" in message
    assert "1 unexpected: language_model.model.layers.9.mlp.up_proj.weight" in message
    assert "1 of another shape: language_model.model.norm.weight is [64], expected [128]" in message


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "pytorch_model.bin").unlink(), "has no weights: expected one of model.safetensors"),
        (
            lambda folder: (folder / "pytorch_model.bin").write_bytes(b"nothing"),
            "not a file of tensors, or one with code in it",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda folder: (folder / "added_tokens.json").write_text('{"[PAD]": 600}'), "no id for <im_patch>, <bbox>"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'),
            "model_type is 'llama', expected",
        ),
        (lambda folder: (folder / "clip/pytorch_model.bin").unlink(), "vision tower .*clip: cannot be opened"),
    ],
    ids=[
        "no weights",
        "damaged weights",
        "no config",
        "damaged config",
        "no region token",
        "language model",
        "no tower",
    ],
)
def test_damaged_folders_are_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(folder):
    write_weights(folder, "sharded bin")
    (folder / "shard-1.bin").unlink()
    with pytest.raises(InputError, match=r"lacks 1 of its 3 shards \(shard-1.bin\)"):
        load_model(folder)


def test_code_in_a_weight_file_is_not_run(folder, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    torch.save({"model.embed_tokens.weight": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError):
        load_model(folder)
    assert not (tmp_path / "touched").exists()


def test_a_plain_llava_folder_is_refused_with_the_missing_region_tensors(folder):
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save({name: tensor for name, tensor in tensors.items() if "spi_module" not in name}, path)
    with pytest.raises(InputError, match=r"model\.spi_module\.roi_align.* no such tensor in the original-format"):
        load_model(folder)


@pytest.mark.heavy
def test_without_added_tokens_the_last_rows_are_taken_in_the_original_s_order(folder):
    (folder / "added_tokens.json").unlink()
    config = load_model(folder).config
    assert (config.image_token_id, config.region_token_id) == (601, 602)
    assert (config.image_start_token_id, config.image_end_token_id) == (604, 605)


@pytest.mark.heavy
def test_the_tower_is_rounded_to_half_precision_once(folder):
    path = folder / "clip" / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    tensors[name] = tensors[name] * (1 + 1e-4)
    torch.save(tensors, path)
    plain, rounded = load_tower(str(folder / "clip")), load_tower(str(folder / "clip"), round_to_half=True)
    assert torch.equal(plain.encoder.layers[0].mlp.fc1.weight, tensors[name])
    assert torch.equal(rounded.encoder.layers[0].mlp.fc1.weight, tensors[name].half().float())
    assert torch.equal(
        load_model(folder).vision_tower.backbone.encoder.layers[0].mlp.fc1.weight, tensors[name].half().float()
    )


def test_the_generation_settings_of_the_folder_are_kept(folder):
    config = load_model(folder).generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)


def test_an_original_folder_gives_its_processor(folder):
    processor = load_processor(folder)
    assert (processor.image_size, processor.image_seq_length, processor.prompt_format) == (224, 256, "v0")
    assert (processor.region_token_id, processor.image_patch_token_id, processor.tokenizer.pad_token_id) == (
        602,
        601,
        600,
    )
    assert processor.model_max_length == 2048


def test_names_translate_both_ways_and_unknown_ones_stay():
    pairs = {
        "model.spi_module.mlvl_fuse.fuse_convs.3.gn.weight": "region_encoder.fusion.fuse_convs.3.norm.weight",
        "model.spi_module.mlvl_fuse.input_conv.0.bias": "region_encoder.fusion.input_convs.0.bias",
        "model.spi_module.roi_align.pos_embedd.3.bias": "region_encoder.pooler.position_embedding.3.bias",
        "model.mm_projector.weight": "mm_projector.weight",
        "model.layers.0.self_attn.q_proj.weight": "language_model.model.layers.0.self_attn.q_proj.weight",
        "lm_head.weight": "language_model.lm_head.weight",
        "something.else": "something.else",
    }
    for original, ours in pairs.items():
        assert original_format.to_ours(original) == ours
        assert original_format.to_original(ours) == original
    assert original_format.to_ours("model.layers.0.self_attn.rotary_emb.inv_freq") is None
