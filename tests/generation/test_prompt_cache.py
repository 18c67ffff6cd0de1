"""What was read in earlier rounds is not read again, and changes no token."""

from __future__ import annotations

import pytest
import torch
from test_region_chat import BOXES, QUESTION, make_image
from tiny import tiny_model, tiny_processor, tiny_text_config

from gpt4roi import RegionChat
from gpt4roi.generation.engine import Prompt, PromptCache, stream
from gpt4roi.generation.sampling import SamplingParams


def never(tokens: list[int]) -> bool:
    return False


@pytest.fixture(scope="module")
def model():
    return tiny_model("pyramid")


@pytest.fixture
def prompt_of(model):
    """Makes prompts about one image, each with an embedding for every `<bbox>` among its tokens."""
    image = torch.randn(model.config.image_seq_length, 32, generator=torch.Generator().manual_seed(0))

    def make(text: list[int | str], regions: list[int] = ()) -> Prompt:
        config = model.config
        ids = [1, config.image_start_token_id, *[config.image_token_id] * config.image_seq_length]
        ids += [config.image_end_token_id, *(config.region_token_id if token == "R" else token for token in text)]
        rows = [torch.randn(32, generator=torch.Generator().manual_seed(seed)) for seed in regions]
        return Prompt(torch.tensor(ids), 0, image, torch.stack(rows) if rows else None)

    return make


def read_lengths(model):
    """Counts the tokens that every step of the language model reads."""
    lengths: list[int] = []
    hook = model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return lengths, hook


def test_the_next_round_reads_only_what_is_new(model, prompt_of):
    cache = PromptCache(model)
    first = prompt_of([40, "R", 41], [7])
    answer = list(stream(model, first, SamplingParams(4), never, cache))
    second = prompt_of([40, "R", 41, *answer, 50, 51], [7])
    lengths, hook = read_lengths(model)

    list(stream(model, second, SamplingParams(3), never, cache))

    hook.remove()
    assert lengths == [3, 1, 1]  # the answer's last token had not been read, and two new ones


def test_tokens_are_those_of_a_fresh_prompt(model, prompt_of):
    cache = PromptCache(model)
    text: list[int | str] = [40, "R", 41]
    regions = [7]
    for new, region in ([50, "R", 51], 8), ([60, 61], None), ([62, "R"], 9):
        prompt = prompt_of(text, regions)
        answer = list(stream(model, prompt, SamplingParams(6), never, cache))
        assert answer == list(stream(model, prompt, SamplingParams(6), never))
        text = [*text, *answer, *new]
        regions = regions if region is None else [*regions, region]


@pytest.mark.parametrize(
    ("text", "regions", "kept"),
    [
        ([40, "R", 41, 42], [7], 5),
        ([40, "R", 99, 42], [7], 4),
        ([40, "R", 41, 42], [8], 3),
        ([40, "R"], [7], 3),
        ([39], [], 2),
    ],
    ids=["the same", "another word", "another region", "shorter", "another beginning"],
)
def test_it_is_kept_up_to_the_first_token_or_region_that_differs(model, prompt_of, text, regions, kept):
    cache = PromptCache(model)
    list(stream(model, prompt_of([40, "R", 41, 42], [7]), SamplingParams(3), never, cache))
    before = 1 + model.config.image_seq_length

    prompt = prompt_of(text, regions)

    assert cache.reuse_prefix(prompt) == before + kept
    assert list(stream(model, prompt, SamplingParams(5), never, cache)) == list(
        stream(model, prompt, SamplingParams(5), never)
    )


def test_another_image_begins_anew(model, prompt_of):
    cache = PromptCache(model)
    prompt = prompt_of([40, 41])
    list(stream(model, prompt, SamplingParams(3), never, cache))

    other = Prompt(prompt.input_ids, 0, prompt.image_features + 1)

    assert cache.reuse_prefix(other) == 0
    assert list(stream(model, other, SamplingParams(5), never, cache)) == list(
        stream(model, other, SamplingParams(5), never)
    )


def test_a_copy_that_goes_on_leaves_the_original_as_it_was(model, prompt_of):
    cache = PromptCache(model)
    first = prompt_of([40, 41])
    list(stream(model, first, SamplingParams(3), never, cache))
    length, values = len(cache), cache.cache.layers[0].keys.clone()

    tokens = stream(model, prompt_of([40, 44, 45]), SamplingParams(9), never, cache.copy())
    next(tokens), next(tokens)
    tokens.close()

    assert len(cache) == length and torch.equal(cache.cache.layers[0].keys, values)
    assert list(stream(model, first, SamplingParams(5), never, cache)) == list(
        stream(model, first, SamplingParams(5), never)
    )


def test_layers_that_cannot_go_back_are_read_anew(prompt_of):
    text_config = tiny_text_config("mistral", sliding_window=8)  # every token sees the last eight
    model = tiny_model("pyramid", text_config=text_config)
    cache = PromptCache(model)
    list(stream(model, prompt_of([40, 41, 42, 43]), SamplingParams(3), never, cache))
    prompt = prompt_of([40, 41, 50, 51])

    assert cache.reuse_prefix(prompt) == 0
    assert list(stream(model, prompt, SamplingParams(5), never, cache)) == list(
        stream(model, prompt, SamplingParams(5), never)
    )


def test_a_chat_without_a_kept_cache_answers_the_same():
    model = tiny_model("pyramid")
    chats = [RegionChat(model, tiny_processor(model.config), keep_cache=keep) for keep in (True, False)]
    for chat in chats:
        chat.set_image(make_image())
        chat.ask(QUESTION, BOXES[:1], max_new_tokens=6)
        chat.ask("And <region2>?", BOXES[1:2], max_new_tokens=6)

    assert chats[0].turns == chats[1].turns
    assert chats[0]._dialogue.cache is not None and chats[1]._dialogue.cache is None
