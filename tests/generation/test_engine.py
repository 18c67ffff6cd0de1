"""Prompts that share beginnings, rows that end at different times, and what a stream shows."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model, tiny_processor, tiny_tokenizer
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from gpt4roi.generation.engine import Prompt, SamplingParams, generate, generate_batches, shared_prefix_length, stream
from gpt4roi.generation.sampling import stopping_criterion
from gpt4roi.region_chat import RegionChat
from gpt4roi.structures import Turn


def never(tokens: list[int]) -> bool:
    return False


def prompts_of(model, texts: list[list[int]], images: list[int]) -> list[Prompt]:
    """An image and a region each, with other embeddings for every image and every prompt."""
    config = model.config
    before = [1, config.image_start_token_id, *[config.image_token_id] * config.image_seq_length]
    rows = []
    for number, (text, shown) in enumerate(zip(texts, images, strict=True)):
        ids = [*before, config.image_end_token_id, 40, 41, *text[:1], config.region_token_id, *text[1:]]
        image = torch.randn(config.image_seq_length, 32, generator=torch.Generator().manual_seed(shown))
        region = torch.randn(1, 32, generator=torch.Generator().manual_seed(100 + number))
        rows.append(Prompt(torch.tensor(ids), shown, image, region))
    return rows


TEXTS = [[50, 51], [50, 51], [52, 53, 54], [50, 60], [61, 62, 63], [70, 71]]
IMAGES = [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_shared_beginnings_and_batches_change_no_token(batch_size):
    model = tiny_model()
    prompts = prompts_of(model, TEXTS, IMAGES)
    alone = [generate(model, [prompt], SamplingParams(10), never)[0] for prompt in prompts]

    assert generate(model, prompts, SamplingParams(10), never, batch_size) == alone
    assert len({tuple(answer) for answer in alone}) > 3


def test_the_beginning_is_shared_up_to_the_first_difference_and_never_beyond_a_region():
    model = tiny_model()
    up_to_question = 2 + model.config.image_seq_length + 3

    assert shared_prefix_length(model, prompts_of(model, TEXTS, IMAGES)) == up_to_question
    assert shared_prefix_length(model, prompts_of(model, [[50, 51], [50, 51]], [0, 0])) == up_to_question + 1
    assert shared_prefix_length(model, prompts_of(model, [[50, 51], [50, 51]], [0, 1])) == 0


def test_an_answer_ends_by_itself_while_others_go_on():
    model = tiny_model()
    prompts = prompts_of(model, TEXTS, IMAGES)
    full = generate(model, prompts, SamplingParams(12), never)
    stop = full[0][4]

    answers = generate(model, prompts, SamplingParams(12), lambda tokens: tokens[-1] == stop)

    for answer, whole in zip(answers, full, strict=True):
        end = whole.index(stop) + 1 if stop in whole else 12
        assert answer == whole[:end]


def test_log_probabilities_are_the_models_own_whatever_the_temperature():
    model = tiny_model()
    prompts = prompts_of(model, TEXTS, IMAGES)

    for params in (SamplingParams(4), SamplingParams(4, temperature=2.0, top_p=0.9)):
        for batch, answers, log_probs in generate_batches(model, prompts, params, never, 2):
            for index, tokens, found in zip(batch, answers, log_probs, strict=True):
                before = prompts[index].embed(model)
                after = model.get_input_embeddings()(torch.tensor(tokens))
                with torch.no_grad():
                    logits = model.language_model(inputs_embeds=torch.cat([before, after])[None]).logits[0]
                shares = logits[len(before) - 1 : -1].log_softmax(dim=-1)
                torch.testing.assert_close(torch.tensor(found), shares[range(4), tokens], atol=1e-4, rtol=1e-4)


def test_a_stream_yields_the_tokens_of_the_batched_answer():
    model = tiny_model()
    prompts = prompts_of(model, TEXTS, IMAGES)

    assert (
        list(stream(model, prompts[2], SamplingParams(10), never))
        == generate(model, prompts, SamplingParams(10), never)[2]
    )


def test_missing_region_embeddings_are_an_error_with_both_counts():
    model = tiny_model()
    whole = prompts_of(model, TEXTS[:1], [0])[0]

    with pytest.raises(ValueError, match=r"the prompt has 1 tokens .* but 0 embeddings"):
        generate(model, [Prompt(whole.input_ids, 0, whole.image_features, None)], SamplingParams(2), never)


class Reciter(nn.Module):
    """A language model that says a text byte by byte, whatever the prompt."""

    def __init__(self, model, ids: list[int]) -> None:
        super().__init__()
        self.config, self.embeddings, self.ids, self.said = (
            model.config.text_config,
            model.get_input_embeddings(),
            ids,
            0,
        )

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, inputs_embeds, **kwargs):
        logits = torch.zeros(len(inputs_embeds), 1, self.config.vocab_size)
        logits[:, :, self.ids[min(self.said, len(self.ids) - 1)]] = 1
        self.said += 1
        return CausalLMOutputWithPast(logits=logits)


def reciting_chat(text: str, prompt_format: str) -> RegionChat:
    model = tiny_model()
    processor = tiny_processor(model.config, prompt_format)
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    model.language_model = Reciter(model, ids)
    chat = RegionChat(model, processor)
    chat.set_image(torch.zeros(64, 96, 3, dtype=torch.uint8).numpy())
    return chat


def test_the_speakers_name_and_the_stop_word_are_never_shown():
    chat = reciting_chat("Assistant: a red cat # 1\n### Human: more", "v0")

    pieces = list(chat.stream("What is this?"))

    assert "".join(pieces) == "a red cat # 1"
    assert len(pieces) > 3
    assert chat.turns[-1] == Turn("assistant", "a red cat # 1")
    assert chat.model.language_model.said == len("Assistant: a red cat # 1\n###")


@pytest.mark.parametrize("stop, said", [("Assistant:", "a cat: red"), (":", "a cat"), (" ", "a"), ("\n", "a cat: red")])
def test_a_stop_text_in_the_speakers_name_does_not_end_an_answer(stop, said):
    recited = "\nAssistant: a cat: red\n### Human: more"

    assert reciting_chat(recited, "v0").ask("What is this?", stop=[stop]) == said
    assert "".join(reciting_chat(recited, "v0").stream("What is this?", stop=[stop])) == said


def test_a_character_of_several_tokens_comes_whole():
    chat = reciting_chat("é🐈!<|end|>", "chat")

    assert list(chat.stream("What is this?")) == ["é", "🐈", "!"]


def test_an_end_token_ends_an_answer_and_so_does_a_stop_word_across_tokens():
    processor = tiny_processor(prompt_format="v0")
    ended = stopping_criterion(processor)
    tokens = processor.tokenizer("so ## and ###", add_special_tokens=False)["input_ids"]

    assert [ended(tokens[: n + 1]) for n in range(len(tokens))] == [False] * (len(tokens) - 1) + [True]
    assert ended([40, processor.tokenizer.eos_token_id])
