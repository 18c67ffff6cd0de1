"""PromptCache: the KV cache of a conversation, so that the next round prefills only what is new."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gpt4roi.generation.encoded_image import Prompt
from gpt4roi.processing.dialogue import common_prefix_length


class PromptCache:
    """Keys and values of the last prompt and its answer.

    A later prompt about the same image reuses them as far as it begins with the same tokens and regions. Layers grow
    by new tensors, never in place, so a copy shares its memory with the original and leaves it as it is.
    """

    def __init__(self, model: Any) -> None:
        self._region_token_id: int = model.config.region_token_id
        self._config = model.language_model.config
        self._ids: list[int] = []
        self._prompt: Prompt | None = None
        self.cache = DynamicCache(config=self._config)

    def __len__(self) -> int:
        """How many tokens the cache holds."""
        return self.cache.get_seq_length()

    def copy(self) -> PromptCache:
        """Returns one that may grow by itself."""
        other = copy.copy(self)
        other._ids = list(self._ids)
        other.cache = copy_cache(self.cache)
        return other

    def reuse_prefix(self, prompt: Prompt) -> int:
        """Crops the cache to what it has in common with a prompt; returns the number of those tokens.

        At least the prompt's last token is left to be read, because its logits give the answer's first.
        """
        common = self._common_length(prompt)
        if common < len(self):
            # Layers that forget (sliding windows, states) cannot be cropped.
            if common and all(type(layer) is DynamicLayer for layer in self.cache.layers):
                self.cache.crop(common - len(self))
            else:
                common, self.cache = 0, DynamicCache(config=self._config)
        self._ids, self._prompt = prompt.input_ids.tolist(), prompt
        return common

    def append_token(self, token: int) -> None:
        """Notes a token of the answer; it is in the cache once the next one was computed."""
        self._ids.append(token)

    def _common_length(self, prompt: Prompt) -> int:
        if self._prompt is None or self._prompt.image_features is not prompt.image_features:
            return 0
        ids = prompt.input_ids.numpy()
        common = min(common_prefix_length([np.asarray(self._ids), ids]), len(self), len(ids) - 1)
        before, now = self._prompt.region_features, prompt.region_features
        for number, position in enumerate(np.flatnonzero(ids[:common] == self._region_token_id).tolist()):
            if before is None or now is None or not torch.equal(before[number], now[number]):
                return position
        return common


def copy_cache(cache: DynamicCache) -> DynamicCache:
    """Returns a cache with the same keys and values that may grow by itself."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other
