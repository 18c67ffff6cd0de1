"""Models built from parts, and our own folders."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_processor, tiny_text_config, tiny_tokenizer, tiny_vision_config
from transformers import AutoModel, AutoModelForCausalLM, CLIPConfig, CLIPModel

from gpt4roi.checkpoint.build import build_from_parts
from gpt4roi.checkpoint.loading import load_model, load_processor, load_tokenizer
from gpt4roi.data_check.lengths import open_length_estimator
from gpt4roi.errors import InputError

BASE_TOKENS = 259
"""Bytes and the three special tokens of the tiny tokenizer."""
SMALL = {
    "num_region_levels": 2,
    "region_level_stride": 1,
    "num_fusion_rounds": 1,
    "fusion_groups": 4,
    "roi_output_size": 2,
    "position_hidden_size": 8,
}


@pytest.fixture
def parts(tmp_path):
    """Folders of a language model, a CLIP tower and a pyramid, as people have them."""
    torch.manual_seed(0)
    save_language_model(tmp_path / "lm")
    AutoModel.from_config(tiny_vision_config()).save_pretrained(tmp_path / "clip")
    AutoModel.from_config(tiny_vision_config("timm_backbone")).save_pretrained(tmp_path / "pyramid")
    (tmp_path / "pyramid" / "preprocessor_config.json").write_text(
        '{"size": {"height": 64, "width": 64}, "image_mean": [0.4, 0.4, 0.4], "image_std": [0.6, 0.6, 0.6]}'
    )
    return tmp_path


def save_language_model(folder, with_pad: bool = True, **changes):
    tokenizer = tiny_tokenizer(with_region_tokens=False)
    if not with_pad:
        tokenizer.pad_token = None
    model = AutoModelForCausalLM.from_config(tiny_text_config(**{"vocab_size": BASE_TOKENS, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def tables(model):
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


def test_prompts_that_a_chat_model_does_not_know_are_warned_about_with_the_flag(parts, caplog):
    settings = {name: value for name, value in SMALL.items() if name != "prompt_format"}
    told = (
        f"{parts / 'lm'} has a chat template, and is trained with v0 prompts, which it does not know: give --prompt_f"
    )
    build_from_parts(parts / "lm", parts / "clip", **settings, prompt_format="v0")
    assert told in caplog.text
    caplog.clear()
    open_length_estimator(str(parts / "lm"))
    assert told in caplog.text
    caplog.clear()
    build_from_parts(parts / "lm", parts / "clip", **settings, prompt_format="chat")
    assert "chat template" not in caplog.text


def test_a_folder_without_a_tokenizer_says_which_files_it_lacks(parts):
    for file in (parts / "lm").glob("*tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"no tokenizer can be opened there \(expected one of tokenizer.json, "):
        load_tokenizer(parts / "lm")


def test_tokens_are_added_once_and_no_row_moves(parts):
    before = AutoModelForCausalLM.from_pretrained(parts / "lm")
    model, processor = build_from_parts(parts / "lm", parts / "clip", **SMALL)
    vocabulary = processor.tokenizer.get_vocab()
    added = [vocabulary[token] for token in ("<im_patch>", "<bbox>", "<point>", "<im_start>", "<im_end>")]
    assert added == list(range(BASE_TOKENS, BASE_TOKENS + 5))
    assert model.config.region_token_id == processor.region_token_id == BASE_TOKENS + 1
    assert model.config.text_config.vocab_size == BASE_TOKENS + 5
    for old, new in zip(tables(before), tables(model), strict=True):
        assert torch.equal(old, new[:BASE_TOKENS])


def test_rows_of_added_tokens_start_as_the_original_s(parts):
    save_language_model(parts / "lm", with_pad=False)
    model, processor = build_from_parts(parts / "lm", parts / "clip", **SMALL)
    assert processor.tokenizer.pad_token_id == BASE_TOKENS
    for table in tables(model):
        torch.testing.assert_close(table[BASE_TOKENS], table[:BASE_TOKENS].mean(0))
        patch = table[BASE_TOKENS + 1]
        assert patch.std().item() == pytest.approx(0.2, rel=0.5)  # the language model's initializer_range
        mean = table[: BASE_TOKENS + 2].mean(0)
        assert len(table) == BASE_TOKENS + 6
        for row in table[BASE_TOKENS + 2 :]:
            torch.testing.assert_close(row, mean)


def test_a_vocabulary_with_spare_rows_keeps_them_all(parts):
    before = save_language_model(parts / "lm", vocab_size=300)
    model, processor = build_from_parts(parts / "lm", parts / "clip", **SMALL)
    table, old = tables(model)[0], tables(before)[0]
    assert table.shape[0] == 300 and len(processor.tokenizer) == BASE_TOKENS + 5
    assert torch.equal(table[:BASE_TOKENS], old[:BASE_TOKENS]) and torch.equal(
        table[BASE_TOKENS + 5 :], old[BASE_TOKENS + 5 :]
    )
    torch.testing.assert_close(table[BASE_TOKENS + 1], table[: BASE_TOKENS + 1].mean(0))


def test_tied_embeddings_stay_tied(parts):
    save_language_model(parts / "lm", tie_word_embeddings=True)
    model, processor = build_from_parts(parts / "lm", parts / "clip", **SMALL)
    assert tables(model)[0].data_ptr() == tables(model)[1].data_ptr()
    model.save_pretrained(parts / "joined")
    processor.save_pretrained(parts / "joined")
    again = load_model(parts / "joined")
    assert tables(again)[0].data_ptr() == tables(again)[1].data_ptr()
    assert torch.equal(tables(again)[0], tables(model)[0])
    assert load_processor(parts / "joined").region_token_id == processor.region_token_id


def test_a_pyramid_joins_with_the_light_encoder_at_the_scale_of_the_words(parts):
    model, processor = build_from_parts(
        parts / "lm", parts / "pyramid", "light", prompt_format="chat", image_grid_size=2, model_max_length=512
    )
    assert (processor.image_size, processor.image_seq_length, processor.model_max_length) == (64, 4, 512)
    assert (processor.image_mean, processor.image_std) == ((0.4,) * 3, (0.6,) * 3)
    scale = AutoModelForCausalLM.from_pretrained(parts / "lm").get_input_embeddings().weight.pow(2).mean().sqrt()
    torch.testing.assert_close(model.region_encoder.norm.weight, torch.full((32,), scale.item()))
    torch.testing.assert_close(model.mm_projector.norm.weight, torch.full((32,), scale.item()))
    saved = load_file(parts / "pyramid" / "model.safetensors")
    mine = model.vision_tower.backbone.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in saved.items())
    assert model.config.mm_vision_tower == "pyramid"


def test_the_tower_of_a_whole_clip_is_taken_and_nothing_is_reported(parts, capfd, caplog):
    vision = tiny_vision_config().to_dict()
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 30,
    }
    whole = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    whole.save_pretrained(parts / "whole")
    capfd.readouterr()
    model, _ = build_from_parts(parts / "lm", parts / "whole", **SMALL)
    assert "LOAD REPORT" not in "".join(capfd.readouterr()) + caplog.text
    mine = model.vision_tower.backbone.pre_layrnorm.weight
    assert model.config.vision_config.model_type == "clip_vision_model"
    assert torch.equal(mine, whole.vision_model.pre_layrnorm.weight)


@pytest.mark.parametrize("order", ["weight first", "rows first", "short names"])
def test_a_projector_file_fills_the_projector_in_any_order_of_keys(parts, order):
    weight, bias, rows = torch.randn(32, 16), torch.randn(32), torch.randn(2, 32)
    tensors = {"model.mm_projector.weight": weight, "model.mm_projector.bias": bias, "model.embed_tokens.weight": rows}
    if order == "rows first":
        tensors = dict(reversed(tensors.items()))
    if order == "short names":
        tensors = {"weight": weight, "bias": bias}
    torch.save(tensors, parts / "mm_projector.bin")
    model, _ = build_from_parts(parts / "lm", parts / "clip", projector=parts / "mm_projector.bin", **SMALL)
    assert torch.equal(model.mm_projector.weight, weight) and torch.equal(model.mm_projector.bias, bias)
    got = tables(model)[0][[model.config.image_start_token_id, model.config.image_end_token_id]]
    assert torch.equal(got, rows) == (order != "short names")


def test_a_whole_table_in_a_projector_file_gives_only_its_last_two_rows(parts):
    rows = torch.randn(BASE_TOKENS + 3, 32)
    tensors = {
        "model.embed_tokens.weight": rows,
        "model.mm_projector.weight": torch.zeros(32, 16),
        "model.mm_projector.bias": torch.zeros(32),
    }
    torch.save(tensors, parts / "mm_projector.bin")
    model, _ = build_from_parts(parts / "lm", parts / "clip", projector=parts / "mm_projector.bin", **SMALL)
    table = tables(model)[0]
    assert torch.equal(table[[model.config.image_start_token_id, model.config.image_end_token_id]], rows[-2:])
    before = AutoModelForCausalLM.from_pretrained(parts / "lm").get_input_embeddings().weight
    assert torch.equal(table[:BASE_TOKENS], before)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mm_projector.0.weight": torch.zeros(32, 16)}, "expected a linear mm_projector of .*32, 16.*, found"),
        ({"mm_projector.weight": torch.zeros(16, 32), "mm_projector.bias": torch.zeros(32)}, r"found .*\[16, 32\]"),
    ],
)
def test_a_projector_file_of_another_kind_is_refused(parts, tensors, message):
    torch.save(tensors, parts / "mm_projector.bin")
    with pytest.raises(InputError, match=message):
        build_from_parts(parts / "lm", parts / "clip", projector=parts / "mm_projector.bin", **SMALL)


@pytest.mark.parametrize(
    ("language_model", "tower", "message"),
    [
        ("nowhere", "clip", "nowhere: no tokenizer can be opened there"),
        ("lm", "nowhere", "vision tower .*nowhere' not found: .* give the tower's folder or its hub name"),
        ("lm", "empty", "vision tower .*empty: cannot be opened|no weights"),
    ],
)
def test_parts_that_are_not_there_are_refused(parts, language_model, tower, message):
    (parts / "empty").mkdir()
    shutil.copy(parts / "clip" / "config.json", parts / "empty")
    with pytest.raises(InputError, match=message) as caught:
        build_from_parts(parts / language_model, parts / tower, **SMALL)
    assert "\n" not in str(caught.value)


def test_gaps_in_our_own_folder_are_listed(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["mm_projector.bias"]
    tensors["extra"] = torch.zeros(1)
    tensors["region_encoder.pooler.output_linear.bias"] = torch.zeros(3)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert "1 missing: mm_projector.bias; 1 unexpected: extra" in message
    assert "region_encoder.pooler.output_linear.bias is [3], expected [32]" in message


def test_opening_says_in_one_line_what_was_opened(tmp_path, caplog):
    tiny_model().save_pretrained(tmp_path)
    with caplog.at_level("INFO", logger="gpt4roi"):
        load_model(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "LlamaForCausalLM of 2 layers and width 32, 264 tokens, tower clip_vision_model at 32 px" in line


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "some/where/else"])
def test_a_folder_that_is_not_there_is_refused(path):
    with pytest.raises(InputError, match=f"{path}: no such folder"):
        load_model(path)


@pytest.mark.heavy
@pytest.mark.parametrize("part", ["lm", "clip"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", r"is a pointer of Git LFS .*git lfs pull"),
        (b"", "is cut off or damaged|not a file of tensors"),
        (None, "is cut off or damaged|not a file of tensors"),
    ],
)
def test_damaged_weights_of_a_part_are_one_line_with_their_file(parts, part, name, content, message):
    file = parts / part / name
    if name.endswith(".bin"):
        torch.save(load_file(parts / part / "model.safetensors"), file)
        (parts / part / "model.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(InputError, match=f"{name}.*({message})") as caught:
        build_from_parts(language_model=parts / "lm", vision_tower=parts / "clip")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{"])
def test_a_folder_of_ours_without_a_readable_tokenizer_is_one_line(tmp_path, content):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    tiny_processor(model.config).save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(InputError, match="no processor can be opened there") as caught:
        load_processor(tmp_path)
    assert "\n" not in str(caught.value)
