"""What transformers' suites check of every model: weights, embeddings, dtypes, attention, generation."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_model, tiny_processor, tiny_text_config

from gpt4roi.models import GPT4RoIForConditionalGeneration as Model
from gpt4roi.structures import RegionSample, Turn

KINDS = ("clip", "pyramid")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return tiny_model(request.param)


def sample(question="What is <region1>?", box=(2, 3, 20, 25), answer=None):
    image = torch.arange(3072, dtype=torch.uint8).reshape(32, 32, 3).numpy()
    turns = (Turn("user", question), *([Turn("assistant", answer)] if answer else []))
    return RegionSample(image, turns, [list(box)])


def inputs_of(model, *samples):
    return dict(tiny_processor(model.config)(list(samples or [sample()]), generation=True))


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits.float()


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_saved_once_and_opened_equal_and_tied(tied, tmp_path):
    model = tiny_model(text_config=tiny_text_config(tie_word_embeddings=tied))
    model.save_pretrained(tmp_path)
    again = Model.from_pretrained(tmp_path)
    table, head = again.get_input_embeddings().weight, again.get_output_embeddings().weight
    assert (table.data_ptr() == head.data_ptr()) == tied
    inputs = inputs_of(model)
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in again.state_dict().items())
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs), atol=1e-5, rtol=0)


def test_the_table_grows_and_the_old_rows_stay(model):
    grown = copy.deepcopy(model)
    rows = grown.get_input_embeddings().weight.shape[0]
    grown.resize_token_embeddings(rows + 3)
    assert grown.get_input_embeddings().weight.shape[0] == grown.get_output_embeddings().weight.shape[0] == rows + 3
    assert grown.config.get_text_config().vocab_size == rows + 3
    inputs = inputs_of(model)
    assert torch.equal(logits(grown, inputs)[..., :rows], logits(model, inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(model, dtype):
    half, inputs = copy.deepcopy(model).to(dtype), inputs_of(model)
    exact, rounded = logits(model, inputs), logits(half, inputs)
    assert half(**inputs).logits.dtype == dtype
    assert float((rounded - exact).norm() / exact.norm()) < 0.1


@pytest.mark.parametrize("name", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
def test_every_attention_gives_the_same_logits(model, name):
    other, inputs = copy.deepcopy(model), inputs_of(model, sample(), sample("Is this a <region1>?", (0, 0, 9, 9)))
    other.language_model.set_attn_implementation(name)
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits(other, inputs)[seen], logits(model, inputs)[seen], atol=5e-5, rtol=0)


def test_a_batch_gives_what_each_sample_gives_alone(model):
    samples = [sample(), sample("Is this a <region1>, or what else is it?", (0, 0, 9, 9))]
    together = logits(model, inputs_of(model, *samples))
    for row, one in enumerate(samples):
        alone = logits(model, inputs_of(model, one))[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, atol=5e-5, rtol=0)


def test_beams_samples_and_several_answers_have_the_images_of_their_prompts(model):
    inputs = inputs_of(model, sample(), sample("Is this a <region1>?", (0, 0, 9, 9)))
    length = inputs["input_ids"].shape[1]
    # A model that has learned nothing may answer with a placeholder.
    inputs["suppress_tokens"] = [model.config.image_token_id, model.config.region_token_id]
    greedy = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    one_beam = model.generate(**inputs, max_new_tokens=4, do_sample=True, top_k=1)
    assert torch.equal(one_beam, greedy)
    beams = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=3, num_return_sequences=3)
    assert beams.shape[0] == 6 and torch.equal(beams[::3, :length], inputs["input_ids"])
    first = inputs_of(model, sample()) | {"suppress_tokens": inputs["suppress_tokens"]}
    alone = model.generate(**first, max_new_tokens=4, do_sample=False, num_beams=3)[0, first["input_ids"].shape[1] :]
    assert torch.equal(beams[0, length:][: len(alone)], alone)
    drawn = model.generate(**inputs, max_new_tokens=4, do_sample=True, num_return_sequences=2)
    assert drawn.shape[0] == 4
    uncached = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(uncached, greedy)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    batch = dict(tiny_processor(model.config)([sample(answer="a red fox")]))
    found = []
    for checkpointing in (False, True):
        one = copy.deepcopy(model).train()
        if checkpointing:
            one.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        one(**batch).loss.backward()
        found.append({name: p.grad for name, p in one.named_parameters() if p.grad is not None})
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys() and len(plain) > 20
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
