"""What transformers calls the cache of keys and values: `cache` from version 5.24 on, `past_key_values` before."""

from __future__ import annotations

from dataclasses import fields

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = "cache" if "cache" in {field.name for field in fields(CausalLMOutputWithPast)} else "past_key_values"
"""The name of a language model's argument and of its output."""
