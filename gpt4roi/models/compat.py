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
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""Name of the KV cache in a language model's arguments and output: `cache` from transformers 5.24 on."""

CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(PreTrainedModel, "activation_checkpointing_enable")
    else "gradient_checkpointing"
)
"""Name of activation checkpointing in the Trainer's arguments and, behind `is_`, of models: the first from 5.23 on."""


def cached_length(cache: Cache | None) -> int:
    """Returns how many tokens a KV cache holds."""
    return cache.get_seq_length() if cache is not None else 0


def onload_weights(module: nn.Module) -> AbstractContextManager:
    """Loads all offloaded weights of a module for as long as the context lasts; does nothing where there are none."""
    offloaded = [part for part in module.modules() if has_offloaded_params(part)]
    if not offloaded:
        return nullcontext()
    stack = ExitStack()
    for part in offloaded:
        stack.enter_context(align_module_device(part))
    return stack


def execution_device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Returns the device and dtype in which a module computes, also where its weights are offloaded."""
    weight = next(module.parameters())
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in devices if device is not None), None)
    return weight.device if device is None else torch.device(device), weight.dtype
