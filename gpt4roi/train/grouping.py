"""Puts samples of one length together, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Sequence


def level_batches(order: Sequence[int], lengths: Sequence[int], step_size: int) -> list[int]:
    """Sorts the samples of each optimiser step by length, longest first, and leaves every step its own samples.

    A step's loss is a sum over its samples divided by their labels, so their order changes nothing but the padding of
    the batches that they are cut into.
    order: the samples as they are drawn; lengths: of every sample of the data set; step_size: samples a step over all
    devices.
    """
    order = list(order)
    steps = (order[start : start + step_size] for start in range(0, len(order), step_size))
    return [index for step in steps for index in sorted(step, key=lambda index: -lengths[index])]
