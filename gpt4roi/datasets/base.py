"""What every reader of a data set is: an index made once, and samples drawn from it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from gpt4roi.structures import RegionSample


class RegionDataset:
    """A list of pictures with boxes and the dialogues drawn about them.

    A subclass fills its index in the constructor, drops what cannot be used there and counts it in `dropped`
    (reason -> number); `sample` is a pure function of its arguments and never hands out another item instead.
    """

    name: str = ""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        raise NotImplementedError

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        """Draws the dialogue of item `index`; every random choice comes from `rng`."""
        raise NotImplementedError

    def region_texts(self, index: int) -> dict[int, str]:
        """Returns the text that names each box of item `index` (box number from 0 -> text), where the data say so."""
        return {}
