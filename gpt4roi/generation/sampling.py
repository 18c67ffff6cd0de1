"""SamplingParams: greedy decoding or seeded temperature and top-p sampling, and stop strings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch

from gpt4roi.errors import InputError

Sampler = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""From logits float[R, V] and the numbers of their R prompts to tokens int64[R]."""


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


Decoding = SamplingParams  # the name of version 0.1
