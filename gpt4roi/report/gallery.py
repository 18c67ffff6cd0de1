"""Images with their boxes and answers, as the HTML report shows them: sortable, filterable, worst first."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.processing.user_input import open_image
from gpt4roi.report.drawing import region_color

_REGION = re.compile(r"(?:&lt;)?region\s?(\d{1,4})(?:&gt;)?", re.IGNORECASE)
_IMAGE_SIDE = 480
_CROP_SIDE = 112
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Answer:
    """One question about an image.

    right: None where there is no truth to compare with. references: all that count as right, where there are several.
    scores: by name; the first one orders the gallery where nothing is right or wrong. region: index of the box whose
    crop stands beside the answer. before, before_score: what another run answered, and its first score.
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
    def quality(self) -> float | None:
        """1 for right, 0 for wrong; without a verdict the first score; None where there is neither."""
        if self.right is not None:
            return float(self.right)
        return next(iter(self.scores.values()), None)


@dataclass(frozen=True)
class GalleryItem:
    """An image with its regions and what was asked about them.

    image: a PIL image, or a path or an encoded file's bytes, which are turned upright. boxes_px: N boxes, xyxy, in
    its pixels; numbered from 1.
    passages: a longer text to show below, as (text, whether it is highlighted); its row counts as an answer of task "".
    """

    image: Any
    boxes_px: Sequence = ()
    title: str = ""
    answers: Sequence[Answer] = field(default_factory=tuple)
    passages: Sequence[tuple[str, bool]] = ()

    @property
    def quality(self) -> float:
        """The mean quality of the answers that have one; infinite where none has, so that they come last."""
        known = [answer.quality for answer in self.answers if answer.quality is not None]
        return sum(known) / len(known) if known else float("inf")


def gallery_html(items: Sequence[GalleryItem]) -> str:
    """Returns the bar of filters and one card for each image, worst first."""
    answers = [answer for item in items for answer in item.answers]
    worst_first = sorted(range(len(items)), key=lambda index: items[index].quality)
    cards = "".join(_card(items[index], index) for index in worst_first)
    return (
        f'<div class="gallery">{_filter_bar(answers)}<div class="items">{cards}</div>'
        '<p class="empty" hidden>Nothing fits this filter.</p></div>'
    )


def _filter_bar(answers: Sequence[Answer]) -> str:
    tasks = dict.fromkeys(answer.task for answer in answers if answer.task)
    names = dict.fromkeys(name for answer in answers for name in answer.scores)
    verdicts = [("", "all")]
    if any(answer.right is not None for answer in answers):
        verdicts += [("wrong", "wrong"), ("right", "right")]
    if any(answer.before is not None for answer in answers):
        verdicts += [("changed", "changed")]
    buttons = "".join(
        f'<button type="button" data-verdict="{css}" aria-pressed="{str(not css).lower()}">{name}</button>'
        for css, name in verdicts
    )
    options = "".join(f'<option value="{escape(task)}">{escape(task)}</option>' for task in tasks)
    orders = "".join(f'<option value="score:{escape(name)}">{escape(name)}, low first</option>' for name in names)
    return (
        f'<div class="bar">{buttons}'
        f'<select name="task" aria-label="task"><option value="">every task</option>{options}</select>'
        '<select name="order" aria-label="order"><option value="worst">worst first</option>'
        f'<option value="best">best first</option>{orders}<option value="file">as written</option></select>'
        '<input name="search" type="search" placeholder="search" aria-label="search"><span class="count"></span></div>'
    )


def _card(item: GalleryItem, index: int) -> str:
    image = _open(item)
    width, height = image.size
    boxes = "".join(_svg_box(box, number, height) for number, box in enumerate(item.boxes_px))
    judged = [answer.right for answer in item.answers if answer.right is not None]
    tally = f"{sum(judged)} of {len(judged)} right" if judged else ""
    rows = "".join(_answer_row(answer, image, item.boxes_px) for answer in item.answers) + _passages(item.passages)
    return (
        f'<article class="item" data-index="{index}"><figure><div class="image">'
        f'<img loading="lazy" alt="{escape(item.title)}" width="{width}" height="{height}"'
        f' src="{_data_url(image, _IMAGE_SIDE)}">'
        f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none">{boxes}</svg></div>'
        f"<figcaption><span>{escape(item.title)}</span><span>{tally}</span></figcaption></figure>"
        f'<div class="answers">{rows}</div></article>'
    )


