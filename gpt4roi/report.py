"""One HTML file that shows what was measured: figures, tables, pictures with their boxes, questions and answers.

    page = Report("Held-out scenes", "SmolLM2-135M with lite0, stage 2")
    page.facts([("captions exact", "93.1 %", "450 regions")])
    page.table("Accuracies", ["task", "right"], [["caption", Share(0.931, 0.91, 0.95, 450)]])
    answers = [Answer("What is <region1>?", answer="a cat", truth="a cat", right=True, task="caption")]
    page.gallery("Scenes", [GalleryItem(picture, boxes_px, "scene 17", answers)])
    page.write("report.html")

The file needs no network and no other file. Everything that comes from data is escaped.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from gpt4roi.drawing import region_color
from gpt4roi.report_style import SCRIPT, STYLE

_REGION = re.compile(r"(?:&lt;)?region\s?(\d{1,4})(?:&gt;)?", re.IGNORECASE)
_PICTURE_SIDE = 480
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Share:
    """A table cell with a share in [0, 1], its 95 % interval and how many items it is the mean of."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Answer:
    """One question about a picture. right: None where there is no truth to compare with."""

    question: str
    answer: str
    truth: str | None = None
    right: bool | None = None
    task: str = ""


@dataclass(frozen=True)
class GalleryItem:
    """A picture with its regions and what was asked about them.

    picture: a path, a PIL picture or an encoded file's bytes. boxes_px: N boxes, xyxy, in its pixels; numbered from 1.
    """

    picture: Any
    boxes_px: Sequence = ()
    title: str = ""
    answers: Sequence[Answer] = field(default_factory=tuple)

    @property
    def share_right(self) -> float:
        """The share of right answers among those that have a truth; 1 where none has."""
        judged = [answer.right for answer in self.answers if answer.right is not None]
        return sum(judged) / len(judged) if judged else 1.0


