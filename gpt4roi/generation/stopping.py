"""Stopping criterion and detokenization: stop tokens and stop strings, the answer's text, the stable part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt4roi.generation.engine import StoppingCriterion

TAIL_TOKENS = 12
"""How many last tokens of an answer are searched for a stop string; more where a stop string is longer."""


def stopping_criterion(processor: Any, stop: Sequence[str] = ()) -> StoppingCriterion:
    """Returns a function that tells from an answer's tokens whether the model has ended it.

    stop: strings that end it beside those of the prompt format.
    """
    stop_ids = set(processor.stop_token_ids)
    # A token stands for one byte at least.
    tail = max([TAIL_TOKENS, *(len(text.encode()) + 1 for text in stop)])
    decode = processor.tokenizer.decode

    def is_complete(tokens: list[int]) -> bool:
        if tokens[-1] in stop_ids:
            return True
        text = decode(tokens[-tail:], skip_special_tokens=False)
        if any(stop_text in text for stop_text in processor.stop_strings):
            return True
        if not any(stop_text in text for stop_text in stop):
            return False
        # Not in the speaker's name and the blanks before the answer, which are no part of it.
        answer = decode(tokens, skip_special_tokens=False).lstrip().removeprefix(processor.answer_prefix).lstrip()
        return any(stop_text in answer for stop_text in stop)

    return is_complete


def answer_text(processor: Any, tokens: list[int], stop: Sequence[str] = ()) -> str:
    """Returns the answer that tokens stand for, up to the first stop string."""
    text = processor.decode(tokens)
    for stop_text in stop:
        text = text.partition(stop_text)[0]
    return text.strip()


def stable_text(processor: Any, tokens: list[int], stop: Sequence[str] = ()) -> str:
    """Returns as much of an incomplete answer as later tokens cannot change."""
    text = answer_text(processor, tokens, stop).rstrip("\ufffd")  # half a character
    if text and processor.answer_prefix.startswith(text):
        return ""  # may become the speaker's name, which is no part of the answer
    for stop_text in (*processor.stop_strings, *stop):
        lengths = range(min(len(stop_text), len(text)), 0, -1)
        overlap = next((length for length in lengths if text.endswith(stop_text[:length])), 0)
        text = text[: len(text) - overlap]
    return text.rstrip()


answer_ended, settled_text = stopping_criterion, stable_text  # names of version 0.1
