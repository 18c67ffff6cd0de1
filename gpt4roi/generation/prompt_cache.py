"""Prompt caching: PromptCache, of one conversation, so that a round prefills what is new; PrefixCache, of everybody."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gpt4roi.generation.encoded_image import Prompt
from gpt4roi.generation.packed import KeyValues
from gpt4roi.processing.dialogue import common_prefix_length


class PromptCache:
    """Keys and values of the last prompt and its answer.

    A later prompt about the same image reuses them as far as it begins with the same tokens and regions. Layers grow
    by new tensors, never in place, so a copy shares its memory with the original and leaves it as it is.
    """

    def __init__(self, model: Any) -> None:
        self._region_token_id: int = model.region_token_id
        self._shares: bool = model.shares_prefix
        self._config = model.config.get_text_config()
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
        if self._prompt is None or not self._shares:
            return 0
        before = replace(self._prompt, input_ids=torch.tensor(self._ids))
        return min(common_prompt_length(before, prompt, self._region_token_id), len(self), len(prompt.input_ids) - 1)


def common_prompt_length(before: Prompt, now: Prompt, region_token_id: int) -> int:
    """Returns how many tokens two prompts begin with alike, the embeddings at their placeholders included."""
    if before.image_features is not now.image_features:
        return 0
    ids = now.input_ids.numpy()
    common = common_prefix_length([before.input_ids.numpy(), ids])
    ours, theirs = before.region_features, now.region_features
    for number, position in enumerate(np.flatnonzero(ids[:common] == region_token_id).tolist()):
        if ours is None or theirs is None or not torch.equal(ours[number], theirs[number]):
            return position
    return common


def copy_cache(cache: DynamicCache) -> DynamicCache:
    """Returns a cache with the same keys and values that may grow by itself."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


class PrefixCache:
    """Keys and values of prompts and answers that later prompts may begin with, the one used last at the end."""

    def __init__(self, region_token_id: int) -> None:
        self._region_token_id = region_token_id
        self._entries: list[tuple[Prompt, KeyValues]] = []

    @property
    def num_tokens(self) -> int:
        """Tokens of all entries."""
        return sum(cache.capacity for _, cache in list(self._entries))

    def common_length(self, before: Prompt, now: Prompt) -> int:
        """Returns how many tokens two prompts begin with alike, but for the second's last, whose logits are needed."""
        return min(common_prompt_length(before, now, self._region_token_id), len(now.input_ids) - 1)

    def longest(self, prompt: Prompt, limit: int) -> tuple[KeyValues | None, int]:
        """Returns the entry that has most in common with a prompt, and how many tokens, `limit` at most."""
        lengths = [min(self.common_length(entry, prompt), limit) for entry, _ in self._entries]
        best = max(lengths, default=0)
        if not best:
            return None, 0
        used = self._entries.pop(lengths.index(best))
        self._entries.append(used)
        return used[1], best

    def add(self, prompt: Prompt, cache: KeyValues) -> None:
        """Adds an entry in place of those that it begins with."""

        def is_prefix(entry: Prompt) -> bool:
            length = len(entry.input_ids)
            return common_prompt_length(entry, prompt, self._region_token_id) == length

        self._entries = [one for one in self._entries if not is_prefix(one[0])]
        self._entries.append((prompt, cache))

    def shrink(self, num_tokens: int) -> None:
        """Drops entries, the one used longest ago first, until they hold no more tokens than this."""
        while self._entries and self.num_tokens > num_tokens:
            self._entries.pop(0)
