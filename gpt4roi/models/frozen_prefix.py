"""Frozen prompt prefix: run under no_grad into a KV cache, so that only the rest of a batch is back-propagated.

While the region encoder alone is trained, the first embedding that depends on a trained parameter is that of the first
`<bbox>`. A decoder looks backwards only, so nothing before it does. The keys and values of that prefix are cached, and
the tokens from there on attend to them: the same loss and the same gradients, for a fraction of the graph.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache

from gpt4roi.models.compat import CACHE, CHECKPOINTING


class PrefixCache(DynamicCache):
    """Keys and values of a prefix: written by one pass, and only read by the next.

    A part that is checkpointed runs twice, and must find the same both times.
    """

    complete = False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what a layer may attend to, float[B, H, T, d] each: the prefix, and what the layer just made."""
        if not self.complete:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        prefix: Any = self.layers[layer_idx]
        return torch.cat([prefix.keys, key_states], dim=-2), torch.cat([prefix.values, value_states], dim=-2)


ATTENTION_TYPES = {"full_attention", "sliding_attention"}
"""Kinds of layers whose past is complete in the KV cache."""


def prefix_length(model: Any, input_ids: torch.Tensor | None, options: dict[str, Any]) -> int:
    """Returns how many leading columns of a batch carry no gradient and may run without a graph; 0 for none.

    Args:
        model: A GPT4RoI model.
        input_ids: int64[B, T].
        options: The language model's other arguments.
    """
    if input_ids is None or not torch.is_grad_enabled() or options.get(CACHE) is not None:
        return 0
    if options.get("output_hidden_states") or options.get("output_attentions"):
        return 0
    if not only_regions_trained(model):
        return 0
    regions = (input_ids == model.config.region_token_id).any(0).nonzero()
    # Where there is no region at all, one column stays to carry the (zero) gradient to the region encoder.
    return int(regions[0]) if len(regions) else input_ids.shape[1] - 1


def only_regions_trained(model: Any) -> bool:
    """Tells whether nothing before a region is trained, in a model whose prefix can be run separately."""
    before_regions = (model.language_model, model.mm_projector, model.vision_tower)
    if any(parameter.requires_grad for part in before_regions for parameter in part.parameters()):
        return False
    return _past_is_all_cached(model.language_model)


def _past_is_all_cached(language_model: nn.Module) -> bool:
    if getattr(language_model, "_is_stateful", False):
        return False
    if getattr(language_model, f"is_{CHECKPOINTING}", False):
        # The checkpointed layers of transformers take no keys and values of others.
        return False
    return set(getattr(language_model.config, "layer_types", None) or ATTENTION_TYPES) <= ATTENTION_TYPES


def hidden_states(language_model: nn.Module, inputs: dict[str, Any], length: int) -> torch.Tensor:
    """Returns the last hidden states float[B, T, D], of which the first `length` columns have no graph.

    Args:
        language_model: A decoder.
        inputs: inputs_embeds float[B, T, D], attention_mask [B, T] or an additive float[B, 1, T, T], and position_ids
            int64[B, T], of a right-padded batch; further entries go to both parts as they are.
        length: Of the prefix, in columns.
    """
    base = cast(nn.Module, language_model.base_model)
    cache = PrefixCache()
    with torch.no_grad():
        before = base(**_columns(inputs, 0, length, cache)).last_hidden_state
    cache.complete = True
    total = inputs["inputs_embeds"].shape[1]
    after = base(**_columns(inputs, length, total, cache)).last_hidden_state
    return torch.cat([before, after], dim=1)


def _columns(inputs: dict[str, Any], start: int, end: int, cache: PrefixCache) -> dict[str, Any]:
    """Returns the arguments for the tokens `start` to `end`, which may look at all tokens before `end`."""
    mask = inputs.get("attention_mask")
    if mask is not None:
        mask = mask[:, :end] if mask.ndim == 2 else mask[..., start:end, :end]
    positions = inputs.get("position_ids")
    return {
        **inputs,
        "inputs_embeds": inputs["inputs_embeds"][:, start:end],
        "attention_mask": mask,
        "position_ids": None if positions is None else positions[:, start:end],
        CACHE: cache,
        "use_cache": True,
    }
