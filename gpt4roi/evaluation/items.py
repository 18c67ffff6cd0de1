"""What every benchmark is made of: where its data lie, its questions, and what their answers were worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from gpt4roi.evaluation.metrics import Measure
from gpt4roi.evaluation.predictor import Query

Record = TypeVar("Record")


@dataclass(frozen=True)
class Source:
    """Where a benchmark's data lie and which part of them is asked about.

    data: the annotation file, or a folder that has it under its usual name. images: the images' folder, by default
    the usual one beside the annotations. split: by default the one that papers report. limit: only so many images.
    shuffle: a seed; the limited images are then drawn at random instead of being the first.
    question: asked instead of the benchmark's own, where it asks one and the same about every region.
    sentence_model: folder of all-MiniLM-L6-v2, by default that of the installed package.
    """

    data: Path
    images: Path | None = None
    split: str | None = None
    limit: int | None = None
    shuffle: int | None = None
    question: str | None = None
    sentence_model: Path | None = None

    def choose(self, records: Sequence[Record]) -> list[Record]:
        """Returns as many of the images as are wanted, in the order of the file."""
        if self.limit is None or self.limit >= len(records):
            return list(records)
        if self.shuffle is None:
            return list(records[: self.limit])
        drawn = np.random.default_rng(self.shuffle).permutation(len(records))[: self.limit]
        return [records[place] for place in sorted(drawn.tolist())]


@dataclass(frozen=True)
class Item:
    """One question with what is right, and later with what was answered.

    references: what is right, one or several texts; of a multiple-choice question the right option.
    options: what the choices stand for; label: the index of the right one. task: kind of question, for the tables.
    shown: index of the box that the question is about, for the report; None where it is about several.
    likelihoods: of each choice, where the predictor gives them. error: why nothing was answered.
    """

    id: str
    query: Query
    references: tuple[str, ...]
    task: str = ""
    options: tuple[str, ...] = ()
    label: int | None = None
    shown: int | None = 0
    facts: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    likelihoods: tuple[float, ...] | None = None
    error: str = ""

    @property
    def group(self) -> str:
        """What is resampled together: the image."""
        return str(self.query.image)


@dataclass
class Scores:
    """What a benchmark measured.

    measures: by name, the headline first. per_item: for each item its scores by name. right: for each item, None where
    nothing is right or wrong. by_task: the same for parts of the items. notes: what a reader of the numbers must know.
    details: what else belongs into metrics.json. main: names of the measures shown as key figures.
    """

    measures: dict[str, Measure]
    per_item: list[dict[str, float]]
    right: list[bool | None]
    by_task: dict[str, dict[str, Measure]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    main: tuple[str, ...] = ()


def count_references(items: Sequence[Item]) -> dict[str, float]:
    """Returns how many references an item has: mean, least and most."""
    counts = [len(item.references) for item in items]
    if not counts:
        return {"mean": 0.0, "min": 0, "max": 0}
    return {"mean": round(sum(counts) / len(counts), 4), "min": min(counts), "max": max(counts)}
