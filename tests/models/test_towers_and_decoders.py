"""Any tower with any decoder: forward, backward, and answers in a batch."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

ROUND_OFF = 2e-5


def prompt(model, words: list[int], regions: int) -> list[int]:
    """An image, then words between region tokens; no byte of it is an added token."""
    config = model.config
    image = [
        config.image_start_token_id,
        *[config.image_token_id] * config.image_seq_length,
        config.image_end_token_id,
    ]
    return [1, *image, *words, *[config.region_token_id, words[-1]] * regions]


def batch(model, side: str) -> dict:
    """Two samples of different lengths with two boxes and one, as a padded batch and what belongs to it."""
    rows = [prompt(model, [40, 41, 42, 43, 44], 2), prompt(model, [50, 51], 1)]
    length = max(len(row) for row in rows)
    ids, mask = torch.zeros(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(length - len(row), None) if side == "left" else slice(0, len(row))
        ids[index, where], mask[index, where] = torch.tensor(row), 1
    size = model.config.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    boxes = [torch.tensor([[0.1, 0.1, 0.5, 0.9], [0.3, 0.0, 1.0, 0.4]]), torch.tensor([[0.5, 0.5, 0.9, 0.8]])]
    return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels, "boxes": boxes}


def alone(inputs: dict, index: int) -> dict:
    """One sample of a batch without its padding."""
    kept = inputs["attention_mask"][index].bool()
    return {
        "input_ids": inputs["input_ids"][index : index + 1, kept],
        "pixel_values": inputs["pixel_values"][index : index + 1],
        "boxes": inputs["boxes"][index : index + 1],
    }


TOWERS = ["clip", "siglip", "dinov2", "dinov2_with_registers", "pyramid"]
DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma2"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "text_type"), [(kind, "llama") for kind in TOWERS] + [("clip", decoder) for decoder in DECODERS[1:]]
)
def test_a_left_padded_batch_answers_as_each_sample_alone(kind, text_type):
    model = tiny_model(kind, text_type)
    inputs = batch(model, "left")
    answers = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)
    new = answers[:, inputs["input_ids"].shape[1] :]
    for index in range(2):
        single = alone(inputs, index)
        answer = model.generate(**single, max_new_tokens=6, do_sample=False, eos_token_id=None)
        assert answer[0, single["input_ids"].shape[1] :].tolist() == new[index].tolist()
        with torch.no_grad():
            apart, together = model(**single).logits[0], model(**inputs).logits[index]
        kept = inputs["attention_mask"][index].bool()
        torch.testing.assert_close(together[kept], apart, atol=ROUND_OFF, rtol=0)


@pytest.mark.parametrize(
    ("kind", "text_type"), [(kind, "llama") for kind in TOWERS] + [("clip", decoder) for decoder in DECODERS[1:]]
)
def test_every_part_but_the_tower_learns(kind, text_type):
    model = tiny_model(kind, text_type).train()
    inputs = batch(model, "right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    output = model(**inputs, labels=labels, logits_at_targets_only=True)
    output.loss.backward()
    full = model(**inputs, labels=labels)
    assert output.loss.item() == pytest.approx(full.loss.item(), abs=1e-5)
    assert not model.vision_tower.backbone.training
    for name, parameter in model.named_parameters():
        if name.startswith("vision_tower."):
            assert not parameter.requires_grad and parameter.grad is None
        else:
            assert parameter.grad is not None, name
    for part in (model.region_encoder, model.mm_projector, model.language_model):
        assert sum(parameter.grad.abs().sum().item() for parameter in part.parameters()) > 0


@pytest.mark.parametrize(("kind", "dropped"), [("clip", 1), ("siglip", 0), ("dinov2", 1), ("dinov2_with_registers", 5)])
def test_class_and_register_tokens_are_no_cells_of_a_map(kind, dropped):
    model = tiny_model(kind)
    pixels = batch(model, "right")["pixel_values"]
    tokens, maps = model.encode_image(pixels)
    states = model.vision_tower.backbone(pixels, output_hidden_states=True).hidden_states
    assert states[-2].shape[1] == 16 + dropped
    assert torch.equal(tokens, states[-2][:, dropped:])
    assert torch.equal(maps[0].flatten(2).transpose(1, 2), states[-3][:, dropped:])
    assert [tuple(level.shape) for level in maps] == [(2, 16, 4, 4)] * 2


def test_a_pyramid_gives_its_own_levels_and_the_cells_of_the_last_one_as_tokens(pyramid_model):
    tower = pyramid_model.vision_tower
    tokens, maps = pyramid_model.encode_image(batch(pyramid_model, "right")["pixel_values"])
    assert [tuple(level.shape) for level in maps] == [(2, 24, 16, 16), (2, 32, 8, 8), (2, 48, 4, 4), (2, 64, 2, 2)]
    assert tower.level_strides == [4, 8, 16, 32]
    assert torch.equal(tokens, maps[-1].flatten(2).transpose(1, 2))


def test_the_original_s_region_encoder_also_reads_a_native_pyramid():
    model = tiny_model(
        "pyramid", region_encoder_type="gpt4roi", projector_type="linear", fusion_groups=4, roi_output_size=3
    )
    inputs = batch(model, "right")
    output = model(**inputs)
    assert output.region_features.shape == (3, 32)
    assert model.region_encoder.fusion.sizes == [16, 8, 4, 2]


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_kept_features_of_an_image_serve_instead_of_it(kind):
    model = tiny_model(kind)
    inputs = batch(model, "left")
    tokens, maps = model.encode_image(inputs["pixel_values"])
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(model(**rest, image_tokens=tokens, feature_maps=maps).logits, expected)
        assert torch.equal(model(**rest, feature_maps=maps).logits, expected)
    answers = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert model.generate(**rest, feature_maps=maps, max_new_tokens=4, do_sample=False).tolist() == answers.tolist()


def test_beams_of_a_batch_find_the_images_and_boxes_of_their_samples(clip_model):
    inputs = batch(clip_model, "left")
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "eos_token_id": None}
    together = clip_model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
    for index in range(2):
        single = alone(inputs, index)
        apart = clip_model.generate(**single, **options)[0, single["input_ids"].shape[1] :]
        assert apart.tolist() == together[index].tolist()


def test_a_cache_made_by_hand_continues_at_the_right_positions(clip_model):
    inputs = batch(clip_model, "left")
    with torch.no_grad():
        whole = clip_model(**inputs).logits[:, -1]
        first = {**inputs, "input_ids": inputs["input_ids"][:, :-1], "attention_mask": inputs["attention_mask"][:, :-1]}
        cache = clip_model(**first, use_cache=True).past_key_values
        last = clip_model(
            inputs["input_ids"][:, -1:], attention_mask=inputs["attention_mask"], past_key_values=cache
        ).logits[:, -1]
    torch.testing.assert_close(last, whole, atol=ROUND_OFF, rtol=0)


def test_regions_may_be_asked_about_after_their_image_is_in_the_cache(clip_model):
    inputs = alone(batch(clip_model, "left"), 0)
    image = clip_model.config.image_seq_length + 3
    with torch.no_grad():
        whole = clip_model(**inputs).logits[:, -1]
        maps = clip_model.encode_image(inputs["pixel_values"])[1]
        cache = clip_model(inputs["input_ids"][:, :image], feature_maps=maps, use_cache=True).past_key_values
        rest = clip_model(
            inputs["input_ids"][:, image:], feature_maps=maps, boxes=inputs["boxes"], past_key_values=cache
        ).logits[:, -1]
    torch.testing.assert_close(rest, whole, atol=ROUND_OFF, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "pyramid"])
def test_a_model_in_bfloat16_answers_from_float32_images_and_boxes(kind):
    exact, model = tiny_model(kind), tiny_model(kind).to(torch.bfloat16)
    inputs = batch(model, "left")
    with torch.no_grad():
        output, expected = model(**inputs), exact(**inputs)
    assert output.region_features.dtype == torch.bfloat16
    difference = (output.region_features.float() - expected.region_features).norm()
    assert difference < 0.05 * expected.region_features.norm()
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
