"""Benchmark, Source, Item, Scores: what a benchmark is, where its data lie, its questions and their scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.judge import Judge
from gpt4roi.evaluation.metrics import Measure
from gpt4roi.evaluation.predictions import CHUNK_IMAGES
from gpt4roi.evaluation.predictor import Query
from gpt4roi.geometry.frames import FrameClues, FrameCounts, FrameRule
from gpt4roi.report.report import GalleryItem, Report

Record = TypeVar("Record")


@dataclass(frozen=True)
class Source:
    """Where a benchmark's data lie and which part of them is used.

    Attributes:
        data: The annotation file, or a folder that has it under its usual name.
        images: The images' folder, by default the usual one beside the annotations.
        split: By default the one that papers report.
        limit: Only so many images.
        shuffle: A seed; the limited images are then drawn at random instead of being the first.
        question: Replaces the benchmark's own, where it asks the same about every region.
        sentence_model: Folder of all-MiniLM-L6-v2, by default that of the installed package.
        rule: How the frame of the boxes is found.
        judge: Gives verdicts on answers, where a benchmark asks for some.
        left_out: What cannot be asked, and why; filled as a benchmark is read, as are the following.
        filtered: What a rule of the benchmark leaves out, reason -> number.
        clipped: Boxes cut at their image's border.
        frames: What was decided about the frames of boxes.
    """

    data: Path
    images: Path | None = None
    split: str | None = None
    limit: int | None = None
    shuffle: int | None = None
    question: str | None = None
    sentence_model: Path | None = None
    rule: FrameRule = field(default_factory=FrameRule)
    judge: Judge | None = None
    left_out: list[str] = field(default_factory=list, init=False, compare=False)
    filtered: Counter[str] = field(default_factory=Counter, init=False, compare=False)
    clipped: list[str] = field(default_factory=list, init=False, compare=False)
    frames: FrameCounts = field(default_factory=FrameCounts, init=False, compare=False)

    def restart(self) -> None:
        """Forgets what an earlier reading noted."""
        self.left_out.clear()
        self.filtered.clear()
        self.clipped.clear()
        self.frames.counts.clear()

    def leave_out(self, what: str) -> None:
        """Notes what cannot be asked, and why."""
        self.left_out.append(what)

    def choose(self, records: Sequence[Record]) -> list[Record]:
        """Returns as many of the images as are asked for, in the order of the file."""
        if self.limit is None or self.limit >= len(records):
            return list(records)
        if self.shuffle is None:
            return list(records[: self.limit])
        drawn = np.random.default_rng(self.shuffle).permutation(len(records))[: self.limit]
        return [records[index] for index in sorted(drawn.tolist())]


@dataclass(frozen=True)
class Item:
    """One question with its references, and later with its prediction.

    Attributes:
        id: Unique in the benchmark.
        query: The question, as a model gets it.
        references: The right answers; of a multiple-choice question the right option.
        task: Kind of question, for the tables.
        options: What the choices stand for.
        label: Index of the right option.
        shown: Index of the box that the question is about, for the report; None where it is about several.
        metadata: For the benchmark itself; texts and numbers are written to predictions.jsonl.
        answer: The prediction.
        likelihoods: Of each choice, where the predictor gives them.
        error: Why there is no answer.
        confidence: The mean probability of the answer's tokens, where the predictor gives it.
        clues: What the data say about the frame of the query's boxes.
    """

    id: str
    query: Query
    references: tuple[str, ...]
    task: str = ""
    options: tuple[str, ...] = ()
    label: int | None = None
    shown: int | None = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    answer: str = ""
    likelihoods: tuple[float, ...] | None = None
    error: str = ""
    confidence: float | None = None
    clues: FrameClues = field(default_factory=FrameClues)

    @property
    def group(self) -> str:
        """What is resampled together: the image."""
        return str(self.query.image)


@dataclass
class Scores:
    """What a benchmark measured.

    Attributes:
        measures: By name, the headline first.
        per_item: For each item its scores by name.
        right: For each item; None where nothing is right or wrong.
        by_task: Measures of the items of each task.
        notes: What a reader of the figures must know.
        details: What else belongs into metrics.json.
        main: Names of the measures shown as key figures.
    """

    measures: dict[str, Measure]
    per_item: list[dict[str, float]]
    right: list[bool | None]
    by_task: dict[str, dict[str, Measure]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    main: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: a Python file gives it as BENCHMARK.

    Attributes:
        title: Headline of the report.
        splits: The first is the default.
        load: Reads the questions of a source.
        score: Scores items with their predictions.
        max_new_tokens: Where answers are cut, unless the user says otherwise.
        image_batch_size: Images whose questions form a chunk.
        judge: Whether its score asks a judge: never, also where one is given, or always.
        lead: First sentence of the report.
        key_figures: From metrics.json to the report's tiles (name, value, small print), instead of the usual ones.
        tables: Adds tables to the report, instead of the usual ones.
        galleries: Title, cards and note of each gallery, instead of the usual one.
    """

    title: str
    splits: tuple[str, ...]
    load: Callable[[Source], list[Item]]
    score: Callable[[Sequence[Item], Source], Scores]
    max_new_tokens: int = 64
    image_batch_size: int = CHUNK_IMAGES
    judge: Literal["never", "optional", "required"] = "never"
    lead: str = ""
    key_figures: Callable[[dict[str, Any]], list[tuple[str, str, str]]] | None = None
    tables: Callable[[Report, dict[str, Any]], None] | None = None
    galleries: Callable[[Sequence[Item], Scores, Any], list[tuple[str, list[GalleryItem], str]]] | None = None

    def __post_init__(self) -> None:
        for name in ("load", "score"):
            if not callable(getattr(self, name)):
                raise InputError(f"a Benchmark's {name} must be a function, got {getattr(self, name)!r:.60}")
        if isinstance(self.splits, str) or not self.splits:
            raise InputError(f"a Benchmark's splits must be several names, the first the default, got {self.splits!r}")


def count_references(items: Sequence[Item]) -> dict[str, float]:
    """Returns how many references an item has: mean, least and most."""
    counts = [len(item.references) for item in items]
    if not counts:
        return {"mean": 0.0, "min": 0, "max": 0}
    return {"mean": round(sum(counts) / len(counts), 4), "min": min(counts), "max": max(counts)}
