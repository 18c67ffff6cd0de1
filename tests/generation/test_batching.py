"""Continuous batching: answers of everybody's questions equal those to each alone, however they come together."""

from __future__ import annotations

import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_processor

from gpt4roi.errors import InputError
from gpt4roi.generation.batching import STEP_TOKENS, BatchingWorker
from gpt4roi.generation.encoded_image import EncodedImage, encode_images, prepare_image
from gpt4roi.generation.engine import stream
from gpt4roi.generation.packed import PackedDecoder, SingleDecoder, packed_decoder
from gpt4roi.generation.sampling import SamplingParams, stopping_criterion
from gpt4roi.processing.user_input import open_image
from gpt4roi.structures import RegionSample, Turn

QUESTIONS = (
    "What is <region1>?",
    "Describe <region1> in a few words, please.",
    "Is <region1> larger than <region2>, or is it <region2>?",
    "What is this image about?",
    "Which colour has <region2>? " + "It matters a lot to me. " * 4,
)


@pytest.fixture(scope="module")
def served():
    """A tiny model with its processor and three encoded images of different sizes."""
    model = tiny_model("pyramid")
    processor = tiny_processor(model.config)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (40 + 9 * number, 60, 3), dtype=np.uint8) for number in range(3)]
    prepared = [prepare_image(processor, open_image(image)) for image in images]
    return SimpleNamespace(model=model, processor=processor, images=list(encode_images(model, prepared)))


def prompt_of(served, image: EncodedImage, question: str, draw: random.Random, history: int = 0):
    """A question about two random boxes, after rounds of other questions."""
    turns = [
        turn
        for number in range(history)
        for turn in (Turn("user", f"Round {number}, <region1>?"), Turn("assistant", "Yes."))
    ]
    boxes = np.array([[5 * draw.randrange(4), 4, 30 + 5 * draw.randrange(4), 35] for _ in range(2)], dtype=np.float64)
    (prompt,) = image.prompts(served.processor, [RegionSample("the image", (*turns, Turn("user", question)), boxes)])
    return prompt


def alone(served, prompt, params: SamplingParams) -> list[int]:
    return list(stream(served.model, prompt, params, stopping_criterion(served.processor, params.stop)))


def random_mix(served, seed: int) -> list[tuple]:
    draw = random.Random(seed)
    mix = []
    for _ in range(14):
        prompt = prompt_of(served, draw.choice(served.images), draw.choice(QUESTIONS), draw, draw.randrange(3))
        sampled = {"temperature": draw.choice([0.5, 1.0, 2.0]), "top_p": draw.choice([0.6, 1.0])}
        params = SamplingParams(
            draw.randrange(1, 14), seed=draw.randrange(99), stop=draw.choice(["", "e", "zz"]) or (),
            **(sampled if draw.random() < 0.5 else {}),
        )  # fmt: skip
        mix.append((prompt, params))
    return mix


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("limits", [{}, {"max_sequences": 3}, {"max_tokens": 900}, {"deterministic": True}])
def test_answers_of_a_random_mix_are_token_by_token_those_to_each_question_alone(served, seed, limits):
    mix = random_mix(served, seed)
    worker = BatchingWorker(served.model, served.processor, **limits)
    answers = [worker.submit(lambda prompt=prompt: prompt, params) for prompt, params in mix]
    found = [list(answer) for answer in answers]
    worker.close()

    assert found == [alone(served, prompt, params) for prompt, params in mix]
    assert worker.counts["answers"] == len(mix)
    assert worker.counts["generated_tokens"] == sum(map(len, found))
    for answer, (_, params) in zip(answers, mix, strict=True):
        cut = len(answer.tokens) == params.max_new_tokens and answer.finish_reason == "length"
        assert cut or answer.finish_reason == "stop"


def test_questions_that_come_while_others_are_answered_join_the_batch(served, monkeypatch):
    sizes = []
    logits = PackedDecoder.logits
    monkeypatch.setattr(
        PackedDecoder, "logits", lambda self, batch: (sizes.append([len(e) for _, e in batch]), logits(self, batch))[1]
    )
    draw = random.Random(0)
    prompts = [prompt_of(served, image, QUESTIONS[0], draw) for image in served.images]
    worker = BatchingWorker(served.model, served.processor)
    sizes.clear()
    late = []
    first = worker.submit(
        lambda: prompts[0],
        SamplingParams(8),
        notify=lambda: late or late.append(worker.submit(lambda: prompts[1], SamplingParams(3))),
    )
    found = list(first), list(late[0])
    worker.close()

    assert found == (alone(served, prompts[0], SamplingParams(8)), alone(served, prompts[1], SamplingParams(3)))
    assert [1, len(prompts[1].input_ids)] in sizes, "the second prompt was read beside a token of the first answer"
    assert [1, 1] in sizes and sizes[-1] == [1], "it left the batch when it was complete"


