"""SamplingParams and stopping: greedy or seeded sampling, stop tokens and stop strings, and the answer's text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch

from gpt4roi.errors import InputError

Sampler = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""From logits float[R, V] and the numbers of their R prompts to tokens int64[R]."""

StoppingCriterion = Callable[[list[int]], bool]
"""Tells from the new tokens of an answer whether it is complete."""

TAIL_TOKENS = 12
"""How many last tokens of an answer are searched for a stop string; more where a stop string is longer."""


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of an answer are chosen, and where it ends.

    Every prompt draws from a random sequence of its own: neither other prompts nor other threads change its answer.

    Attributes:
        max_new_tokens: The length at which an answer is cut.
        temperature: None or 0 is greedy; above 0 samples from the softmax at this temperature.
        top_p: Samples from the smallest set of tokens whose probabilities reach this.
        seed: Makes samples repeatable.
        stop: Strings before which an answer ends, beside those of the prompt format; a tuple after construction.
    """

    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.max_new_tokens, Integral) or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, got {self.max_new_tokens!r}")
        if self.temperature is not None and not (_is_real(self.temperature) and 0 <= self.temperature < float("inf")):
            raise InputError(f"temperature must be 0 (greedy) or more, got {self.temperature!r}")
        if not (_is_real(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if self.seed is not None and not (isinstance(self.seed, Integral) and 0 <= self.seed < 2**63):
            raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, got {self.seed!r}")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if not all(isinstance(text, str) and text for text in stop):
            raise InputError(f"stop must be texts that are not empty, got {self.stop!r}")
        object.__setattr__(self, "stop", stop)

    def sampler(self) -> Sampler:
        """Returns the function that chooses tokens, with the random sequences of one call."""
        temperature = self.temperature
        if not temperature:
            return lambda logits, _prompts: logits.argmax(dim=-1)
        generators: dict[int, torch.Generator] = {}
        start = torch.Generator().seed() % 2**63 if self.seed is None else int(self.seed)

        def sample(logits: torch.Tensor, prompts: Sequence[int]) -> torch.Tensor:
            for prompt in prompts:
                if prompt not in generators:
                    generators[prompt] = torch.Generator().manual_seed((start + prompt) % 2**63)
            uniform = torch.cat([torch.rand(1, generator=generators[prompt]) for prompt in prompts])
            return _sample(logits.float() / temperature, self.top_p, uniform.to(logits.device))

        return sample


def confidence(log_probs: Sequence[float]) -> float:
    """Returns the mean probability of an answer's tokens, its end included, from their log-probabilities."""
    return sum(map(math.exp, log_probs)) / len(log_probs) if log_probs else 0.0


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _sample(logits: torch.Tensor, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """Returns the tokens int64[R] at which the cumulated probabilities pass numbers from [0, 1), uniform: float[R]."""
    probabilities, tokens = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulated = probabilities.cumsum(dim=-1)
    index = (cumulated <= uniform[:, None] * cumulated[:, -1:]).sum(dim=-1, keepdim=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return tokens.gather(-1, index.minimum(last)).squeeze(-1)


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


Decoding, answer_ended, settled_text = SamplingParams, stopping_criterion, stable_text  # names of version 0.1
