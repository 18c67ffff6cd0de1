"""Mixture of data sets, each taken in part or several times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt4roi.data.base import RegionDataset
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample


class Mixture:
    """Joins data sets end to end; `ratio` 0.5 takes a seeded half of one, 2 takes it twice.

    Args:
        parts: The data sets.
        ratios: How often each is taken.
        seed: Of the choices.
        caps: How many samples of each set are taken at most, chosen like a part of it; None for no limit.
        seeds: A seed of its own for the choice from a set, which then does not depend on the sets beside it.

    Raises:
        InputError: A ratio is not positive, or leaves a set without a sample.
    """

    def __init__(
        self,
        parts: Sequence[RegionDataset],
        ratios: Sequence[float] | None = None,
        seed: int = 0,
        caps: Sequence[int | None] | None = None,
        seeds: Sequence[int | None] | None = None,
    ) -> None:
        self.parts = list(parts)
        count = len(self.parts)
        ratios, caps, seeds = ratios or [1.0] * count, caps or [None] * count, seeds or [None] * count
        chosen = [
            _choose(part, ratio, cap, [seed, number] if own is None else [own])
            for number, (part, ratio, cap, own) in enumerate(zip(self.parts, ratios, caps, seeds, strict=True))
        ]
        self.order = np.concatenate(
            [np.stack([np.full_like(indices, number), indices], axis=1) for number, indices in enumerate(chosen)]
        )

    def __len__(self) -> int:
        return len(self.order)

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        """Draws sample `index` of the joined list from the data set it lies in."""
        part, inner = self.order[index]
        return self.parts[part].sample(int(inner), rng)

    def region_texts(self, index: int) -> dict[int, str]:
        """Returns the text that names each box (number from 0) of sample `index`, where its data set says so."""
        part, inner = self.order[index]
        return self.parts[part].region_texts(int(inner))


def _choose(part: RegionDataset, ratio: float, cap: int | None, seed: list[int]) -> np.ndarray:
    """Returns which items of a set are taken, int64[N], in its order; complete passes over it first."""
    size = len(part)
    wanted = round(size * ratio)
    if ratio <= 0 or wanted == 0:
        raise InputError(f"{part.name}: ratio {ratio} leaves none of {size} samples; give one above 0")
    passes, rest = divmod(wanted if cap is None else min(wanted, cap), size)
    chosen = np.sort(np.random.default_rng(seed).permutation(size)[:rest])
    return np.concatenate([np.tile(np.arange(size), passes), chosen]).astype(np.int64)