def test_what_prompts_about_an_image_share_is_computed_once_also_for_later_ones(served):
    draw = random.Random(3)
    prompts = [prompt_of(served, served.images[0], QUESTIONS[0], draw) for _ in range(3)]
    other = prompt_of(served, served.images[1], QUESTIONS[0], draw)
    region = prompts[0].input_ids.tolist().index(served.model.config.region_token_id)
    worker = BatchingWorker(served.model, served.processor)
    together = [worker.submit(lambda prompt=prompt: prompt, SamplingParams(4)) for prompt in [*prompts, other]]
    tokens = [list(answer) for answer in together]
    again = worker.submit(lambda: prompts[1], SamplingParams(4))

    assert list(again) == tokens[1]
    assert again.cached_tokens == len(prompts[1].input_ids) - 1
    assert together[3].cached_tokens == 0, "nothing of another image may be reused"
    later = worker.submit(
        lambda: prompt_of(served, served.images[0], QUESTIONS[0], random.Random(9)), SamplingParams(4)
    )
    list(later)
    worker.close()
    assert later.cached_tokens >= region


def test_a_conversation_reads_only_what_is_new_in_its_next_round(served):
    image, box = served.images[0], np.array([[5.0, 5, 30, 30]])
    turns = (Turn("user", "What is <region1>?"),)
    (prompt,) = image.prompts(served.processor, [RegionSample("the image", turns, box)])
    worker = BatchingWorker(served.model, served.processor)
    answer = worker.submit(lambda: prompt, SamplingParams(6))
    text = served.processor.decode(list(answer))
    longer = (*turns, Turn("assistant", text or "nothing"), Turn("user", "Why?"))
    (follow_up,) = image.prompts(served.processor, [RegionSample("the image", longer, box)])
    second = worker.submit(lambda: follow_up, SamplingParams(6))

    assert list(second) == alone(served, follow_up, SamplingParams(6))
    assert len(prompt.input_ids) <= second.cached_tokens < len(follow_up.input_ids)
    worker.close()


def test_a_cancelled_answer_leaves_the_batch_and_the_others_go_on(served):
    draw = random.Random(1)
    prompts = [prompt_of(served, served.images[0], QUESTIONS[0], draw) for _ in range(2)]
    worker = BatchingWorker(served.model, served.processor)
    endless, other = (worker.submit(lambda prompt=prompt: prompt, SamplingParams(3000)) for prompt in prompts)
    assert next(iter(endless)) == alone(served, prompts[0], SamplingParams(1))[0]  # the iterator is dropped: cancelled
    short = worker.submit(lambda: prompts[1], SamplingParams(5))
    tokens = list(short)
    other.cancel()
    worker.close()

    assert tokens == alone(served, prompts[1], SamplingParams(5))
    assert (endless.finish_reason, other.finish_reason) == ("cancelled", "cancelled")
    assert len(endless.tokens) < 3000 and worker.counts["cancelled"] == 2
    assert worker.num_running == worker.num_waiting == 0


def test_a_long_prompt_is_read_in_parts_beside_which_others_are_answered(served, monkeypatch):
    most = []
    logits = PackedDecoder.logits
    monkeypatch.setattr(
        PackedDecoder,
        "logits",
        lambda self, batch: (most.append(sum(len(e) for _, e in batch)), logits(self, batch))[1],
    )
    draw = random.Random(2)
    long = prompt_of(served, served.images[0], "word " * 380 + "<region1>?", draw)
    assert len(long.input_ids) > STEP_TOKENS
    worker = BatchingWorker(served.model, served.processor)
    most.clear()
    answers = [worker.submit(lambda prompt=prompt: prompt, SamplingParams(5)) for prompt in (long, long)]
    found = [list(answer) for answer in answers]
    worker.close()

    assert max(most) == STEP_TOKENS
    assert found == [alone(served, long, SamplingParams(5))] * 2


@pytest.mark.heavy
def test_memory_is_bounded_by_a_number_of_tokens(served):
    draw = random.Random(4)
    prompts = [prompt_of(served, draw.choice(served.images), draw.choice(QUESTIONS), draw) for _ in range(12)]
    reserved = max(len(prompt.input_ids) for prompt in prompts) + 6
    worker = BatchingWorker(served.model, served.processor, max_tokens=2 * reserved)
    seen = []
    answers = [
        worker.submit(lambda prompt=prompt: prompt, SamplingParams(6), notify=lambda: seen.append(worker.num_tokens))
        for prompt in prompts
    ]
    assert [list(answer) for answer in answers] == [alone(served, prompt, SamplingParams(6)) for prompt in prompts]
    too_long = worker.submit(lambda: prompts[0], SamplingParams(2 * reserved))
    with pytest.raises(InputError, match=rf"more than the {2 * reserved} that fit into memory; allow a shorter answer"):
        list(too_long)
    worker.close()
    assert max(seen) <= 2 * reserved


