"""What a language model has read of a conversation, so that the next round reads only what is new."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Recall:
    """Keys and values of the prompt and answer read last.

    A later prompt about the same image goes on from them where it begins with the same tokens and regions. Caches
    grow by new tensors, never in place, so a copy shares its memory with the original and leaves it as it is.
    """

    def __init__(self, model: Any) -> None:
        self._region_token_id: int = model.config.region_token_id
        self._config = model.language_model.config
        self._read: list[int] = []
        self._image: torch.Tensor | None = None
        self._regions: torch.Tensor | None = None
        self.cache = DynamicCache(config=self._config)

    def __len__(self) -> int:
        """How many tokens the cache holds."""
        return self.cache.get_seq_length()

    def copy(self) -> Recall:
        """Returns one that may go on by itself."""
        other = copy.copy(self)
        other._read = list(self._read)
        other.cache = copy.copy(self.cache)
        other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return other

    def turn_to(self, prompt: Any) -> int:
        """Keeps what a prompt (decoding.Prompt) has in common with what was read; returns its number of tokens.

        At least the prompt's last token is left to be read, because its logits give the answer's first.
        """
        common = self._common(prompt)
        if common < len(self):
            # Layers that forget (sliding windows, states) cannot go back.
            if common and all(type(layer) is DynamicLayer for layer in self.cache.layers):
                self.cache.crop(common - len(self))
            else:
                common, self.cache = 0, DynamicCache(config=self._config)
        self._read = prompt.input_ids.tolist()
        self._image, self._regions = prompt.image_features, prompt.region_features
        return common

    def said(self, token: int) -> None:
        """Notes a token of the answer; it is in the cache once the next one was computed."""
        self._read.append(token)

    def _common(self, prompt: Any) -> int:
        if self._image is not prompt.image_features:
            return 0
        ids = prompt.input_ids.tolist()
        limit = min(len(self), len(ids) - 1)
        common = next((place for place in range(limit) if self._read[place] != ids[place]), limit)
        regions = [place for place in range(common) if ids[place] == self._region_token_id]
        for number, place in enumerate(regions):
            if not torch.equal(self._regions[number], prompt.region_features[number]):
                return place
        return common
