"""Packed decoding of many sequences in one row without padding, and PrefixCache of what later prompts begin with.

A batch of prompts and half-written answers has all lengths. Here their new tokens stand one after the other in one row
of the language model; only attention tells them apart. So nothing is padded, a prompt may be read while others are
answered, and a sequence joins or leaves without a copy of the others' caches.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from gpt4roi.generation.encoded_image import Prompt

ATTENTION = "gpt4roi_packed"
PROBE_TOKENS = (5, 3)
"""Lengths of the two random sequences on which packed decoding is compared with the plain one before it is used."""
TOLERANCE = 0.02
"""Largest difference of logits in that comparison, as a part of the largest logit; bfloat16 rounds to 0.004."""


@dataclass
class KeyValues:
    """Keys and values of one sequence: of each layer float[1, H, capacity, D], `length` columns of it filled."""

    capacity: int
    length: int = 0
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def append(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes keys and values float[1, H, T, D] behind those of a layer, and returns all; `length` stays."""
        if layer not in self.layers:
            self.layers[layer] = self._empty(key), self._empty(value)
        end = self.length + key.shape[2]
        keys, values = (tensor[:, :, :end] for tensor in self.layers[layer])
        keys[:, :, self.length :], values[:, :, self.length :] = key, value
        return keys, values

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(1, like.shape[1], self.capacity, like.shape[3])

    def copy(self, length: int, capacity: int) -> KeyValues:
        """Returns the first `length` columns, with room for `capacity`."""
        other = KeyValues(capacity)
        for layer, (keys, values) in self.layers.items():
            other.append(layer, keys[:, :, :length], values[:, :, :length])
        other.length = length
        return other


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packed: Sequence[tuple[KeyValues, int, torch.Tensor | None]] = (),
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attends within each sequence of a row.

    Args:
        module: The attention layer.
        query: float[1, H, N, D].
        key: Of the same N tokens.
        value: Likewise.
        attention_mask: None.
        packed: Of each sequence its cache, its number of tokens in the row, and the mask bool[1, 1, T, past + T] where
            there are both earlier tokens and several new ones.
        **kwargs: Of transformers' attention functions.

    Returns:
        float[1, N, H, D], and None for the weights.
    """
    outputs, start = [], 0
    for cache, length, mask in packed:
        part = slice(start, start := start + length)
        keys, values = cache.append(cast(int, module.layer_idx), key[:, :, part], value[:, :, part])
        outputs.append(sdpa_attention_forward(module, query[:, :, part], keys, values, mask, **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION, packed_attention)


class PackedDecoder:
    """Computes next-token logits of many sequences in one pass."""

    def __init__(self, language_model: Any) -> None:
        """Takes a view of a language model: modules of its own, with another attention, over the same tensors."""
        tensors = [*language_model.parameters(), *language_model.buffers()]
        self.model = copy.deepcopy(language_model, {id(tensor): tensor for tensor in tensors})
        self.model.set_attn_implementation(ATTENTION)

    def new(self, capacity: int) -> KeyValues:
        """Returns the cache of a new sequence of at most `capacity` tokens."""
        return KeyValues(capacity)

    def logits(self, batch: Sequence[tuple[Any, torch.Tensor]]) -> torch.Tensor:
        """Returns float[B, V], the logits of the token that follows each sequence.

        batch: The cache of each sequence, which grows, and the embeddings float[T, D] of its next tokens.
        """
        device = batch[0][1].device
        lengths = [len(embeddings) for _, embeddings in batch]
        positions = [torch.arange(cache.length, cache.length + len(new), device=device) for cache, new in batch]
        packed = [(cache, len(new), _causal_mask(cache.length, len(new), device)) for cache, new in batch]
        output = self.model(
            inputs_embeds=torch.cat([embeddings for _, embeddings in batch])[None],
            position_ids=torch.cat(positions)[None],
            use_cache=False,
            logits_to_keep=torch.tensor(lengths, device=device).cumsum(0) - 1,
            packed=packed,
        )
        for cache, length, _ in packed:
            cache.length += length
        return output.logits[0]


def _causal_mask(past: int, length: int, device: torch.device) -> torch.Tensor | None:
    """Returns bool[1, 1, T, past + T]; None where attention needs none or its own causal one."""
    if not past or length == 1:
        return None
    return torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)[None, None]


class SingleDecoder:
    """Does the same one sequence after the other, as RegionChat computes it bit for bit, for every language model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def new(self, capacity: int) -> DynamicCache:
        """Returns the cache of a new sequence."""
        return DynamicCache(config=self.model.config.get_text_config())

    def logits(self, batch: Sequence[tuple[Any, torch.Tensor]]) -> torch.Tensor:
        """Returns float[B, V], as of PackedDecoder."""
        return torch.stack([self.model.decode(embeddings[None], cache)[0, -1] for cache, embeddings in batch])


@torch.inference_mode()
def packed_decoder(model: Any) -> PackedDecoder | None:
    """Returns a packed decoder of a GPT4RoI model; None where its language model cannot be computed so.

    Such are those with sliding windows or states, with offloaded weights, and those with an attention of their own: two
    short sequences are decoded both ways, and the logits must agree.
    """
    if not model.packs_sequences:
        return None
    language_model = model.language_model
    layers = DynamicCache(config=language_model.config).layers
    hooked = any(hasattr(part, "_hf_hook") for part in language_model.modules())
    if hooked or not all(type(layer) is DynamicLayer for layer in layers):
        return None
    embed = model.get_input_embeddings()
    first, second = (embed(torch.arange(length, device=model.device)) for length in PROBE_TOKENS)
    single = SingleDecoder(model)
    try:
        decoder = PackedDecoder(language_model)
        cache = decoder.new(sum(PROBE_TOKENS))
        decoder.logits([(cache, first)])
        found = decoder.logits([(cache, second), (decoder.new(len(first)), first)])
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None
    plain = single.logits([(single.new(0), torch.cat([first, second])), (single.new(0), first)])
    close = (found - plain).abs().max() <= TOLERANCE * plain.abs().max()
    return decoder if close else None


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
        return min(before.common_length(now, self._region_token_id), len(now.input_ids) - 1)

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
            return entry.common_length(prompt, self._region_token_id) == length

        self._entries = [one for one in self._entries if not is_prefix(one[0])]
        self._entries.append((prompt, cache))

    def shrink(self, num_tokens: int) -> None:
        """Drops entries, the one used longest ago first, until they hold no more tokens than this."""
        while self._entries and self.num_tokens > num_tokens:
            self._entries.pop(0)
