"""One HTML file that shows what was measured: figures, tables, images with their boxes, questions and answers.

    page = Report("Held-out scenes", "SmolLM2-135M with lite0, stage 2")
    page.facts([("captions exact", "93.1 %", "450 regions")])
    page.table("Accuracies", ["task", "right"], [["caption", Share(0.931, 0.91, 0.95, 450)]])
    answers = [Answer("What is <region1>?", answer="a cat", truth="a cat", right=True, task="caption")]
    page.gallery("Scenes", [GalleryItem(image, boxes_px, "scene 17", answers)])
    page.write("report.html")

The file needs no network and no other file. Everything that comes from data is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from gpt4roi.report.gallery import Answer, GalleryItem, gallery_html
from gpt4roi.report.style import SCRIPT, STYLE

__all__ = ["Answer", "Bin", "GalleryItem", "Interval", "Report", "Share", "Tag"]


@dataclass(frozen=True)
class Share:
    """A table cell with a share in [0, 1], its 95 % interval and how many items it is the mean of."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Interval:
    """A table cell with a figure that is no share, its 95 % interval and how many items it was made from."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


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
        """Adds a table. A cell is a text, number, None, Share, Interval or Tag. folded: shown after a click."""
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

    def histograms(self, title: str, charts: Iterable[tuple[str, Sequence[Bin]]], note: str = "") -> Report:
        """Adds charts side by side, each of a name and its bins."""
        small = f'<p class="note">{escape(note)}</p>' if note else ""
        drawn = "".join(_chart(name, bins) for name, bins in charts)
        return self._add(f'{_heading(title)}<div class="charts">{drawn}</div>{small}')

    def gallery(self, title: str, items: Iterable[GalleryItem], note: str = "") -> Report:
        """Adds images with numbered boxes and their answers, worst first, with filters by task and verdict."""
        small = f'<p class="soft">{escape(note)}</p>' if note else ""
        return self._add(f"{_heading(title)}{small}{gallery_html(list(items))}")

    def html(self) -> str:
        """Returns the whole page."""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>"
            f"<body><main>{''.join(self._parts)}</main><script>{SCRIPT}</script></body></html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Writes the page and returns its path; folders on the way are made, bytes that are no text escaped."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8", errors="backslashreplace")
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
    if isinstance(value, Interval):
        return _interval_cell(value)
    if isinstance(value, Tag):
        return f'<span class="tag {escape(value.tone)}">{escape(value.text)}</span>'
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


def _interval_cell(figure: Interval) -> str:
    small = "" if figure.low is None or figure.high is None else f"{figure.low:.4g}–{figure.high:.4g}"
    if figure.n is not None:
        small += f" · n={figure.n}" if small else f"n={figure.n}"
    return f'<div class="share"><b>{figure.value:.4g}</b><small>{small}</small></div>'


def _chart(name: str, bins: Sequence[Bin]) -> str:
    most = max((one.count for one in bins), default=0) or 1
    scored = any(one.mean is not None for one in bins)
    rows = "".join(
        f'<tr><th>{escape(one.label)}</th><td class="track"><i style="width:{100 * one.count / most:.1f}%"></i></td>'
        f'<td class="num">{one.count}</td>'
        + (f'<td class="num">{"" if one.mean is None else f"{one.mean:.3g}"}</td></tr>' if scored else "</tr>")
        for one in bins
    )
    head = '<tr><th></th><th></th><th class="num">n</th>' + ('<th class="num">mean</th></tr>' if scored else "</tr>")
    return f'<div class="sheet chart"><table><caption>{escape(name)}</caption>{head}{rows}</table></div>'