def test_one_more_question_than_may_wait_is_refused_by_code(served):
    prompt = prompt_of(served, served.images[0], QUESTIONS[0], random.Random(0))
    worker = BatchingWorker(served.model, served.processor, max_waiting=2)
    hold = threading.Event()
    worker.call(lambda: hold.wait(10))
    answers = [worker.submit(lambda: prompt, SamplingParams(2)) for _ in range(2)]
    with pytest.raises(InputError, match="2 questions wait already; ask again in a moment") as refused:
        worker.submit(lambda: prompt, SamplingParams(2))
    hold.set()

    assert refused.value.code == "overloaded"
    assert [list(answer) for answer in answers] == [alone(served, prompt, SamplingParams(2))] * 2
    worker.close()
    with pytest.raises(InputError, match="the server is closing"):
        worker.submit(lambda: prompt, SamplingParams(2))


def test_a_fault_of_one_question_is_its_own(served):
    prompt = prompt_of(served, served.images[0], QUESTIONS[0], random.Random(0))

    def wrong():
        raise InputError("box 1: no area")

    worker = BatchingWorker(served.model, served.processor)
    bad, good = worker.submit(wrong, SamplingParams(3)), worker.submit(lambda: prompt, SamplingParams(3))
    with pytest.raises(InputError, match="box 1: no area"):
        list(bad)
    assert list(good) == alone(served, prompt, SamplingParams(3))
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 // 0).result()
    assert worker.call(lambda: 6 * 7).result() == 42
    worker.close()


@pytest.mark.parametrize("failing", [(PackedDecoder, "logits"), (PackedDecoder, "new")])
def test_a_batch_that_fails_ends_its_answers_and_not_the_worker(served, monkeypatch, failing):
    prompt = prompt_of(served, served.images[0], QUESTIONS[0], random.Random(0))
    worker = BatchingWorker(served.model, served.processor)
    with monkeypatch.context() as patch:
        patch.setattr(*failing, lambda self, _: torch.zeros(0).view(1, 1))
        failed = worker.submit(lambda: prompt, SamplingParams(3))
        with pytest.raises(RuntimeError):
            list(failed)
    assert failed.finish_reason == "error"
    assert list(worker.submit(lambda: prompt, SamplingParams(3))) == alone(served, prompt, SamplingParams(3))
    worker.close()


def test_log_probabilities_are_those_of_the_model_whatever_the_sampling(served):
    prompt = prompt_of(served, served.images[0], QUESTIONS[0], random.Random(0))
    worker = BatchingWorker(served.model, served.processor)
    answer = worker.submit(lambda: prompt, SamplingParams(4, temperature=2.0, seed=5), num_top=3)
    tokens = list(answer)
    worker.close()

    embeddings = torch.cat([prompt.embed(served.model), served.model.get_input_embeddings()(torch.tensor(tokens))])
    logits = served.model.language_model(inputs_embeds=embeddings[None]).logits[0, len(prompt.input_ids) - 1 : -1]
    expected = logits.log_softmax(dim=-1)
    assert answer.log_probs == pytest.approx(expected.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist(), abs=1e-4)
    assert [[token for token, _ in top] for top in answer.top_log_probs] == expected.topk(3).indices.tolist()


@pytest.mark.heavy
def test_several_answers_to_one_question_have_random_sequences_of_their_own(served):
    prompt = prompt_of(served, served.images[0], QUESTIONS[0], random.Random(0))
    worker = BatchingWorker(served.model, served.processor)
    params = SamplingParams(8, temperature=1.5, seed=7)
    first, second = ([list(worker.submit(lambda: prompt, params, number)) for number in range(3)] for _ in range(2))
    worker.close()
    assert first == second and len({tuple(tokens) for tokens in first}) == 3
    assert first[0] == alone(served, prompt, params)


@pytest.mark.parametrize("text_type", ["llama", "qwen3", "gpt_neox"])
def test_language_models_with_the_common_attention_are_packed(text_type):
    assert isinstance(packed_decoder(tiny_model(text_type=text_type)), PackedDecoder)


@pytest.mark.parametrize("text_type", ["mistral", "gemma2"])
def test_others_are_decoded_one_by_one_with_the_same_answers(text_type, caplog):
    model = tiny_model(text_type=text_type, seed=2)
    processor = tiny_processor(model.config)
    (image,) = encode_images(model, [prepare_image(processor, open_image(np.zeros((40, 60, 3), dtype=np.uint8)))])
    served = SimpleNamespace(model=model, processor=processor)
    prompts = [prompt_of(served, image, question, random.Random(0)) for question in QUESTIONS[:3]]
    worker = BatchingWorker(model, processor)
    found = [worker.submit(lambda prompt=prompt: prompt, SamplingParams(5)) for prompt in prompts]

    assert [list(answer) for answer in found] == [alone(served, prompt, SamplingParams(5)) for prompt in prompts]
    assert isinstance(worker._decoder, SingleDecoder)
    assert "cannot be batched across questions; they are decoded one by one" in caplog.text
    worker.close()


def test_the_view_of_a_packed_decoder_shares_the_weights_and_leaves_the_model_as_it_is():
    model = tiny_model()
    before = model.language_model.config._attn_implementation
    decoder = packed_decoder(model)
    own, shared = (dict(module.named_parameters()) for module in (decoder.model, model.language_model))
    assert own.keys() == shared.keys() and all(own[name] is shared[name] for name in own)
    assert model.language_model.config._attn_implementation == before != decoder.model.config._attn_implementation
