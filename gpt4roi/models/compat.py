"""Differences between transformers versions, and modules that accelerate offloaded to CPU or disk.

Offloading hooks act when a module is called. Code that reads a weight without calling its module would find a tensor
without data; it uses `onload_weights` first.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import fields

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""Name of the KV cache in a language model's arguments and output: `cache` from transformers 5.24 on."""


def onload_weights(module: nn.Module) -> AbstractContextManager:
    """Fetches all weights of a module for as long as the context lasts; does nothing where none is elsewhere."""
    away = [part for part in module.modules() if has_offloaded_params(part)]
    if not away:
        return nullcontext()
    stack = ExitStack()
    for part in away:
        stack.enter_context(align_module_device(part))
    return stack


def execution_device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Returns where a module computes, and in which dtype, wherever its weights lie."""
    weight = next(module.parameters())
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    places = (getattr(hook, "execution_device", None) for hook in hooks)
    place = next((place for place in places if place is not None), None)
    return weight.device if place is None else torch.device(place), weight.dtype