def _answer_row(answer: Answer, image: Image.Image, boxes_px: Sequence) -> str:
    css, mark = {None: ("", "·"), True: ("right", "✓"), False: ("wrong", "✗")}[answer.right]
    changed = " changed" if answer.before is not None and answer.before != answer.answer else ""
    quality = "" if answer.quality is None else f' data-quality="{answer.quality:.4f}"'
    scores = "".join(_score(escape(name), value) for name, value in answer.scores.items())
    crop = ""
    if answer.region is not None:
        crop = f'<img class="crop" alt="crop" loading="lazy" src="{_crop_url(image, boxes_px[answer.region])}">'
    return (
        f'<div class="answer {css}{changed}" data-task="{escape(answer.task)}"{quality}>'
        f'<span class="mark">{mark}</span>{crop}<div><p class="q">{_with_chips(answer.question)}</p>'
        f"<p>{_said(answer)}</p>{_references(answer)}"
        f"{f'<p class=scores>{scores}</p>' if scores else ''}</div></div>"
    )


def _score(name: str, value: float) -> str:
    return f'<span class="score" data-name="{name}" data-value="{value:.6g}">{name} {round(value, 3):g}</span>'


def _said(answer: Answer) -> str:
    text = f'<span class="a">{_with_chips(answer.answer) or "<i>(nothing)</i>"}</span>'
    if answer.before is not None and answer.before != answer.answer:
        score = "" if answer.before_score is None else f" ({answer.before_score:.3g})"
        text += f' <span class="t">before: <s>{_with_chips(answer.before)}</s>{score}</span>'
    if answer.truth is not None and answer.right is not True:
        text += f' <span class="t">truth: <b>{_with_chips(answer.truth)}</b></span>'
    return text


def _references(answer: Answer) -> str:
    if not answer.references:
        return ""
    listed = "".join(f"<li>{_with_chips(reference)}</li>" for reference in answer.references)
    return f'<ul class="refs" title="references">{listed}</ul>'


def _passages(passages: Sequence[tuple[str, bool]]) -> str:
    if not passages:
        return ""
    text = "".join(f"<mark>{escape(text)}</mark>" if marked else escape(text) for text, marked in passages)
    return f'<div class="answer passages" data-task=""><pre>{text}</pre></div>'


def _with_chips(text: str) -> str:
    """Escapes a text and shows every mention of a region in the colour of its box."""

    def chip(mention: re.Match) -> str:
        number = int(mention[1])
        return f'<span class="region" style="--c:{region_color(max(number - 1, 0))}">region{number}</span>'

    return _REGION.sub(chip, escape(text))


def _svg_box(box: Sequence[float], number: int, image_height: int) -> str:
    x1, y1, x2, y2 = (float(value) for value in box)
    color, size = region_color(number), image_height / 15
    plate = size * (0.62 * len(str(number + 1)) + 0.45)
    return (
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" stroke="{color}"'
        f' stroke-width="2.5" vector-effect="non-scaling-stroke"/>'
        f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{plate:.1f}" height="{1.15 * size:.1f}" fill="{color}"/>'
        f'<text x="{x1 + plate / 2:.1f}" y="{y1 + 0.92 * size:.1f}" font-size="{size:.1f}" font-weight="700"'
        f' fill="#fff" text-anchor="middle" font-family="sans-serif">{number + 1}</text>'
    )


def _open(item: GalleryItem) -> Image.Image:
    """Returns the image, files upright as the model saw them; a grey one where it is damaged, for its answers say."""
    if isinstance(item.image, Image.Image):
        return item.image.convert("RGB")
    try:
        return open_image(item.image)
    except InputError:
        sides = [min(max(int(box[end]) for box in item.boxes_px), 4096) if len(item.boxes_px) else 0 for end in (2, 3)]
        return Image.new("RGB", (max(sides[0], 64), max(sides[1], 48)), "grey")


def _data_url(image: Image.Image, longest_side: int) -> str:
    """Returns a JPEG data URL, at most `longest_side` pixels a side."""
    small = image.copy()
    small.thumbnail((longest_side, longest_side))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=_JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode("ascii")


def _crop_url(image: Image.Image, box: Iterable[float]) -> str:
    """Returns the inside of a box, at least one pixel of it, as a data URL."""
    x1, y1, x2, y2 = (float(value) for value in box)
    left, top = min(max(int(x1), 0), image.width - 1), min(max(int(y1), 0), image.height - 1)
    right, bottom = min(max(round(x2), left + 1), image.width), min(max(round(y2), top + 1), image.height)
    return _data_url(image.crop((left, top, right, bottom)), _CROP_SIDE)
