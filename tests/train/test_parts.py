import pytest
import torch

from gpt4roi.errors import InputError
from gpt4roi.models.region_texts import Judgement
from gpt4roi.models.vocabulary import embed_texts
from gpt4roi.train.alignment import AlignmentLoss, RegionTexts
from gpt4roi.train.param_groups import param_groups, parse_modules, parse_rates, set_trainable, trainable_table


def test_only_the_named_modules_learn(clip_model):
    set_trainable(clip_model, parse_modules("region_encoder"))
    assert {name.split(".")[0] for name, p in clip_model.named_parameters() if p.requires_grad} == {"region_encoder"}


def test_a_part_of_a_module_can_learn_alone(pyramid_model):
    set_trainable(pyramid_model, parse_modules("mm_projector,region_encoder.place"))
    learns = {name for name, p in pyramid_model.named_parameters() if p.requires_grad}
    assert {name for name in learns if not name.startswith("mm_projector.")} == {"region_encoder.place.weight"}
    with pytest.raises(InputError, match=r"has no region_encoder.plaec; expected region_encoder or .*\.place"):
        set_trainable(pyramid_model, ("region_encoder.plaec",))


def test_a_star_in_a_path_names_the_same_part_of_every_layer(pyramid_model):
    set_trainable(pyramid_model, parse_modules("language_model.model.layers.*.self_attn"))
    learns = {name for name, p in pyramid_model.named_parameters() if p.requires_grad}
    layers = range(len(pyramid_model.language_model.model.layers))
    assert {name.partition("self_attn.")[0] for name in learns} == {f"language_model.model.layers.{i}." for i in layers}
    with pytest.raises(InputError, match=r"has no language_model\.\*\.attention; expected language_model or"):
        set_trainable(pyramid_model, ("language_model.*.attention",))


def test_each_learning_rate_and_decay_has_its_group_and_decay_falls_on_all(clip_model):
    set_trainable(clip_model, ("region_encoder", "mm_projector"))
    rates = parse_rates("mm_projector=1e-4")
    groups = param_groups(clip_model, 1e-3, 0.01, rates, parse_rates("region_encoder=0.2", "--weight_decays"))
    counts = {(group["lr"], group["weight_decay"]): len(group["params"]) for group in groups}
    assert counts == {(1e-4, 0.01): 2, (1e-3, 0.2): len(list(clip_model.region_encoder.parameters()))}


def test_the_table_counts_what_learns_and_says_how_fast(clip_model):
    set_trainable(clip_model, ("region_encoder", "mm_projector"))
    table = trainable_table(clip_model, 1e-3, 0.01, {"mm_projector": 1e-4}, {"region_encoder": 0.2})
    lines = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    count = sum(p.numel() for p in clip_model.region_encoder.parameters())
    assert lines["region_encoder"] == [f"{count:,d}", f"{count:,d}", "0.001,", "0.2"]
    assert lines["mm_projector"] == ["544", "544", "0.0001,", "0.01"]
    assert lines["language_model"][1:] == ["0", "frozen"]


@pytest.mark.parametrize("text", ["region_encoder", "clip=1", "mm_projector=-1", "mm_projector=1,mm_projector=2"])
def test_rates_that_mean_nothing_are_refused(text):
    with pytest.raises(InputError, match=r"--weight_decays: got .*expected module=number, once for each of"):
        parse_rates(text, "--weight_decays")


@pytest.mark.parametrize("text", ["", "region_encoder,clip", "everything"])
def test_unknown_modules_are_refused(text):
    with pytest.raises(InputError, match="expected some of region_encoder, mm_projector, language_model"):
        parse_modules(text)


def test_targets_weigh_rare_words_more_than_common_ones(tokenizer):
    table = torch.eye(len(tokenizer))
    texts = RegionTexts.of(["aab", "aac", "aad"], tokenizer, table)
    letter = {name: tokenizer.convert_tokens_to_ids(name) for name in "abc"}
    assert texts.texts == ["aab", "aac", "aad"]
    assert texts.targets[0, letter["b"]] > 0.5
    assert abs(float(texts.targets[0, letter["a"]])) < 1e-6
    assert torch.allclose(texts.targets.norm(dim=1), torch.ones(3))


def test_texts_and_targets_are_read_as_they_were_written(tokenizer, tmp_path):
    texts = RegionTexts.of(["a fox", "a hen"], tokenizer, torch.randn(len(tokenizer), 8))
    texts.save(tmp_path / "texts.safetensors")
    again = RegionTexts.load(tmp_path / "texts.safetensors")
    assert again.index == {"a fox": 0, "a hen": 1}
    assert torch.equal(again.targets, texts.targets)


def test_the_alignment_loss_is_least_for_the_right_text_and_ignores_unknown_ones():
    targets = torch.nn.functional.normalize(torch.eye(3) - 1 / 3, dim=-1)
    loss = AlignmentLoss(targets)
    right, wrong = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    assert loss(torch.eye(3), right) < 0.01 < loss(torch.eye(3), wrong)
    assert loss.count_hits(torch.eye(3), right) == 3
    assert loss.count_hits(torch.eye(3), wrong) == 0
    assert loss(torch.eye(3), torch.tensor([-1, -1, -1])) == 0


