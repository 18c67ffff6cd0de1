"""The trap of 32005 and 32006: a tokenizer that counts one token more or less than the table has rows.

A base whose tokenizer pads with a token of its own gets five tokens, one without gets [PAD] too. Whoever then cuts the
table to the tokenizer's length loses <im_end>; whoever adds tokens blindly gives every row its neighbour's meaning.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import tiny_text_config, tiny_tokenizer, tiny_vision_config
from transformers import AutoModel, AutoModelForCausalLM

from gpt4roi.checkpoint.build import build_from_parts
from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.errors import InputError

RECORDED = Path(__file__).parents[1] / "golden/original_format_folder"
BASE_TOKENS = 259
SMALL = {
    "num_region_levels": 2,
    "region_level_stride": 1,
    "num_fusion_rounds": 1,
    "fusion_groups": 4,
    "roi_output_size": 2,
    "position_hidden_size": 8,
}


@pytest.fixture
def folder(tmp_path):
    """The recorded folder, 606 rows: 600 words, [PAD], and five tokens."""
    return Path(shutil.copytree(RECORDED, tmp_path / "model"))


@pytest.mark.heavy
@pytest.mark.parametrize("with_pad", [True, False], ids=["tokenizer of five more", "tokenizer of six more"])
@pytest.mark.parametrize("rows", [5, 6, 8])
def test_a_table_keeps_every_row_it_came_with_whatever_the_tokenizer_counts(tmp_path, with_pad, rows):
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(with_region_tokens=False)
    if not with_pad:
        tokenizer.pad_token = None
    before = AutoModelForCausalLM.from_config(tiny_text_config(vocab_size=BASE_TOKENS + rows))
    before.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    AutoModel.from_config(tiny_vision_config()).save_pretrained(tmp_path / "clip")
    model, processor = build_from_parts(tmp_path / "lm", tmp_path / "clip", **SMALL)
    counted = len(processor.tokenizer)
    assert counted == BASE_TOKENS + (5 if with_pad else 6)
    for old, new in (
        (before.get_input_embeddings(), model.get_input_embeddings()),
        (before.get_output_embeddings(), model.get_output_embeddings()),
    ):
        assert len(new.weight) == max(counted, BASE_TOKENS + rows)
        assert torch.equal(new.weight[:BASE_TOKENS], old.weight[:BASE_TOKENS])
        assert torch.equal(new.weight[counted:], old.weight[counted:])
    assert model.config.region_token_id == processor.region_token_id == counted - 4


@pytest.mark.heavy
def test_a_trained_folder_whose_tokenizer_lost_its_tokens_gets_them_back_at_their_rows(folder):
    (folder / "added_tokens.json").unlink()
    model, processor = load_model(folder), load_processor(folder)
    assert len(model.get_input_embeddings().weight) == len(processor.tokenizer) == 606
    assert model.config.region_token_id == processor.region_token_id == 602
    assert model.config.image_token_id == processor.image_patch_token_id == 601
    assert processor.tokenizer.pad_token_id == 600


@pytest.mark.heavy
def test_without_a_padding_token_there_are_605_rows_and_the_same_tokens_one_row_earlier(folder):
    (folder / "added_tokens.json").unlink()
    known = json.loads((folder / "special_tokens_map.json").read_text())
    (folder / "special_tokens_map.json").write_text(json.dumps(known | {"pad_token": "<unk>"}))
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name][:600], tensors[name][601:]])
    torch.save(tensors, path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 605}))
    model, processor = load_model(folder), load_processor(folder)
    assert len(model.get_input_embeddings().weight) == len(processor.tokenizer) == 605
    assert model.config.region_token_id == processor.region_token_id == 601
    assert torch.equal(model.get_input_embeddings().weight, tensors["model.embed_tokens.weight"])


def test_a_tokenizer_of_606_over_605_rows_is_refused_with_both_numbers(folder):
    path = folder / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:605].clone()
    torch.save(tensors, path)
    with pytest.raises(InputError, match=r"<im_end> is number 605, but the embedding table has 605 rows"):
        load_model(folder)


def test_rows_that_no_addition_of_tokens_explains_are_refused_with_both_numbers(folder):
    (folder / "added_tokens.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 610}))
    with pytest.raises(InputError, match=r"has 601 tokens and 606 with the added ones, the model 610 rows"):
        load_processor(folder)


@pytest.mark.heavy
def test_a_tokenizer_that_numbers_the_region_token_otherwise_is_refused(folder, tmp_path):
    load_model(folder).save_pretrained(tmp_path / "ours")
    load_processor(folder).save_pretrained(tmp_path / "ours")
    path = tmp_path / "ours/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"region_token_id": 601}))
    with pytest.raises(InputError, match=r"<bbox> is number 602 in the tokenizer and 601 in config.json"):
        load_processor(tmp_path / "ours")