class Report:
    """A page put together piece by piece; every method returns the report, so calls can be chained."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="soft">{escape(lead)}</p>')

    def facts(self, facts: Iterable[tuple[str, str, str]]) -> Report:
        """Adds a row of key figures: (what, value, small print)."""
        tiles = (
            f'<div class="fact"><b>{escape(value)}</b><span>{escape(what)}</span><small>{escape(note)}</small></div>'
            for what, value, note in facts
        )
        return self._add(f'<div class="facts">{"".join(tiles)}</div>')

    def text(self, text: str, title: str = "") -> Report:
        """Adds a paragraph, under a heading if one is given."""
        return self._add(_heading(title) + f"<p>{escape(text)}</p>")

    def table(
        self, title: str, header: Sequence[str], rows: Iterable[Sequence], note: str = "", folded: bool = False
    ) -> Report:
        """Adds a table. A cell is a text, a number, None (empty) or a Share. folded: shown after a click."""
        rows = [list(row) for row in rows]
        numeric = [_is_numeric(column) for column in zip(*rows, strict=True)] if rows else []
        classes = [' class="num"' if flag else "" for flag in numeric] or [""] * len(header)
        head = "".join(f"<th{css}>{escape(name)}</th>" for name, css in zip(header, classes, strict=True))
        lines = (
            "<tr>" + "".join(f"<td{css}>{_cell(v)}</td>" for v, css in zip(row, classes, strict=True)) + "</tr>"
            for row in rows
        )
        small = f'<p class="note">{escape(note)}</p>' if note else ""
        body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        sheet = f'<div class="sheet"><table>{body}</table></div>{small}'
        if folded:
            return self._add(f"<details><summary>{_heading(title)}</summary>{sheet}</details>")
        return self._add(_heading(title) + sheet)

    def gallery(self, title: str, items: Iterable[GalleryItem], note: str = "") -> Report:
        """Adds pictures with numbered boxes and their answers, worst first, with filters by task and verdict."""
        items = list(items)
        tasks = dict.fromkeys(answer.task for item in items for answer in item.answers if answer.task)
        worst_first = sorted(range(len(items)), key=lambda index: items[index].share_right)
        cards = "".join(_card(items[index], index) for index in worst_first)
        small = f'<p class="soft">{escape(note)}</p>' if note else ""
        return self._add(
            f'{_heading(title)}{small}<div class="gallery">{_filter_bar(tasks)}<div class="items">{cards}</div>'
            '<p class="empty" hidden>Nothing fits this filter.</p></div>'
        )

    def html(self) -> str:
        """Returns the whole page."""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>"
            f"<body><main>{''.join(self._parts)}</main><script>{SCRIPT}</script></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page and returns its path; folders on the way are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        return path

    def _add(self, part: str) -> Report:
        self._parts.append(part)
        return self


def _heading(title: str) -> str:
    return f"<h2>{escape(title)}</h2>" if title else ""


def _is_numeric(column: Sequence) -> bool:
    return all(value is None or isinstance(value, (int, float)) for value in column)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Share):
        return _share_cell(value)
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _share_cell(share: Share) -> str:
    def percent(fraction: float) -> str:
        return f"{100 * min(max(fraction, 0.0), 1.0):.1f}"

    track, small = f'<i style="width:{percent(share.value)}%"></i>', ""
    if share.low is not None and share.high is not None:
        width = percent(share.high - share.low)
        track += f'<u style="left:{percent(share.low)}%;width:{width}%"></u>'
        small = f"{percent(share.low)}–{percent(share.high)}"
    if share.n is not None:
        small += f" · n={share.n}" if small else f"n={share.n}"
    return (
        f'<div class="share"><b>{percent(share.value)}</b><div class="track">{track}</div><small>{small}</small></div>'
    )


def _filter_bar(tasks: Iterable[str]) -> str:
    options = "".join(f'<option value="{escape(task)}">{escape(task)}</option>' for task in tasks)
    verdicts = "".join(
        f'<button type="button" data-verdict="{css}" aria-pressed="{str(not css).lower()}">{name}</button>'
        for css, name in (("", "all"), ("wrong", "wrong"), ("right", "right"))
    )
    return (
        f'<div class="bar">{verdicts}'
        f'<select name="task" aria-label="task"><option value="">every task</option>{options}</select>'
        '<select name="order" aria-label="order"><option value="worst">worst first</option>'
        '<option value="best">best first</option><option value="file">as written</option></select>'
        '<input name="search" type="search" placeholder="search" aria-label="search"><span class="count"></span></div>'
    )


def _card(item: GalleryItem, index: int) -> str:
    data_url, (width, height) = _picture_url(item.picture)
    boxes = "".join(_svg_box(box, number, height) for number, box in enumerate(item.boxes_px))
    judged = [answer.right for answer in item.answers if answer.right is not None]
    tally = f"{sum(judged)} of {len(judged)} right" if judged else ""
    return (
        f'<article class="item" data-index="{index}"><figure><div class="picture">'
        f'<img loading="lazy" alt="{escape(item.title)}" width="{width}" height="{height}" src="{data_url}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{boxes}</svg></div>'
        f"<figcaption><span>{escape(item.title)}</span><span>{tally}</span></figcaption></figure>"
        f'<div class="answers">{"".join(map(_answer_row, item.answers))}</div></article>'
    )


def _answer_row(answer: Answer) -> str:
    css, mark = {None: ("", "·"), True: ("right", "✓"), False: ("wrong", "✗")}[answer.right]
    said = _with_chips(answer.answer) or "<i>(nothing)</i>"
    truth = ""
    if answer.truth is not None and answer.right is not True:
        truth = f' <span class="t">truth: <b>{_with_chips(answer.truth)}</b></span>'
    return (
        f'<div class="answer {css}" data-task="{escape(answer.task)}"><span class="mark">{mark}</span>'
        f'<p class="q">{_with_chips(answer.question)}</p><p><span class="a">{said}</span>{truth}</p></div>'
    )


def _with_chips(text: str) -> str:
    """Escapes a text and shows every mention of a region in the colour of its box."""

    def chip(mention: re.Match) -> str:
        number = int(mention[1])
        return f'<span class="region" style="--c:{region_color(max(number - 1, 0))}">region{number}</span>'

    return _REGION.sub(chip, escape(text))


def _svg_box(box: Sequence[float], number: int, picture_height: int) -> str:
    x1, y1, x2, y2 = (float(value) for value in box)
    color, size = region_color(number), picture_height / 15
    plate = size * (0.62 * len(str(number + 1)) + 0.45)
    return (
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" stroke="{color}"'
        f' stroke-width="2.5" vector-effect="non-scaling-stroke"/>'
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{plate:.1f}" height="{1.15 * size:.1f}" fill="{color}"/>'
        f'<text x="{x1 + plate / 2:.1f}" y="{y1 + 0.92 * size:.1f}" font-size="{size:.1f}" font-weight="700"'
        f' fill="#fff" text-anchor="middle" font-family="sans-serif">{number + 1}</text>'
    )


def _picture_url(picture: Any) -> tuple[str, tuple[int, int]]:
    """Returns a JPEG data URL, at most _PICTURE_SIDE pixels a side, and the (width, height) of the original."""
    if isinstance(picture, bytes):
        picture = io.BytesIO(picture)
    opened = picture if isinstance(picture, Image.Image) else Image.open(picture)
    small = opened.convert("RGB")
    small.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode("ascii"), opened.size
