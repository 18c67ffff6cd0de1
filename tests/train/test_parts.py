import pytest
import torch

from gpt4roi.errors import InputError
from gpt4roi.train.alignment import AlignmentLoss, RegionTexts
from gpt4roi.train.param_groups import param_groups, parse_modules, parse_rates, set_trainable, trainable_table


def test_only_the_named_modules_learn(clip_model):
    set_trainable(clip_model, parse_modules("region_encoder"))
    assert {name.split(".")[0] for name, p in clip_model.named_parameters() if p.requires_grad} == {"region_encoder"}


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
