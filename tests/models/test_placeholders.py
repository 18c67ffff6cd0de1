"""Placeholders are counted, embeddings land on their own tokens, segments do not see each other."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from gpt4roi.errors import InputError
from gpt4roi.models.loss import cross_entropy, next_tokens
from gpt4roi.models.placeholders import match_images_to_samples, positions, scatter, segment_mask

NONE = torch.zeros(0, 4)
ONE = torch.tensor([[0.1, 0.2, 0.6, 0.9]])
TWO = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 0.5, 0.5]])


@pytest.fixture(scope="module")
def config():
    return tiny_model().config


@pytest.fixture
def tokens(config):
    """Writes a sample: P a whole image, R a region, other letters themselves; padded to 40."""
    image = [config.image_start_token_id, *[config.image_token_id] * 16, config.image_end_token_id]

    def write(text: str) -> list[int]:
        ids: list[int] = []
        for letter in text:
            ids += image if letter == "P" else [config.region_token_id if letter == "R" else ord(letter)]
        return ids + [0] * (40 - len(ids))

    return lambda *texts: torch.tensor([write(text) for text in texts])


def rows(config, ids, boxes, has_past=False):
    return match_images_to_samples(ids, boxes, config, 16, has_past)


def test_images_belong_to_the_samples_that_hold_image_tokens(config, tokens):
    assert rows(config, tokens("PaR", "bc", "PRR"), [ONE, TWO]) == [0, 1]


def test_images_of_every_sample_skip_the_text_alone(config, tokens):
    assert rows(config, tokens("PaR", "bc", "PRR"), [ONE, NONE, TWO]) == [0, 2]


def test_text_alone_has_no_image(config, tokens):
    assert rows(config, tokens("ab", "cd"), []) == []


def test_a_cached_image_has_no_tokens_left(config, tokens):
    assert rows(config, tokens("aR", "bRR"), [ONE, TWO], has_past=True) == [0, 1]


@pytest.mark.parametrize(
    ("texts", "boxes", "message"),
    [
        (["PRR"], [ONE], "sample 0 of the batch: 2 <bbox> tokens but 1 boxes"),
        (["Pa", "PR"], [NONE, TWO], "sample 1 of the batch: 1 <bbox> tokens but 2 boxes"),
        (["aR"], [], "sample 0 of the batch: 1 <bbox> tokens but 0 boxes"),
        (["P", "P", "a"], [NONE], "2 of 3 samples hold an image's tokens, but 1 images were given"),
        (["P"], [], "1 of 1 samples hold an image's tokens, but 0 images were given"),
        (["PP"], [NONE], "sample 0 of the batch: 32 <im_patch> tokens, but an image has 16"),
        (["P", "a"], [NONE, ONE], "image 1 of the batch: 1 boxes, but its sample is text alone"),
    ],
)
def test_a_mismatch_is_refused_with_both_numbers(config, tokens, texts, boxes, message):
    with pytest.raises(InputError, match=message):
        rows(config, tokens(*texts), boxes)


@pytest.mark.parametrize("change", ["start", "end", "hole"])
def test_image_tokens_must_stand_together_between_start_and_end(config, tokens, change):
    ids = tokens("aPb")
    first = 2
    if change == "hole":
        ids[0, first + 15 : first + 18] = torch.tensor([5, config.image_token_id, config.image_end_token_id])
    else:
        ids[0, 1 if change == "start" else 18] = 5
    with pytest.raises(InputError, match="16 <im_patch> tokens must stand together between <im_start> and <im_end>"):
        rows(config, ids, [NONE])


def test_rows_land_at_their_own_tokens_in_batch_order():
    embeddings = torch.zeros(2, 4, 2)
    mask = torch.tensor([[False, True, False, True], [True, False, False, False]])
    filled = scatter(embeddings, mask, torch.tensor([[1.0, 1.5], [2.0, 2.5], [3.0, 3.5]]))
    assert filled[:, :, 0].tolist() == [[0, 1, 0, 2], [3, 0, 0, 0]]
    assert filled[:, :, 1].tolist() == [[0, 1.5, 0, 2.5], [3.5, 0, 0, 0]]


def test_each_region_s_embedding_stands_at_its_own_token(clip_model, tokens):
    ids = tokens("PaR", "bc", "PRdR")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = clip_model.get_region_features(pixels, [ONE, TWO])
        embeddings, image_features, region_features = clip_model.embed(ids, pixels, [ONE, TWO])
    assert torch.equal(features, region_features)
    assert torch.equal(embeddings[0, 19], features[0])
    assert torch.equal(embeddings[2, 18], features[1])
    assert torch.equal(embeddings[2, 20], features[2])
    assert torch.equal(embeddings[2, 1:17], image_features[1])
    assert torch.equal(embeddings[1], clip_model.get_input_embeddings()(ids[1]))


def test_boxes_for_another_number_of_images_are_refused(clip_model, tokens):
    with pytest.raises(InputError, match="1 images but boxes for 2"):
        clip_model(tokens("PR"), pixel_values=torch.zeros(1, 3, 32, 32), boxes=[ONE, ONE])


def test_images_of_another_size_are_refused(clip_model, tokens):
    with pytest.raises(InputError, match=r"must be \[K, 3, 32, 32\], got \[1, 3, 64, 64\]"):
        clip_model(tokens("P"), pixel_values=torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("box", [[0.5, 0.1, 0.2, 0.9], [0.1, 0.1, float("nan"), 0.9], [-3e38, 0.1, 3e38, 0.9]])
def test_exchanged_corners_no_numbers_and_numbers_that_overflow_are_refused(clip_model, tokens, box):
    with pytest.raises(InputError, match=r"image 0 of the batch: box 2 is .* expected finite x1, y1, x2, y2"):
        clip_model(tokens("PRR"), pixel_values=torch.zeros(1, 3, 32, 32), boxes=[torch.tensor([TWO[1].tolist(), box])])


def test_a_batch_of_text_alone_gives_zero_gradients_to_regions_and_projector(clip_model, tokens):
    ids = tokens("abcd", "efgh")[:, :4]
    clip_model(ids, labels=ids).loss.backward()
    for part in (clip_model.region_encoder, clip_model.mm_projector):
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in part.parameters())


def test_positions_count_tokens_and_not_padding():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert positions(mask, 5).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert positions(mask, 1).tolist() == [[2], [2]]


def test_a_segment_sees_the_prefix_and_itself_and_never_the_future():
    mask = segment_mask(torch.tensor([[0, 0, 1, 1, 2, 2, 0]]), torch.tensor([[1, 1, 1, 1, 1, 1, 0]]), torch.float32)
    visible = (mask[0, 0] == 0).int()
    assert visible.tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]
    assert mask[0, 0, 0, 1] == torch.finfo(torch.float32).min


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_segments_give_the_logits_of_conversations_apart(tokens, attention):
    model = tiny_model()
    model.set_attn_implementation(attention)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prefix, first, second = tokens("P")[0, :18], tokens("aRbc")[0, :4], tokens("dRe")[0, :3]
    together = torch.cat([prefix, first, second])[None]
    segments = torch.tensor([[0] * 18 + [1] * 4 + [2] * 3])
    numbers = torch.tensor([[*range(18), *range(18, 22), *range(18, 21)]])
    padding = torch.tensor([[0, 0]])
    with torch.no_grad():
        output = model(
            torch.cat([together, padding], 1),
            torch.tensor([[1] * 25 + [0, 0]]),
            pixels,
            [TWO],
            segment_ids=torch.cat([segments, padding], 1),
            position_ids=torch.cat([numbers, padding], 1),
        ).logits[0]
        one = model(torch.cat([prefix, first])[None], pixel_values=pixels, boxes=[TWO[:1]]).logits[0]
        two = model(torch.cat([prefix, second])[None], pixel_values=pixels, boxes=[TWO[1:]]).logits[0]
    torch.testing.assert_close(output[:22], one, atol=2e-5, rtol=0)
    torch.testing.assert_close(output[22:25], two[18:], atol=2e-5, rtol=0)


def test_generate_refuses_several_independent_turns(clip_model, tokens):
    ids = tokens("Pab")[:, :20]
    segments = torch.tensor([[0] * 18 + [1, 2]])
    with pytest.raises(InputError, match="one question a sample"):
        clip_model.generate(
            input_ids=ids, segment_ids=segments, pixel_values=torch.zeros(1, 3, 32, 32), max_new_tokens=1
        )


def test_loss_is_the_mean_over_labels_or_over_all_items_of_a_step():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    targets = torch.tensor([0, 1, 0])
    total = 2 * 0.6931472 + 0.1269280
    assert cross_entropy(logits, targets).item() == pytest.approx(total / 3, abs=1e-6)
    assert cross_entropy(logits, targets, 12).item() == pytest.approx(total / 12, abs=1e-6)
    assert cross_entropy(logits, targets, torch.tensor(12)).item() == pytest.approx(total / 12, abs=1e-6)
    assert cross_entropy(logits[:0], targets[:0]).item() == 0


def test_a_label_is_learnt_from_the_token_before_it():
    wanted, targets = next_tokens(torch.tensor([[5, -100, 7, 8], [-100, 3, -100, -100]]))
    assert wanted.tolist() == [[False, True, True], [True, False, False]]
    assert targets.tolist() == [7, 8, 3]


def test_a_prompt_of_text_alone_calls_none_of_our_modules_and_one_with_labels_calls_them():
    model, called = tiny_model("clip").eval(), []
    for part in (model.mm_projector, model.region_encoder):
        part.register_forward_hook(lambda module, *_: called.append(module))
    ids = torch.tensor([[1, 50, 60, 2]])
    with torch.no_grad():
        answered = model(input_ids=ids).logits
        assert called == []
        evaluated = model(input_ids=ids, labels=ids)
    assert called == [model.mm_projector, model.region_encoder]
    torch.testing.assert_close(evaluated.logits, answered)


def test_under_uniform_forward_text_alone_calls_the_tower_unless_features_are_kept():
    model, called = tiny_model("clip").eval(), []
    model.set_uniform_forward(True)
    model.vision_tower.register_forward_hook(lambda *_: called.append("tower"))
    ids = torch.tensor([[1, 50, 60, 2]])
    kept = model(input_ids=ids, labels=ids, feature_maps=[])
    assert called == []
    shown = model(input_ids=ids, labels=ids)
    assert called == ["tower"]
    assert shown.loss.item() == kept.loss.item()
