"""Several data sets read as one, each more or less often."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt4roi.datasets.base import RegionDataset
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample


class Mixture:
    """Joins data sets end to end; `ratio` 0.5 takes a seeded half of one, 2 takes it twice.

    Raises InputError for a ratio that is not positive or that leaves a set without a sample.
    """

    def __init__(self, parts: Sequence[RegionDataset], ratios: Sequence[float] | None = None, seed: int = 0) -> None:
        self.parts = list(parts)
        ratios = [1.0] * len(self.parts) if ratios is None else list(ratios)
        self.order = np.concatenate([self._indices(i, ratio, seed) for i, ratio in enumerate(ratios)])

    def _indices(self, part: int, ratio: float, seed: int) -> np.ndarray:
        size = len(self.parts[part])
        wanted = round(size * ratio)
        if ratio <= 0 or wanted == 0:
            raise InputError(f"{self.parts[part].name}: ratio {ratio} leaves none of {size} samples; give one above 0")
        whole, rest = divmod(wanted, size)
        chosen = np.sort(np.random.default_rng([seed, part]).permutation(size)[:rest])
        indices = np.concatenate([np.tile(np.arange(size), whole), chosen]).astype(np.int64)
        return np.stack([np.full_like(indices, part), indices], axis=1)

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
