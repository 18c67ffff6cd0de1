"""Length-grouping sampler: the samples of a step sorted by length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from gpt4roi.data.training_dataset import EncodedDataset


def longest_first(samples: Sequence[int], length_of: Callable[[int], int]) -> list[int]:
    """Sorts the samples of one step by length, so that the batches that it is cut into have little padding.

    A step's loss is a sum over its samples divided by their labels: their order changes nothing but the padding.
    """
    return sorted(samples, key=lambda index: (-length_of(index), index))


class StepSampler(Sampler[int]):
    """Draws every sample once an epoch, in an order of the seed and the epoch, each step's samples longest first.

    The steps hold the samples that they would hold unsorted.

    Args:
        dataset: The training data.
        step_size: Samples in a step over all devices.
        seed: Of the order, by default the data set's.

    Attributes:
        passed: Steps of the next epoch that a resumed run has done; the lengths of their samples are not read.
    """

    passed = 0

    def __init__(self, dataset: EncodedDataset, step_size: int, seed: int | None = None) -> None:
        self.dataset, self.step_size = dataset, step_size
        self.seed = dataset.seed if seed is None else seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.dataset.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        begins, self.passed = self.passed * self.step_size, 0
        yield from order[:begins]
        for start in range(begins, len(order), self.step_size):
            yield from longest_first(order[start : start + self.step_size], self.dataset.text_length)
