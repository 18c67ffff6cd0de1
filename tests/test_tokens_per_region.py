"""A region that takes several tokens of the prompt, through processor, model, caches, labels and formats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_region_chat import BOXES, QUESTION, chat_with, fresh_answer, make_image
from tiny import tiny_config, tiny_model, tiny_processor

from gpt4roi.checkpoint.convert import plan_convert
from gpt4roi.checkpoint.delta import plan_make
from gpt4roi.checkpoint.loading import load_processor
from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn
from gpt4roi.train.sanity_checks import check_fit

KINDS = pytest.mark.parametrize("kind", ["clip", "pyramid"])
COUNTS = pytest.mark.parametrize("count", [1, 2, 4])
TWO = np.array([[5.0, 5, 40, 30], [30, 10, 90, 60]])


def sample(*texts: str) -> RegionSample:
    turns = tuple(Turn(("user", "assistant")[number % 2], text) for number, text in enumerate(texts))
    return RegionSample(make_image(), turns, TWO)


@pytest.mark.heavy
@KINDS
@COUNTS
def test_permuted_boxes_permute_the_answers_and_a_batch_changes_none(kind, count):
    chat = chat_with(kind, tokens_per_region=count)
    order = [3, 0, 4, 1, 2]

    straight = chat.describe(make_image(), BOXES, QUESTION, max_new_tokens=12, batch_size=3)
    permuted = chat.describe(make_image(), [BOXES[box] for box in order], QUESTION, max_new_tokens=12, batch_size=4)

    assert permuted == [straight[box] for box in order]
    assert straight == [fresh_answer(chat, [Turn("user", QUESTION)], [box]) for box in BOXES]
    assert len(set(straight)) > 1


@pytest.mark.heavy
@KINDS
@COUNTS
def test_cached_rounds_answer_as_the_whole_history_does(kind, count):
    chat = chat_with(kind, image=True, tokens_per_region=count)
    questions = ["What is <region1>?", "Is <region2> left of <region1>?", "And <region3>?"]
    turns: list[Turn] = []
    for question in questions:
        answer = chat.ask(question, BOXES[:3], max_new_tokens=8)
        turns.append(Turn("user", question))
        assert answer == fresh_answer(chat, turns, BOXES[:3], 8)
        turns.append(Turn("assistant", answer))


@KINDS
@COUNTS
def test_every_region_has_its_rows_in_the_order_of_its_tokens(kind, count):
    model = tiny_model(kind, tokens_per_region=count)
    batch = tiny_processor(model.config)([sample("Is <region2> left of <region1>?", "yes")])
    with torch.no_grad():
        output = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes")})
        alone = [model.get_region_features(batch["pixel_values"], [box[None]]) for box in batch["boxes"][0]]
    torch.testing.assert_close(output.region_features, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert output.region_features.shape == (2 * count, 32)
    rows = output.region_features.unflatten(0, (2, count))
    assert len(torch.unique(rows.flatten(0, 1), dim=0)) == 2 * count


@COUNTS
def test_a_mention_becomes_consecutive_tokens_with_one_box(count):
    model = tiny_model("pyramid", tokens_per_region=count)
    processor = tiny_processor(model.config)
    encoded = processor.encode(sample("Is <region2> left of <region1>?", "yes"))
    text = processor.tokenizer.decode(encoded["input_ids"])
    assert f"Is region2 {'<bbox>' * count} left of region1 {'<bbox>' * count}?" in text
    assert encoded["box_indices"].tolist() == [1, 0]
    assert len(encoded["labels"]) == len(encoded["input_ids"])


@pytest.mark.parametrize("count", [2, 4])
def test_no_token_of_a_region_is_supervised(count):
    processor = tiny_processor(tiny_config("pyramid", image_grid_size=2, tokens_per_region=count))
    encoded = processor.encode(sample("Which is left?", "It is <region1>."))
    supervised = encoded["input_ids"][encoded["labels"] != IGNORE_INDEX]
    assert processor.tokenizer.decode(supervised).startswith("It is region1 .")
    assert processor.region_token_id not in supervised


def test_independent_pairs_and_truncation_count_all_tokens_of_a_region():
    texts = ("What is <region1>?", "a dog", "What is <region2>?", "a cat")
    lengths = {}
    for count in (1, 4):
        processor = tiny_processor(tiny_config("pyramid", image_grid_size=2, tokens_per_region=count))
        whole = processor.encode(sample(*texts))
        lengths[count] = len(whole["input_ids"])
        short = type(processor)(
            **{name: getattr(processor, name) for name in ("tokenizer", "image_size", "image_seq_length")},
            prompt_format="chat",
            tokens_per_region=count,
            model_max_length=lengths[1],
        ).encode(sample(*texts))
        assert (short["n_dropped_rounds"], len(short["boxes"])) == ((0, 2) if count == 1 else (1, 1))
    assert lengths[4] == lengths[1] + 2 * 3


def test_a_wrong_number_of_tokens_is_refused_with_both_numbers():
    model = tiny_model("pyramid", tokens_per_region=4)
    batch = tiny_processor(tiny_config("pyramid", image_grid_size=None, image_seq_length=4))([sample(QUESTION, "x")])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "boxes")}
    with pytest.raises(InputError, match=r"sample 0 of the batch: 1 <bbox> tokens but 1 boxes of 4 tokens each"):
        model(**inputs)


def test_the_number_is_saved_with_model_and_processor_and_must_agree(tmp_path):
    model = tiny_model("pyramid", tokens_per_region=4)
    model.save_pretrained(tmp_path)
    tiny_processor(model.config).save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.tokens_per_region == 4
    processor = load_processor(tmp_path)
    assert processor.tokens_per_region == 4
    check_fit(processor, model)
    with pytest.raises(InputError, match="tokens_per_region is 1 for the processor and 4 for the model"):
        check_fit(tiny_processor(tiny_config("pyramid", image_seq_length=4)), model)


@pytest.mark.parametrize("plan", ["convert", "delta"])
def test_the_originals_format_has_no_form_for_several_tokens(tmp_path, plan):
    model = tiny_model("clip", tokens_per_region=2)
    model.save_pretrained(tmp_path / "model")
    tiny_processor(model.config).save_pretrained(tmp_path / "model")
    model.language_model.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="tokens_per_region is 2 and not 1"):
        if plan == "convert":
            plan_convert(tmp_path / "model", tmp_path / "out", "original")
        else:
            plan_make(tmp_path / "base", tmp_path / "model", tmp_path / "out")


def test_less_than_one_token_is_refused():
    with pytest.raises(InputError, match="tokens_per_region is 0, expected 1 or more"):
        tiny_config("pyramid", tokens_per_region=0)
