"""HTML report: one file with key figures, tables, histograms, and images with their boxes, questions and answers.

    page = Report("Held-out scenes", "SmolLM2-135M with lite0, stage 2")
    page.facts([("captions exact", "93.1 %", "450 regions")])
    page.table("Accuracies", ["task", "right"], [["caption", Estimate(0.931, 0.91, 0.95, 450, percent=True)]])
    answers = [Answer("What is <region1>?", answer="a cat", truth="a cat", right=True, task="caption")]
    page.gallery("Scenes", [GalleryItem(image, boxes_px, "scene 17", answers)])
    page.write("report.html")

The file needs no network and no other file. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import BEFORE_IS_KEPT, atomic_path
from gpt4roi.processing.user_input import open_image
from gpt4roi.report.rendering import render

PAGE_SIDE = 480
"""Pixels of the longer side of an image in a gallery."""


@dataclass(frozen=True)
class Estimate:
    """A table cell with an estimate, its 95 % interval and the number of items; percent: in [0, 1], with a bar."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    percent: bool = False

    def format(self, value: float) -> str:
        """Writes the value or an end of the interval."""
        return f"{100 * min(max(value, 0.0), 1.0):.1f}" if self.percent else f"{value:.4g}"


@dataclass(frozen=True)
class Tag:
    """A table cell with a word on a coloured plate; tone: good, bad, warn or soft."""

    text: str
    tone: str = "soft"


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: what falls into it, how much, and the mean score of that, if there is one."""

    label: str
    count: int
    mean: float | None = None


@dataclass(frozen=True)
class Answer:
    """One question about an image and its answer.

    Attributes:
        right: None where there is no truth to compare with.
        references: all that count as right, where there are several.
        scores: by name; the first one orders the gallery where nothing is right or wrong.
        region: index of the box whose crop stands beside the answer.
        before: what another run answered; before_score: its first score.
    """

    question: str
    answer: str
    truth: str | None = None
    right: bool | None = None
    task: str = ""
    references: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    region: int | None = None
    before: str | None = None
    before_score: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the other run answered something else."""
        return self.before is not None and self.before != self.answer

    @property
    def quality(self) -> float | None:
        """1 for right, 0 for wrong; without a verdict the first score; None where there is neither."""
        return next(iter(self.scores.values()), None) if self.right is None else float(self.right)


@dataclass(frozen=True)
class GalleryItem:
    """An image with its regions and what was asked about them.

    Attributes:
        image: a PIL image, or a path or an encoded file's bytes, which are turned upright.
        boxes_px: N boxes, xyxy, in its pixels; numbered from 1.
        spans: a longer text to show below, as (text, whether it is highlighted); it counts as an answer of task "".
    """

    image: Any
    boxes_px: Sequence[Sequence[float]] | np.ndarray = ()
    title: str = ""
    answers: Sequence[Answer] = ()
    spans: Sequence[tuple[str, bool]] = ()

    @property
    def quality(self) -> float:
        """The mean quality of the answers that have one; infinite where none has, so that they come last."""
        known = [answer.quality for answer in self.answers if answer.quality is not None]
        return sum(known) / len(known) if known else float("inf")

    @property
    def tally(self) -> str:
        """How many of the judged answers are right, in words."""
        judged = [answer.right for answer in self.answers if answer.right is not None]
        return f"{sum(judged)} of {len(judged)} right" if judged else ""

    def open(self) -> Image.Image:
        """Returns the image, files upright as the model saw them; a grey one where it is damaged."""
        if isinstance(self.image, Image.Image):
            return self.image.convert("RGB")
        try:
            return open_image(self.image)
        except InputError:
            width, height = (max([0, *(min(int(box[end]), 4096) for box in self.boxes_px)]) for end in (2, 3))
            return Image.new("RGB", (max(width, 64), max(height, 48)), "grey")

    def crop(self, image: Image.Image, region: int) -> Image.Image:
        """Returns the inside of a box, at least one pixel of it."""
        x1, y1, x2, y2 = (float(value) for value in self.boxes_px[region])
        left, top = min(max(int(x1), 0), image.width - 1), min(max(int(y1), 0), image.height - 1)
        right, bottom = min(max(round(x2), left + 1), image.width), min(max(round(y2), top + 1), image.height)
        return image.crop((left, top, right, bottom))


class Report:
    """A page put together piece by piece; every method returns the report, so calls can be chained."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._parts: list[Markup] = []

    def facts(self, facts: Iterable[tuple[str, str, str]]) -> Report:
        """Adds a row of key figures: (what, value, small print)."""
        return self._add("facts.html", facts=facts)

    def text(self, text: str, title: str = "") -> Report:
        """Adds a paragraph, under a heading if one is given."""
        return self._add("text.html", title=title, text=text)

    def table(
        self, title: str, header: Sequence[str], rows: Iterable[Sequence], note: str = "", folded: bool = False
    ) -> Report:
        """Adds a table. A cell is a text, number, None, Estimate or Tag. folded: shown after a click."""
        rows = [list(row) for row in rows]
        columns = enumerate(zip(*rows, strict=True))
        numeric = {at for at, cells in columns if all(cell is None or isinstance(cell, (int, float)) for cell in cells)}
        return self._add("table.html", title=title, header=header, rows=rows, numeric=numeric, note=note, folded=folded)

    def histograms(self, title: str, charts: Iterable[tuple[str, Sequence[Bin]]], note: str = "") -> Report:
        """Adds charts side by side, each of a name and its bins."""
        return self._add("histograms.html", title=title, charts=charts, note=note)

    def gallery(
        self,
        title: str,
        items: Iterable[GalleryItem],
        note: str = "",
        words: tuple[str, str, str] = ("answer", "image", "task"),
    ) -> Report:
        """Adds images with numbered boxes and their answers, worst first, with filters where there is a choice.

        words: What an answer, an image and a task are called; without the first, only images are counted.
        """
        cards = sorted(enumerate(items), key=lambda card: card[1].quality)
        answers = [answer for _, item in sorted(cards) for answer in item.answers]
        verdicts = ["wrong", "right"] if any(answer.right is not None for answer in answers) else []
        verdicts += ["changed"] if any(answer.before is not None for answer in answers) else []
        tasks = dict.fromkeys(answer.task for answer in answers if answer.task)
        scores = dict.fromkeys(name for answer in answers for name in answer.scores)
        return self._add(
            "gallery.html",
            title=title,
            note=note,
            cards=cards,
            verdicts=["", *verdicts] if verdicts else [],
            tasks=tasks,
            scores=scores,
            ranked=any(answer.quality is not None for answer in answers),
            words=words,
            side=PAGE_SIDE,
        )

    def html(self) -> str:
        """Returns the complete page."""
        return render("report.html", title=self.title, lead=self.lead, parts=self._parts) + "\n"

    def write(self, path: str | Path, kept: str = BEFORE_IS_KEPT) -> Path:
        """Writes the page atomically and returns its path; folders are made, bytes that are no text escaped.

        Raises:
            InputError: It cannot be written; `kept` is what the message says is not lost.
        """
        with atomic_path(Path(path), kept) as beside:
            beside.write_text(self.html(), encoding="utf-8", errors="backslashreplace")
        return Path(path)

    def _add(self, template: str, **values: Any) -> Report:
        self._parts.append(Markup(render(template, **values)))
        return self
