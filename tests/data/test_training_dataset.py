"""What a training reads: the same samples for the same seed, epoch and index, however many processes read them."""

import numpy as np
import torch
from recordings import ENTRIES
from torch.utils.data import DataLoader

from gpt4roi.data.registry import build_mixture
from gpt4roi.data.training_dataset import EncodedDataset


def encoded(processor, seed=3, epoch=1):
    dataset = EncodedDataset(build_mixture([ENTRIES["coco_det_train"], ENTRIES["vg"]]), processor, seed)
    dataset.set_epoch(epoch)
    return dataset


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key] for key, value in one.items()
    )


def test_the_same_seed_epoch_and_index_give_the_same_sample_whatever_the_number_of_workers(pyramid_processor):
    dataset = encoded(pyramid_processor)
    alone = [dataset[index] for index in range(len(dataset))]
    order = torch.randperm(len(dataset)).tolist()
    loader = DataLoader(dataset, sampler=order, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert all(same(sample, alone[index]) for index, sample in zip(order, loader, strict=True))


def test_another_epoch_and_another_seed_give_other_draws(pyramid_processor):
    first = encoded(pyramid_processor)[6]
    assert same(first, encoded(pyramid_processor)[6])
    assert not same(first, encoded(pyramid_processor, epoch=2)[6])
    assert not same(first, encoded(pyramid_processor, seed=4)[6])


def test_every_supervised_token_of_a_sample_with_bare_boxes_belongs_to_an_answer(pyramid_processor):
    """B4: after a question that ends in <bbox> the original's labels drifted by a token a round."""
    dataset = encoded(pyramid_processor)
    sample, read = dataset.mixture.sample(0, np.random.default_rng(0)), dataset.processor
    features = read.encode(sample)
    learnt = features["labels"][features["labels"] != -100].tolist()
    end = read.stop_token_ids[0]
    answers = [[*read.tokenizer(turn.text).input_ids, end] for turn in sample.turns[1::2]]
    assert learnt == [token for answer in answers for token in answer]
