"""Training dataset: samples drawn by seed, epoch and index, and encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from gpt4roi.data.mixture import Mixture
from gpt4roi.errors import InputError
from gpt4roi.processing.processor import GPT4RoIProcessor
from gpt4roi.structures import RegionSample


class CachedFeatures(Protocol):
    """Cache of what a frozen tower made of each image."""

    def __contains__(self, image: str) -> bool:
        """Tells whether the tower saw this image, which it did if the image could be read."""

    def get(self, image: str) -> dict[str, Any]:
        """Returns `image_tokens` and `feature_maps` of one image."""

    def image_size(self, image: str) -> tuple[int, int]:
        """Returns the (height, width) that pixel boxes on this image are measured in."""


class EncodedDataset(Dataset):
    """Encodes sample `index` of a mixture; the same seed, epoch and index give the same tensors on every worker.

    Args:
        mixture: Where samples are drawn from.
        processor: Encodes them.
        seed: Of the draws.
        features: Where given, images are not opened: the tower's outputs are taken from there.
        text_index: Where given, every sample says in `text_ids` int64[M] which text names the region of each `<bbox>`,
            as a number of this table; -1 where none does.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: GPT4RoIProcessor,
        seed: int,
        features: CachedFeatures | None = None,
        text_index: Mapping[str, int] | None = None,
    ) -> None:
        self.mixture, self.processor, self.seed = mixture, processor, seed
        self.features, self.text_index = features, text_index
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tells which epoch's draws are handed out from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one encoded sample, or `skipped` with the reason when what it was drawn from cannot be used."""
        try:
            sample = self._sample(index)
            cached = None if sample.image is None else self.features
            encoded = self.processor.encode(sample) if cached is None else self._encode_cached(sample, cached)
        except InputError as error:
            return {"skipped": str(error)}
        if self.text_index is not None:
            texts = dict(enumerate(sample.region_texts))
            ids = [self.text_index.get(texts.get(box, ""), -1) for box in encoded["box_indices"].tolist()]
            encoded["text_ids"] = torch.tensor(ids, dtype=torch.int64)
        return encoded

    def text_length(self, index: int) -> int:
        """Returns how many characters sample `index` has in this epoch, without opening its image."""
        try:
            sample = self._sample(index)
        except InputError:
            return 0
        return sum(len(turn.text) for turn in sample.turns)

    def _sample(self, index: int) -> RegionSample:
        return self.mixture.sample(index, np.random.default_rng([self.seed, self.epoch, index]))

    def _encode_cached(self, sample: RegionSample, features: CachedFeatures) -> dict[str, Any]:
        if sample.image not in features:
            self.processor.encode(sample)  # says what is wrong, as it does where nothing is cached
            raise InputError(
                f"image {sample.image!r} in {sample.source} was unreadable when features were cached but is "
                "readable now; restart the training to include it"
            )
        size = features.image_size(sample.image)
        return self.processor.encode_text(sample, image_size=size) | features.get(sample.image)
