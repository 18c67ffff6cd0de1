"""Samples of one length stand together, steps keep their samples, and workers hand out what one process would."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import losses, stage1

from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset
from gpt4roi.processing.batch import RegionCollator
from gpt4roi.train.sampler import StepSampler, longest_first
from gpt4roi.train.trainer import GPT4RoITrainer


def lengths_only(lengths, seed=0, epoch=0):
    """What a sampler looks at of a data set."""

    class Lengths(SimpleNamespace):
        def __len__(self):
            return len(lengths)

    return Lengths(seed=seed, epoch=epoch, text_length=lengths.__getitem__)


def padding(order, lengths, size):
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches) - sum(lengths)


def test_every_step_keeps_its_samples_and_needs_less_padding():
    lengths = [int(number) for number in torch.randint(10, 500, (64,), generator=torch.Generator().manual_seed(0))]
    order = list(StepSampler(lengths_only(lengths), 16))
    unsorted = torch.randperm(64, generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, 64, 16):
        assert set(order[start : start + 16]) == set(unsorted[start : start + 16])
    assert padding(order, lengths, 2) < 0.25 * padding(unsorted, lengths, 2)


def test_another_epoch_has_another_order_and_the_same_epoch_the_same():
    lengths = list(range(40))
    first, again = (list(StepSampler(lengths_only(lengths), 4)) for _ in range(2))
    assert first == again != list(StepSampler(lengths_only(lengths, epoch=1), 4))
    assert sorted(first) == lengths


def test_steps_that_are_passed_over_are_not_looked_at_and_change_no_later_one():
    lengths, looked = list(range(14)), []
    sampler = StepSampler(lengths_only(lengths), 4)
    whole = list(sampler)
    sampler.dataset.text_length = lambda index: looked.append(index) or lengths[index]
    sampler.passed = 2
    assert list(sampler)[8:] == whole[8:]
    assert sorted(looked) == sorted(whole[8:])
    assert list(sampler) == whole  # the next epoch begins at its first step


def test_samples_of_one_length_keep_one_order():
    assert longest_first([3, 1, 2], lambda index: 5) == longest_first([2, 3, 1], lambda index: 5) == [1, 2, 3]


@pytest.mark.heavy
def test_the_batches_of_a_step_may_be_cut_in_any_way_without_changing_its_loss(parts, tmp_path):
    whole, halves = (
        stage1(tmp_path / name, parts, "--per_device_train_batch_size", size, "--global_batch_size", "8", steps=6)
        for name, size in (("whole", "8"), ("halves", "2"))
    )
    assert losses(halves) == pytest.approx(losses(whole), rel=1e-5)
    assert losses(whole)[-1] < 0.9 * losses(whole)[0]  # later losses hang on the gradients of earlier steps


@pytest.mark.heavy
@pytest.mark.parametrize("words", [(), ("--data_seed", "5")])
def test_a_step_has_the_same_samples_however_it_is_cut(parts, tmp_path, monkeypatch, words):
    batches = []
    told = GPT4RoITrainer.set_batch_info

    def watch(trainer, supervised, sources):
        batches.append(sources)
        told(trainer, supervised, sources)

    monkeypatch.setattr(GPT4RoITrainer, "set_batch_info", watch)
    for size in ("4", "2"):
        cut = ("--per_device_train_batch_size", size, "--global_batch_size", "4")
        stage1(tmp_path / size, parts, *cut, *words, steps=3)
    assert [len(batch) for batch in batches] == [4] * 3 + [2] * 6
    drawn = [source for batch in batches for source in batch]
    for step in (0, 4, 8):  # the third one begins another epoch
        assert set(drawn[step : step + 4]) == set(drawn[step + 12 : step + 16])


def test_workers_hand_out_what_one_process_would(parts, clip_processor):
    dataset = EncodedDataset(build_mixture(parts / "train.jsonl"), clip_processor, 3)
    dataset.set_epoch(2)
    options = {"batch_size": 4, "collate_fn": RegionCollator(0), "shuffle": False}
    alone, with_workers = (torch.utils.data.DataLoader(dataset, num_workers=count, **options) for count in (0, 2))
    for one, other in zip(alone, with_workers, strict=True):
        assert one.keys() == other.keys()
        assert torch.equal(one["input_ids"], other["input_ids"])
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert one["sources"] == other["sources"]


def test_a_sample_s_length_is_known_without_its_image(parts, clip_processor, monkeypatch):
    dataset = EncodedDataset(build_mixture(parts / "train.jsonl"), clip_processor, 0)
    monkeypatch.setattr("gpt4roi.processing.images.load_image", lambda *args: pytest.fail("the image was opened"))
    sample = dataset.mixture.sample(0, np.random.default_rng([0, 0, 0]))
    assert dataset.text_length(0) == sum(len(turn.text) for turn in sample.turns)
