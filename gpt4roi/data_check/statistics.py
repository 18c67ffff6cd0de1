"""Statistics over the samples of a data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

LENGTH_STEP = 64
SHORT_ANSWER = 6
"""Answers of up to this many words count as labels."""
_TOP = 30


@dataclass
class Statistics:
    """Sums over samples; two of them add up.

    Attributes:
        regions: Boxes of the samples.
        rounds, rounds_lost: Question-answer rounds, and how many of them do not fit.
        lengths: Complete prompts before anything is dropped, in steps of LENGTH_STEP tokens.
        labels: Short answers, lower case.
        sizes: Boxes by the root of their fraction of the image, in tenths.
    """

    samples: int = 0
    lost: int = 0
    regions: int = 0
    answers: int = 0
    text_alone: int = 0
    without_region: int = 0
    rounds: int = 0
    rounds_lost: int = 0
    answers_cut: int = 0
    tokens: int = 0
    longest: int = 0
    supervised: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)

    def add(self, other: Statistics) -> None:
        """Adds another part's sums."""
        for one in fields(self):
            mine, others = getattr(self, one.name), getattr(other, one.name)
            if one.name == "longest":
                self.longest = max(mine, others)
            elif isinstance(mine, Counter):
                mine.update(others)
            else:
                setattr(self, one.name, mine + others)

    def count_length(self, tokens: int) -> None:
        """Counts one prompt of this many tokens."""
        self.tokens += tokens
        self.longest = max(self.longest, tokens)
        self.lengths[tokens // LENGTH_STEP * LENGTH_STEP] += 1

    def count_answer(self, text: str) -> None:
        """Counts an answer, as a label where it is short."""
        self.answers += 1
        words = text.lower().split()
        if len(words) <= SHORT_ANSWER:
            self.labels[" ".join(words).rstrip(".")] += 1

    def count_box(self, box: np.ndarray, size: tuple[int, int]) -> None:
        """Counts one box (pixels) of an image of (height, width)."""
        area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0) / max(size[0] * size[1], 1)
        self.sizes[min(int(10 * area**0.5), 9)] += 1

    def as_dict(self) -> dict[str, Any]:
        """Returns what goes into JSON: the sums, the histogram, and the most frequent labels."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if isinstance(getattr(self, one.name), int)}
        labelled = self.labels.total()
        return plain | {
            "lengths": {str(start): self.lengths[start] for start in sorted(self.lengths)},
            "labels": {
                "short_answers": labelled,
                "distinct": len(self.labels),
                "seen_once": sum(count == 1 for count in self.labels.values()),
                "most_frequent": dict(self.labels.most_common(_TOP)),
            },
            "box_sizes": {f"{start / 10:.1f}": self.sizes[start] for start in sorted(self.sizes)},
        }