def test_each_token_of_a_region_is_drawn_to_its_token_of_the_text(tokenizer):
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    texts = RegionTexts.of(["a fox", "a hen"], tokenizer, table, count=4)
    rows = [[*tokenizer(f" {text}").input_ids[:3], tokenizer.eos_token_id] for text in texts.texts]
    centre = table[torch.tensor(rows)].mean(0)
    expected = torch.nn.functional.normalize(table[torch.tensor(rows)] - centre, dim=-1)
    torch.testing.assert_close(texts.targets, expected.flatten(1))
    torch.testing.assert_close(texts.centre, centre)


def test_short_texts_are_filled_up_with_the_end_of_text(tokenizer):
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    rows = embed_texts([[5], [6, 7, 8, 9]], table, 3, tokenizer.eos_token_id)
    assert torch.equal(rows[0], table[[5, tokenizer.eos_token_id, tokenizer.eos_token_id]])
    assert torch.equal(rows[1], table[[6, 7, tokenizer.eos_token_id]])


def test_several_tokens_are_aligned_to_the_words_themselves_and_saved_with_their_centre(tokenizer, tmp_path):
    table = torch.randn(len(tokenizer), 8, generator=torch.Generator().manual_seed(0))
    RegionTexts.of(["fox", "hen", "two"], tokenizer, table, count=4).save(tmp_path / "texts.safetensors")
    texts = RegionTexts.load(tmp_path / "texts.safetensors")
    loss = AlignmentLoss(texts.targets, texts.centre)
    ids = [[*tokenizer(f" {text}").input_ids[:3], tokenizer.eos_token_id] for text in texts.texts]
    words = table[torch.tensor(ids)]
    right, wrong = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    assert loss.count_hits(words.flatten(0, 1), right) == 3
    # The blank that all begin with and the padding that all end with have no direction: half of the cosine.
    assert float(loss(words.flatten(0, 1), right)) == pytest.approx(0.5, abs=0.01)
    assert loss(words.flatten(0, 1), wrong) > 5
    shifted = (words + 1).flatten(0, 1)
    assert loss(shifted, right) > 0.55  # a common offset is an error, as a language model has to read the words


def judged(trust: list[float], of_classes: list[list[float]]) -> Judgement:
    return Judgement(
        torch.zeros(len(trust), 6), torch.tensor(trust), torch.zeros(len(trust), 3), torch.tensor(of_classes)
    )


def test_a_region_that_the_head_names_right_only_trains_whom_to_trust():
    targets = torch.nn.functional.normalize(torch.eye(3) - 1 / 3, dim=-1)
    loss = AlignmentLoss(targets, torch.zeros(1, 3), torch.tensor([2, -1]), head_weight=4)
    content, right = torch.eye(3), torch.tensor([0, 1, 2])
    unsure = judged([0.0, 0.0, 0.0], [[0.5, 0.5], [0.0, 1.0], [0.6, 0.4]])
    named = judged([0.0, 0.0, 0.0], [[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    half = torch.tensor(0.5).log().neg()
    torch.testing.assert_close(loss(content, right, unsure), loss(content, right) + half)
    torch.testing.assert_close(loss(content, right, named), loss(content, torch.tensor([0, 1, -1])) + half)
    assert loss(content, right, judged([9.0, 9, -9], [[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])) < loss(
        content, right, named
    )


def test_what_the_head_names_right_can_be_drawn_to_all_texts_alike():
    judgement = Judgement(
        torch.zeros(2, 6),
        torch.zeros(2),
        torch.tensor([[0.8, 0.1, 0.1], [0.9, 0.05, 0.05]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
    )
    content, right, classes = torch.eye(3)[:2], torch.tensor([2, 1]), torch.tensor([2, -1])
    without, with_it = (
        AlignmentLoss(torch.eye(3), None, classes, outlier_weight=weight)(content, right, judgement)
        for weight in (0, 3)
    )
    of_first = -torch.tensor([0.8, 0.1, 0.1]).log().mean()
    torch.testing.assert_close(with_it - without, 3 * of_first / 2)


def test_the_head_counts_more_in_whom_to_trust():
    targets = torch.nn.functional.normalize(torch.eye(3) - 1 / 3, dim=-1)
    content, right = torch.eye(3), torch.tensor([0, 1, 2])
    trusted = judged([2.0, 2.0, 2.0], [[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    losses = [AlignmentLoss(targets, None, torch.tensor([2, -1]), weight)(content, right, trusted) for weight in (1, 4)]
    wrong, well = torch.tensor(2.0).exp().log1p(), torch.tensor(-2.0).exp().log1p()
    torch.testing.assert_close(losses[1] - losses[0], (4 * wrong + 2 * well) / 6 - (wrong + 2 * well) / 3)


def test_what_the_head_names_right_counts_as_found():
    loss = AlignmentLoss(torch.eye(3), torch.zeros(1, 3), torch.tensor([2, -1]))
    judgement = judged([0.0, 0.0, 0.0], [[0.5, 0.5], [0.0, 1.0], [1.0, 0.0]])
    wrong = torch.tensor([1, 2, 2])
    assert loss.count_hits(torch.eye(3)[[0, 1, 0]], wrong) == 0
    assert loss.count_hits(torch.eye(3)[[0, 1, 0]], wrong, judgement) == 1
