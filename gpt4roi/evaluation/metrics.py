"""Measures that need no judge and no download: exact match, word overlap, shares with their intervals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

_WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")

BOOTSTRAP_DRAWS = 2000
BOOTSTRAP_SEED = 0


def words(text: str) -> list[str]:
    """Returns the words of a text, lower case, without punctuation."""
    return _WORDS.findall(text.casefold())


def exact_match(answer: str, truth: str) -> bool:
    """Tells whether both texts have the same words in the same order; case and punctuation do not count."""
    return words(answer) == words(truth)


def word_overlap(answer: str, truth: str) -> float:
    """Returns the F1 of the two bags of words, in [0, 1]; 1 when both are empty."""
    said, asked = Counter(words(answer)), Counter(words(truth))
    if not said and not asked:
        return 1.0
    common = sum((said & asked).values())
    return 2 * common / (sum(said.values()) + sum(asked.values()))


@dataclass(frozen=True)
class Estimate:
    """A mean over n items with its 95 % bootstrap interval. All three are NaN-free; n = 0 gives zeros."""

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict:
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


def estimate(
    scores: Sequence[float], groups: Sequence[Hashable] | None = None, draws: int = BOOTSTRAP_DRAWS
) -> Estimate:
    """Returns the mean of the scores and a percentile interval from resampling with a fixed seed.

    groups: for each score the picture it belongs to; whole pictures are then resampled, because answers about one
        picture are not independent of each other. By default every score stands for itself.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0:
        return Estimate(0.0, 0.0, 0.0, 0)
    names = list(range(len(values))) if groups is None else list(groups)
    index = {name: position for position, name in enumerate(dict.fromkeys(names))}
    member = np.asarray([index[name] for name in names])
    sums = np.bincount(member, weights=values, minlength=len(index))
    counts = np.bincount(member, minlength=len(index))
    picks = np.random.default_rng(BOOTSTRAP_SEED).integers(0, len(index), size=(draws, len(index)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def majority_share(truths: Sequence[str]) -> float:
    """Returns the share of the commonest truth: what a constant answer would score."""
    return max(Counter(truths).values()) / len(truths) if truths else 0.0
