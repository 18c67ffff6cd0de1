"""Samples whose parts do not fit together are refused in one readable line that names their source."""

import numpy as np
import pytest
import torch
from text_samples import LLAMA_LIKE, QUESTIONS, make, sample, text_of
from transformers import AutoTokenizer

from gpt4roi.errors import InputError
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.structures import RegionSample, Turn

REFUSED = {
    "a region without a box": (("What is <region5>?", "x"), {}, "<region5> but 3 boxes in d.json#7"),
    "more bare regions than boxes": (("<bbox>" * 4, "x"), {}, "4 <bbox> in the text but 3 boxes in d.json#7"),
    "fewer bare regions than boxes": (("<bbox>", "x"), {}, "1 <bbox> in the text but 3 boxes in d.json#7"),
    "both ways of referring": (("<bbox> <region1>", "x"), {}, "got both in d.json#7"),
    "an empty answer": (("Hi.", " "), {}, "turn 1 (assistant) is empty in d.json#7"),
    "an empty question": (("", "x"), {}, "turn 0 (user) is empty in d.json#7"),
    "no answer": (("Hi.",), {}, "there is no answer to train on in d.json#7"),
    "two images": (("<image> <image>", "x"), {}, "2 <image> in the text but 1 image in d.json#7"),
    "an image that is not there": (
        ("<image>", "x"),
        {"image": None},
        "1 <image> in the text but 0 image in d.json#7",
    ),
    "a region without an image": (("<region1>", "x"), {"image": None}, "<region1> but 0 boxes in d.json#7"),
    "a reserved token": (("a <im_patch> b", "x"), {}, "turn 0 holds <im_patch> in d.json#7; write <image>"),
    "exchanged corners": (
        ("<bbox>", "x"),
        {"boxes": [[40, 4, 8, 20]]},
        "box 1 is [40.0, 4.0, 8.0, 20.0] in d.json#7; expected x1 <= x2 and y1 <= y2",
    ),
    "a missing file": (("Hi.", "x"), {"image": "no/such.png"}, "image 'no/such.png' not found in d.json#7"),
    "an array of floats": (
        ("Hi.", "x"),
        {"image": np.zeros((4, 4, 3))},
        "must be uint8 [H, W, 3], got float64 [4, 4, 3]",
    ),
    "independent turns out of step": (("a", "b", "c"), {"independent_turns": True}, "must be pairs of a question and"),
    "an image in a later independent turn": (
        ("a", "b", "See <image>", "c"),
        {"independent_turns": True},
        "may show <image> only on a line of its own, at the very start in d.json#7",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_refused_with_its_source(name):
    texts, kwargs, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        make().encode(sample(*texts, **kwargs))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_answers_in_a_row_are_refused_where_the_format_cannot_take_them():
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("assistant", "c")]
    twice = RegionSample(None, turns, source="d.json#7")
    with pytest.raises(
        InputError, match=r"v1 format needs user and assistant in turn, step 2 is 'assistant' in d\.json#7"
    ):
        make("v1").encode(twice)
    assert "### Assistant: b\n### Assistant: c" in text_of(make(), make().encode(twice)["input_ids"])


def test_asking_needs_a_question_at_the_end():
    with pytest.raises(InputError, match=r"the last turn must be the user's question in d\.json#7"):
        make().encode(sample("a", "b"), generation=True)
    open_answer = sample("a", "", image=None)
    assert torch.equal(
        make().encode(open_answer, generation=True)["input_ids"],
        make().encode(sample("a", image=None), generation=True)["input_ids"],
    )


def test_pixel_boxes_without_an_image_size_are_refused():
    with pytest.raises(InputError, match=r"boxes in pixels need the image's size in d\.json#7"):
        make().encode_text(sample(*QUESTIONS))


def test_an_unknown_format_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="prompt_format must be one of v0, v1, llava_v1, chat; got 'v2'"):
        make("v2")


def test_a_tokenizer_without_the_added_tokens_is_refused():
    with pytest.raises(InputError, match="the tokenizer lacks <im_start>, <im_patch>, <im_end>, <bbox>; call"):
        GPT4RoIProcessor(AutoTokenizer.from_pretrained(LLAMA_LIKE))


def test_a_question_too_long_by_itself_is_refused():
    with pytest.raises(
        InputError, match=r"the shortest prompt has 130 tokens but model_max_length is 100 in d\.json#7"
    ):
        make("chat", model_max_length=100).encode(sample("What is <region1>?" + "?" * 40, "this"))
    with pytest.raises(InputError, match=r"model_max_length is 100 in d\.json#7"):
        make("chat", model_max_length=100).encode(sample("What is <region1>?" + "?" * 40), generation=True)
