"""Metrics without a tool (exact match, word overlap) and bootstrap confidence intervals of any metric."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_SEED = 0
_BLOCK = 4_000_000


def as_utf8(text: str) -> str:
    """Returns a text with `?` for halves of characters, which JSON can hold and nothing can read."""
    return text.encode(errors="replace").decode()


def words(text: str) -> list[str]:
    """Returns the words of a text, lower case, without punctuation."""
    return _WORDS.findall(text.casefold())


def exact_match(answer: str, truth: str) -> bool:
    """Tells whether both texts have the same words in the same order; case and punctuation do not count."""
    return words(answer) == words(truth)


def word_overlap(answer: str, truth: str) -> float:
    """Returns the F1 of the two bags of words, in [0, 1]; 1 when both are empty."""
    predicted, expected = Counter(words(answer)), Counter(words(truth))
    if not predicted and not expected:
        return 1.0
    common = sum((predicted & expected).values())
    return 2 * common / (sum(predicted.values()) + sum(expected.values()))


def set_overlap(said: AbstractSet[Any], expected: AbstractSet[Any]) -> tuple[float, float, float]:
    """Returns precision, recall and F1 of a set, each in [0, 1]; 1 where both are empty, and 0 where only one is."""
    common = len(said & expected)
    if not said or not expected:
        return (float(said == expected),) * 3
    return common / len(said), common / len(expected), 2 * common / (len(said) + len(expected))


@dataclass(frozen=True)
class Estimate:
    """A figure over n items with its 95 % bootstrap interval. All are NaN-free; n = 0 gives zeros."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        """Returns the fields, rounded, for metrics.json."""
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Measure:
    """A figure of n items that is a formula of sums over them, as means, BLEU and METEOR are.

    Attributes:
        statistics: float[n, K].
        formula: From sums float[D, K] to figures float[D].
        per_item: float[n], the figure of each item by itself.
        groups: For each item its image; images are resampled, because answers about one image are not independent.
    """

    statistics: np.ndarray
    formula: Callable[[np.ndarray], np.ndarray]
    per_item: np.ndarray
    groups: Sequence[Hashable]

    @classmethod
    def mean(cls, scores: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | None = None) -> Measure:
        """Returns the mean of scores; without groups every score stands for itself."""
        values = np.asarray(scores, dtype=np.float64)
        statistics = np.stack([values, np.ones_like(values)], axis=1)
        return cls(statistics, _ratio, values, range(len(values)) if groups is None else groups)

    @property
    def value(self) -> float:
        """The figure over all items; 0 without any."""
        return float(self.formula(self.statistics.sum(axis=0)[None])[0]) if len(self.statistics) else 0.0

    def estimate(self, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
        """Returns the figure and a percentile interval from resampling with a fixed seed."""
        if not len(self.statistics):
            return Estimate(0.0, 0.0, 0.0, 0)
        low, high = np.quantile(self.resampled(draws), (0.025, 0.975))
        return Estimate(self.value, float(low), float(high), len(self.statistics))

    def resampled(self, draws: int = BOOTSTRAP_DRAWS) -> np.ndarray:
        """Returns the figure float[draws] of each resampling; the same images are drawn for the same groups."""
        index = {name: position for position, name in enumerate(dict.fromkeys(self.groups))}
        member = np.asarray([index[name] for name in self.groups])
        sums = np.zeros((len(index), self.statistics.shape[1]))
        np.add.at(sums, member, self.statistics)
        return self.formula(np.concatenate([counts @ sums for counts in _resamplings(len(index), draws)]))

    def minus(self, other: Measure, draws: int = BOOTSTRAP_DRAWS) -> Estimate:
        """Returns this figure minus the other's over the same items, with the interval of paired resamplings."""
        if list(self.groups) != list(other.groups):
            raise ValueError("a paired difference needs the same items in the same order")
        if not len(self.statistics):
            return Estimate(0.0, 0.0, 0.0, 0)
        low, high = np.quantile(self.resampled(draws) - other.resampled(draws), (0.025, 0.975))
        return Estimate(self.value - other.value, float(low), float(high), len(self.statistics))


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / sums[:, 1]


def _resamplings(groups: int, draws: int) -> Iterator[np.ndarray]:
    """Yields blocks of float64[rows, groups]: how often each group is drawn."""
    generator = np.random.default_rng(BOOTSTRAP_SEED)
    block = max(1, _BLOCK // groups)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picks = generator.integers(0, groups, size=(rows, groups)) + groups * np.arange(rows)[:, None]
        yield np.bincount(picks.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def majority_share(truths: Sequence[str]) -> float:
    """Returns the share of the commonest truth: what a constant answer would score."""
    return max(Counter(truths).values()) / len(truths) if truths else 0.0
