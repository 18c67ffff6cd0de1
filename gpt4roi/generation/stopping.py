"""From the tokens of an answer to its text: where it ends, and how much of an unfinished one may be shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpt4roi.generation.engine import Ended
from gpt4roi.processing.templates import TEMPLATES

TAIL_TOKENS = 12
"""How many last tokens of an answer are looked through for a stop word; more where a stop word is longer."""


def answer_ended(processor: Any, stop: Sequence[str] = ()) -> Ended:
    """Returns a function that tells from an answer's tokens whether the model has ended it.

    stop: texts that end it beside those of the prompt format.
    """
    stop_ids = set(processor.stop_token_ids)
    # A token stands for one byte at least.
    tail = max([TAIL_TOKENS, *(len(text.encode()) + 1 for text in stop)])
    decode = processor.tokenizer.decode

    def ended(tokens: list[int]) -> bool:
        if tokens[-1] in stop_ids:
            return True
        text = decode(tokens[-tail:], skip_special_tokens=False)
        if any(stop_text in text for stop_text in processor.stop_strings):
            return True
        if not any(stop_text in text for stop_text in stop):
            return False
        # Not in the speaker's name and the blanks before the answer, which are no part of it.
        said = decode(tokens, skip_special_tokens=False).lstrip().removeprefix(_speaker(processor)).lstrip()
        return any(stop_text in said for stop_text in stop)

    return ended


def answer_text(processor: Any, tokens: list[int], stop: Sequence[str] = ()) -> str:
    """Returns the answer that tokens stand for, up to the first stop text."""
    text = processor.decode(tokens)
    for stop_text in stop:
        text = text.partition(stop_text)[0]
    return text.strip()


def settled_text(processor: Any, tokens: list[int], stop: Sequence[str] = ()) -> str:
    """Returns as much of an unfinished answer as later tokens cannot change."""
    text = answer_text(processor, tokens, stop).rstrip("\ufffd")  # half a character
    if text and _speaker(processor).startswith(text):
        return ""  # may become the speaker's name, which is no part of the answer
    for stop_text in (*processor.stop_strings, *stop):
        lengths = range(min(len(stop_text), len(text)), 0, -1)
        overlap = next((length for length in lengths if text.endswith(stop_text[:length])), 0)
        text = text[: len(text) - overlap]
    return text.rstrip()


def _speaker(processor: Any) -> str:
    """Returns the name that an answer begins with in the processor's prompt format; it may be empty."""
    template = TEMPLATES.get(processor.prompt_format)
    return "" if template is None else template.answer_prefix
