"""Table of several runs of a benchmark, in Markdown and HTML: their figures, and each run against the first.

Answers are scored anew over the questions that all runs have, so the data of the first run must be where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks import open_benchmark
from gpt4roi.evaluation.compare import (
    OtherRun,
    answered_by,
    common_items,
    differences,
    read_run,
    with_verdicts_of,
)
from gpt4roi.evaluation.evaluate import read_items
from gpt4roi.evaluation.html_report import gallery
from gpt4roi.evaluation.items import Item, Scores, Source
from gpt4roi.evaluation.judge import Judge
from gpt4roi.evaluation.metrics import BOOTSTRAP_DRAWS, BOOTSTRAP_SEED
from gpt4roi.geometry.frames import FrameRule
from gpt4roi.report.report import Report


@dataclass(frozen=True)
class RunTable:
    """Several runs over their common questions.

    Attributes:
        title: Of the benchmark.
        runs: The first is what the others are compared with.
        items: The common questions, without answers.
        scores: Of each run.
    """

    title: str
    runs: Sequence[OtherRun]
    items: Sequence[Item]
    scores: Sequence[Scores]

    @property
    def figures(self) -> list[str]:
        """Names of the figures that all runs have, in order."""
        return [name for name in self.scores[0].measures if all(name in one.measures for one in self.scores)]

    @property
    def note(self) -> str:
        """What the table shows, in words."""
        images = len({item.group for item in self.items})
        return (
            f"{len(self.items)} questions about {images} images that all runs answered. In percent, CIDEr × 100. "
            f"Differences are to the first run, with 95 % intervals of {BOOTSTRAP_DRAWS} paired resamplings of images "
            f"(seed {BOOTSTRAP_SEED}); bold where they do not hold 0."
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns figures and differences, for --json."""
        shown: list[dict[str, Any]] = []
        for number, (run, scores) in enumerate(zip(self.runs, self.scores, strict=True)):
            figures = {name: scores.measures[name].estimate().to_dict() for name in self.figures}
            compared = {"differences": differences(scores, self.scores[0])} if number else {}
            shown.append({"run": str(run.path), "model": run.metrics.get("model"), "figures": figures} | compared)
        return {"title": self.title, "items": len(self.items), "runs": shown}

    def rows(self) -> list[list[str]]:
        """Returns a row for each figure: its name, its value in each run, and the differences to the first."""
        changes = [differences(scores, self.scores[0]) for scores in self.scores[1:]]
        return [
            [
                name,
                *(f"{100 * scores.measures[name].value:.1f}" for scores in self.scores),
                *(_difference(one[name]) for one in changes),
            ]
            for name in self.figures
        ]

    def header(self) -> list[str]:
        """Returns the titles of the columns."""
        names = [str(run.path.parent if run.path.name == "metrics.json" else run.path) for run in self.runs]
        return ["", *names, *(f"{name} − {names[0]}" for name in names[1:])]

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        lines = [self.header(), ["---"] * len(self.header()), *self.rows()]
        table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n\n{self.note}"

    def write_html(self, path: Path) -> None:
        """Writes the table, and the answers of the last run beside those of the first. Raises InputError."""
        page = Report(self.title, self.note)
        rows = [[cell.strip("*") for cell in row] for row in self.rows()]
        page.table("Figures", self.header(), rows)
        answered = answered_by(self.items, self.runs[-1])
        cards, note = gallery(answered, self.scores[-1], self.runs[0])
        page.gallery("Answers of the last run, and before", cards, note)
        page.write(path)


def read_runs(
    paths: Sequence[str | Path],
    benchmark_file: str | None = None,
    data: Path | None = None,
    images: Path | None = None,
) -> RunTable:
    """Reads runs and scores their answers over the questions that all have.

    Args:
        paths: Of the runs, at least two: folders or metrics.json.
        benchmark_file: Of a benchmark from a file that moved.
        data: Where the data lie now, if not where the first run read them.
        images: The same of images.

    Raises:
        InputError: They are of several benchmarks or judges, or the data are not there.
    """
    if len(paths) < 2:
        raise InputError("give two runs or more; the first is what the others are compared with")
    first = read_run(paths[0], flag="")
    runs = [first, *(read_run(path, first.metrics["benchmark"], "") for path in paths[1:])]
    judges = [{name: one.get(name) for name in ("url", "model", "prompt")} for one in map(_judge_of, runs)]
    if any(one != judges[0] for one in judges):
        described = " and ".join(str(one) for one in judges)
        raise InputError(f"the runs were judged by {described}; verdicts of two judges are never compared")
    name = benchmark_file or first.metrics.get("benchmark_file") or first.metrics["benchmark"]
    source = with_verdicts_of(_source_of(first, data, images), runs)
    benchmark = open_benchmark(name)
    items = common_items(read_items(name, source), runs)
    scores = [benchmark.score(answered_by(items, run), source) for run in runs]
    title = f"{first.metrics.get('title', benchmark.title)}, {first.metrics.get('split', '')}"
    return RunTable(title, runs, items, scores)


def _judge_of(run: OtherRun) -> dict[str, Any]:
    return run.metrics.get("judge") or {}


def _source_of(run: OtherRun, data: Path | None, images: Path | None) -> Source:
    """Returns where a run's data lie, as it recorded it."""
    told = run.metrics
    data = data or Path(told["data"])
    if not data.exists():
        raise InputError(f"{run.path}: its data were {data}, which is not there; give --data PATH")
    paths = {key: None if told.get(key) is None else Path(told[key]) for key in ("images", "sentence_model")}
    judge = _judge_of(run)
    return Source(
        data,
        images=images or paths["images"],
        split=told.get("split"),
        limit=told.get("limit"),
        shuffle=told.get("shuffle"),
        question=told.get("question"),
        sentence_model=paths["sentence_model"],
        rule=FrameRule(told.get("frame", "auto"), told.get("scale_boxes", False)),
        judge=Judge(judge["url"], judge["model"], run.verdicts, template=judge["template"], offline=True)
        if judge
        else None,
    )


def _difference(one: dict[str, float]) -> str:
    value, low, high = (100 * one[key] for key in ("value", "low", "high"))
    text = f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
    return f"**{text}**" if low > 0 or high < 0 else text
