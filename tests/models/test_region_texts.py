"""Which text a region is nearest to: LinearDiscriminant, and what the light encoder makes of it."""

from __future__ import annotations

import torch
from tiny import tiny_model

from gpt4roi.models.region_texts import DISCRIMINANT_WEIGHT, TEXT_TEMPERATURE, LinearDiscriminant, judge


def features_of_two_classes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float[2 count, 3] whose second channel tells classes, int64[2 count]; the first varies a lot in both."""
    noise = torch.randn(2 * count, 3, generator=torch.Generator().manual_seed(seed))
    of_class = torch.arange(2 * count) % 2
    return noise * torch.tensor([30.0, 0.2, 1.0]) + of_class[:, None] * torch.tensor([0.0, 2.0, 0.0]) + 5, of_class


def test_what_varies_within_classes_does_not_hide_what_tells_them_apart():
    discriminant = LinearDiscriminant(3, 0)
    discriminant.fit([features_of_two_classes(100)], 2)
    others, of_class = features_of_two_classes(100, seed=1)
    assert (discriminant(others).argmax(1) == of_class).float().mean() > 0.95
    means = torch.stack([features_of_two_classes(100)[0][number::2].mean(0) for number in (0, 1)])
    assert (torch.cdist(others, means).argmin(1) == of_class).float().mean() < 0.7


def test_batches_are_as_good_as_all_at_once_and_the_unknown_is_left_out():
    features, of_class = features_of_two_classes(20)
    whole, pieces = LinearDiscriminant(3, 2), LinearDiscriminant(3, 2)
    whole.fit([(features, of_class)], 2)
    unknown = torch.full((4, 3), 1e4), torch.full((4,), -1)
    pieces.fit([(features[:7], of_class[:7]), unknown, (features[7:], of_class[7:])], 2)
    torch.testing.assert_close(pieces(features), whole(features))


def test_a_class_without_features_is_near_to_nothing_and_all_are_before_the_fit():
    features, of_class = features_of_two_classes(20)
    discriminant = LinearDiscriminant(3, 3)
    assert torch.equal(discriminant(features), torch.zeros(40, 3))
    discriminant.fit([(features, 2 * of_class)], 3)
    cosines = discriminant(features)
    assert not cosines[:, 1].any() and cosines[:, [0, 2]].abs().min() > 0
    torch.testing.assert_close(discriminant.prototypes.norm(dim=1), torch.tensor([1.0, 0.0, 1.0]))


def test_the_encoder_weighs_texts_by_it_and_trusts_itself_more_where_both_agree():
    names = ["a fox", "a hen"]
    encoder = tiny_model("pyramid", tokens_per_region=2, class_names=names).region_encoder
    generator = torch.Generator().manual_seed(0)
    encoder.set_texts(torch.randn(3, 2, 32, generator=generator))
    torch.nn.init.constant_(encoder.gate.weight[:, 2], 1)  # the similarity of the nearest text
    pooled = torch.randn(6, 168, 4, 4, generator=generator)
    with torch.no_grad():
        _, before = encoder.learned(pooled)
        encoder.discriminant.fit([(encoder.coarse(pooled), torch.arange(6) % 3)], 3)
        _, after = encoder.learned(pooled)
        weighed = DISCRIMINANT_WEIGHT / TEXT_TEMPERATURE * encoder.discriminant(encoder.coarse(pooled))
    torch.testing.assert_close(after.of_texts, (before.of_texts.log() + weighed).softmax(-1))
    assert torch.equal(after.of_texts.argmax(1), torch.arange(6) % 3)
    assert (after.trust > before.trust).all()


def test_texts_added_later_leave_the_means_of_those_before():
    encoder = tiny_model("pyramid", tokens_per_region=2, class_names=["a fox", "a hen"]).region_encoder
    encoder.set_texts(torch.zeros(2, 2, 32))
    encoder.discriminant.fit([(torch.randn(8, 672), torch.arange(8) % 2)], 2)
    before = encoder.discriminant.prototypes
    assert before.any(dim=1).all()
    encoder.set_texts(torch.zeros(3, 2, 32), torch.tensor([1, -1, 0]))
    after = encoder.discriminant.prototypes
    assert torch.equal(after[[2, 0]], before) and not after[1].any()


def test_where_all_regions_of_the_training_have_one_text_a_region_is_judged_too():
    gate = torch.nn.Linear(6, 1)
    one = judge(torch.tensor([[0.3], [0.9]]), torch.zeros(2, 5), gate)
    assert one.of_texts.tolist() == [[1.0], [1.0]] and one.facts[:, 3].tolist() == [0.0, 0.0]
    assert one.trust[0] != one.trust[1]
