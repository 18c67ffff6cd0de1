"""Stage 1 back-propagates what follows the first <bbox> alone: same loss, same gradients."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from gpt4roi.models import modeling
from gpt4roi.models.compat import CHECKPOINTING
from gpt4roi.models.frozen_prefix import prefix_length

EQUAL = 1e-6
WORDS = [40, 41, 42, 43, 44, 45]


def prompt(model, before, regions, after):
    """An image, words, region tokens with a word after each, more words; labels on the words after."""
    config = model.config
    image = [
        config.image_start_token_id,
        *[config.image_token_id] * config.image_seq_length,
        config.image_end_token_id,
    ]
    ids = [1, *image, *before, *[config.region_token_id, 50] * regions, *after]
    return ids, [-100] * (len(ids) - len(after)) + list(after)


def batch(model, rows):
    """Right-padded rows of (words before, regions, words after), with an image and boxes each."""
    built = [prompt(model, *row) for row in rows]
    length = max(len(ids) for ids, _ in built)
    ids, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for index, (row, targets) in enumerate(built):
        ids[index, : len(row)], mask[index, : len(row)] = torch.tensor(row), 1
        labels[index, : len(row)] = torch.tensor(targets)
    generator = torch.Generator().manual_seed(1)
    corners = [torch.rand(regions, 2, generator=generator) * 0.5 for _, regions, _ in rows]
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": torch.randn(
            len(rows), 3, model.config.image_size, model.config.image_size, generator=generator
        ),
        "boxes": [torch.cat([corner, corner + 0.4], dim=1) for corner in corners],
    }


def learn_regions_alone(model):
    model.train().requires_grad_(False)
    model.region_encoder.requires_grad_(True)
    return model


def loss_and_gradients(model, inputs):
    model.zero_grad(set_to_none=True)
    loss = model(**inputs, logits_at_targets_only=True).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both_ways(model, inputs, monkeypatch):
    """Returns the language model's passes, and loss and gradients, with a prefix apart and without."""
    lengths = []

    def counted(*args, **kwargs):
        lengths.append(args[1]["inputs_embeds"].shape[1])
        return passes(*args, **kwargs)

    passes = modeling.hidden_states
    with monkeypatch.context() as patch:
        patch.setattr(modeling, "hidden_states", counted)
        apart = loss_and_gradients(model, inputs)
    with monkeypatch.context() as patch:
        patch.setattr(modeling, "prefix_length", lambda *args: 0)
        whole = loss_and_gradients(model, inputs)
    assert lengths, "the prefix was not run apart"
    return apart, whole


def assert_equal(apart, whole):
    assert apart[0] == pytest.approx(whole[0], rel=EQUAL)
    assert apart[1].keys() == whole[1].keys()
    for name, expected in whole[1].items():
        largest = expected.abs().max().item()
        assert (apart[1][name] - expected).abs().max().item() <= EQUAL * max(largest, 1), name


@pytest.mark.parametrize("text_type", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_and_gradients_are_those_of_the_whole_graph(text_type, attention, monkeypatch):
    model = learn_regions_alone(tiny_model("clip", text_type))
    model.set_attn_implementation({"text_config": attention})
    inputs = batch(model, [(WORDS, 2, [60, 61, 62]), (WORDS[:2], 1, [63]), (WORDS[:4], 3, [64, 65])])
    apart, whole = both_ways(model, inputs, monkeypatch)
    assert_equal(apart, whole)
    assert sum(gradient.abs().sum().item() for gradient in apart[1].values()) > 0


def test_an_answer_before_the_first_region_counts_in_the_loss(monkeypatch):
    model = learn_regions_alone(tiny_model())
    inputs = batch(model, [(WORDS, 1, [60, 61])])
    inputs["labels"][0, 20:22] = inputs["input_ids"][0, 20:22]
    assert_equal(*both_ways(model, inputs, monkeypatch))


def test_a_batch_without_a_region_gives_zero_gradients_not_none(monkeypatch):
    model = learn_regions_alone(tiny_model())
    inputs = batch(model, [(WORDS, 0, [60, 61])])
    apart, whole = both_ways(model, inputs, monkeypatch)
    assert_equal(apart, whole)
    assert len(apart[1]) == len(list(model.region_encoder.parameters()))


def test_conversations_masked_from_each_other_stay_so(monkeypatch):
    model = learn_regions_alone(tiny_model())
    inputs = batch(model, [(WORDS, 2, [60, 61, 62]), (WORDS, 2, [63, 64, 65])])
    first = int((inputs["input_ids"][0] == model.config.region_token_id).nonzero()[0])
    segments = torch.zeros_like(inputs["input_ids"])
    segments[:, first - 2 : first + 2], segments[:, first + 2 :] = 1, 2
    apart, whole = both_ways(model, inputs | {"segment_ids": segments}, monkeypatch)
    assert_equal(apart, whole)
    assert both_ways(model, inputs, monkeypatch)[0][0] != apart[0]


def test_a_sliding_window_reaches_back_into_the_prefix(monkeypatch):
    model = tiny_model("clip", "mistral")
    inputs = batch(learn_regions_alone(model), [(WORDS, 2, [60, 61, 62]), (WORDS[:2], 1, [63])])
    model.language_model.config.sliding_window = None
    unlimited = loss_and_gradients(model, inputs)[0]
    model.language_model.config.sliding_window = 6
    apart, whole = both_ways(model, inputs, monkeypatch)
    assert_equal(apart, whole)
    assert abs(apart[0] - unlimited) > 1e-4


@pytest.mark.parametrize("learns", ["mm_projector", "language_model"])
def test_whatever_learns_before_the_regions_switches_it_off(learns):
    model = learn_regions_alone(tiny_model())
    inputs = batch(model, [(WORDS, 2, [60])])
    assert prefix_length(model, inputs["input_ids"], {}) == 1 + 18 + len(WORDS)
    next(getattr(model, learns).parameters()).requires_grad_(True)
    assert prefix_length(model, inputs["input_ids"], {}) == 0


def test_checkpointing_in_transformers_layers_switches_it_off_and_the_loss_stays():
    model = learn_regions_alone(tiny_model())
    inputs = batch(model, [(WORDS, 2, [60, 61])])
    apart = loss_and_gradients(model, inputs)
    getattr(model, f"{CHECKPOINTING}_enable")()
    assert prefix_length(model, inputs["input_ids"], {}) == 0
    assert_equal(loss_and_gradients(model, inputs), apart)


def test_a_language_model_that_caps_its_logits_makes_them_where_there_are_labels_alone():
    model = tiny_model("clip", "gemma2").train()
    inputs = batch(model, [(WORDS, 2, [60, 61]), (WORDS, 1, [62])])
    few = model(**inputs, logits_at_targets_only=True)
    inputs_without_labels = {name: value for name, value in inputs.items() if name != "labels"}
    every = model(**inputs_without_labels).logits
    wanted = inputs["labels"][:, 1:] != -100
    torch.testing.assert_close(few.logits, every[:, :-1][wanted], atol=1e-5, rtol=0)
