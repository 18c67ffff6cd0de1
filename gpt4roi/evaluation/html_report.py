"""HTML report of an evaluation: key figures, tables, histograms, the worst answers first, two runs side by side."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.compare import OtherRun
from gpt4roi.evaluation.items import Benchmark, Item, Scores
from gpt4roi.evaluation.metrics import words
from gpt4roi.evaluation.predictions import KEPT
from gpt4roi.evaluation.predictor import Predictor
from gpt4roi.processing.user_input import open_image
from gpt4roi.report.drawing import draw_heatmaps
from gpt4roi.report.report import Answer, Bin, Estimate, GalleryItem, Report

WORST, BEST, BETWEEN = 90, 30, 30
"""How many images the gallery shows of each end, and drawn from the rest."""
MOST_ANSWERS = 12
_REGION_1 = re.compile(r"(region\s?)1\b", re.I)
SIDES = (0, 16, 32, 64, 96, 128, 192, 256, math.inf)
LENGTHS = (0, 1, 2, 3, 4, 6, 11, 21, math.inf)
COUNTS = (0, 1, 2, 3, 4, 6, 11, 21, math.inf)
INTERVALS = "In percent, CIDEr × 100; marks and ranges enclose 95 % of resamplings of whole images; n: items."


def write_page(
    path: Path,
    benchmark: Benchmark,
    metrics: dict[str, Any],
    items: Sequence[Item],
    scores: Scores,
    other: OtherRun | None = None,
    heatmaps: Sequence[GalleryItem] = (),
) -> None:
    """Writes the report; a benchmark's own `key_figures`, `tables` and `galleries` replace the common ones.

    heatmaps: What worst_heatmaps returned, where it was called.

    Raises:
        InputError: It cannot be written.
    """
    page = Report(metrics.get("title", benchmark.title), benchmark.lead)
    page.facts((benchmark.key_figures or _key_figures)(metrics))
    for note in [*metrics.get("data_notes", []), *metrics["notes"]]:
        page.text(note)
    if metrics.get("phases"):
        minutes = metrics["phases"] | {"this evaluation": metrics["seconds"] / 60}
        rows = [[name, round(one, 1)] for name, one in (minutes | {"all": sum(minutes.values())}).items()]
        page.table("Phases", ["phase", "minutes"], rows)
    (benchmark.tables or _tables)(page, metrics)
    if metrics.get("compared"):
        _comparison(page, metrics["compared"])
    page.histograms("Where the answers are good", histograms(items, scores), "n: answers; mean: of right or score.")
    if heatmaps:
        note = "Red: what the answer depends on, by occlusion (gpt4roi explain); the worst answers."
        page.gallery("Where answers looked", heatmaps, note)
    if benchmark.galleries is not None:
        for title, cards, note in benchmark.galleries(items, scores, other):
            page.gallery(title, cards, note)
    else:
        page.gallery("Answers", *gallery(items, scores, other))
    page.table("How it was measured", ["", ""], _provenance(metrics), folded=True)
    page.write(path, KEPT)


def worst_heatmaps(
    items: Sequence[Item], scores: Scores, predictor: Predictor, count: int
) -> tuple[list[GalleryItem], list[str]]:
    """Returns cards of where the worst answers about regions looked, and why some could not be explained.

    count: At most so many; controls and empty answers are left out.
    """
    asked = [
        row
        for row, item in enumerate(items)
        if item.answer.strip() and len(item.query.boxes_px) and not item.metadata.get("control")
    ]
    cards, failed = [], []
    for row in sorted(asked, key=lambda row: quality(scores, row))[:count]:
        item = items[row]
        try:
            found = predictor.explain(item.query, item.answer)  # type: ignore[attr-defined]
        except InputError as error:
            failed.append(f"{item.id}: {error}")
            continue
        drawn = draw_heatmaps(open_image(item.query.image), found, found.heatmaps)
        parts = found.inside("occlusion")
        part = max(parts) if item.shown is None else parts[item.shown]
        answer = to_answer(item, scores, row, None, None)
        scored = replace(answer, region=None, scores={**answer.scores, "inside the region": part})
        cards.append(GalleryItem(drawn, (), item.id, [scored]))
    return cards, failed


def figure(name: str, estimate: dict[str, Any]) -> Estimate:
    """Returns the cell of an estimate; CIDEr may exceed 1 and is not shown in percent."""
    value, low, high, n = (estimate[key] for key in ("value", "low", "high", "n"))
    if name.startswith("CIDEr"):
        return Estimate(100 * value, 100 * low, 100 * high, n)
    return Estimate(value, low, high, n, percent=True)


def _key_figures(metrics: dict[str, Any]) -> list[tuple[str, str, str]]:
    estimates = metrics["estimates"]
    names = [name for name in metrics["main"] if name in estimates] or list(estimates)[:4]
    tiles = []
    for name in names[:6]:
        one = estimates[name]
        tiles.append(
            (name, f"{100 * one['value']:.1f}", f"{100 * one['low']:.1f}–{100 * one['high']:.1f}, n={one['n']}")
        )
    return tiles


def _tables(page: Report, metrics: dict[str, Any]) -> None:
    rows = [[name, figure(name, estimate)] for name, estimate in metrics["estimates"].items()]
    chance = metrics.get("chance")
    if isinstance(chance, float):
        rows.append(["chance", Estimate(chance, percent=True)])
    page.table("Figures", ["", "value"], rows, INTERVALS)
    if metrics["by_task"]:
        names = list(next(iter(metrics["by_task"].values())))
        parts = [[task, *(figure(name, found[name]) for name in names)] for task, found in metrics["by_task"].items()]
        page.table("By kind of question", ["", *names], parts)
    if metrics.get("protocols"):
        counts = [
            [name, *(one.get(key) for key in ("mean", "min", "max"))] for name, one in metrics["protocols"].items()
        ]
        page.table("References per item", ["protocol", "mean", "least", "most"], counts)


def _comparison(page: Report, compared: dict[str, Any]) -> None:
    rows = []
    for name, one in compared["differences"].items():
        difference = Estimate(100 * one["value"], 100 * one["low"], 100 * one["high"], one["n"])
        rows.append([name, 100 * one["before"], 100 * (one["before"] + one["value"]), difference])
    note = (
        f"Before: {compared['with']} ({compared.get('model') or 'model not stated'}), {compared['items']} common "
        "questions. A range that does not hold 0 is a difference beyond chance; images are resampled in pairs."
    )
    page.table("Against the other run", ["", "before", "now", "difference"], rows, note)


def quality(scores: Scores, row: int) -> float:
    """Returns what an item is ordered by: right or wrong, else its first score."""
    right = scores.right[row]
    return float(right) if right is not None else next(iter(scores.per_item[row].values()), 0.0)


def histograms(items: Sequence[Item], scores: Scores) -> list[tuple[str, list[Bin]]]:
    """Returns the bins by box size, number of regions and answer length; controls do not belong there."""
    rows = [row for row, item in enumerate(items) if not item.metadata.get("control")]
    values, items = [quality(scores, row) for row in rows], [items[row] for row in rows]
    several = any(len(item.query.boxes_px) != 1 for item in items)
    of_image: dict[str, int] = {}
    for item in items:
        of_image[item.group] = of_image.get(item.group, 0) + 1
    counts = [len(item.query.boxes_px) if several else of_image[item.group] for item in items]
    name = "regions in the question" if several else "regions asked about on the image"
    lengths = [len(words(item.answer)) for item in items]
    return [
        ("side of the box (root of its area), px", _bins([_side(item) for item in items], values, SIDES)),
        (name, _bins(counts, values, COUNTS)),
        ("length of the answer, words", _bins(lengths, values, LENGTHS)),
    ]


def _side(item: Item) -> float:
    boxes = item.query.boxes_px if item.shown is None else item.query.boxes_px[item.shown : item.shown + 1]
    if not len(boxes):
        return 0.0
    return float(np.sqrt(np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 0)).mean())


def _bins(measured: Sequence[float], values: Sequence[float], edges: Sequence[float]) -> list[Bin]:
    bins = []
    for low, high in itertools.pairwise(edges):
        inside = [value for one, value in zip(measured, values, strict=True) if low <= one < high]
        if math.isinf(high):
            label = f"{low:g} and more"
        else:
            label = f"{low:g}" if high - low == 1 else f"{low:g} to below {high:g}"
        if inside:
            bins.append(Bin(label, len(inside), sum(inside) / len(inside)))
    return bins


def gallery(items: Sequence[Item], scores: Scores, other: OtherRun | None = None) -> tuple[list[GalleryItem], str]:
    """Returns the cards of the worst, the best and some images in between, and a note on which those are."""
    cards: dict[tuple, list[int]] = {}
    for row, item in enumerate(items):
        alone = item.shown is not None and len(item.query.boxes_px) == 1
        key = (item.group,) if alone else (item.group, str(item.query.boxes_px.tolist()))
        if item.query.image.is_file():
            cards.setdefault(key, []).append(row)
    ordered = sorted(cards.values(), key=lambda rows: float(np.mean([quality(scores, row) for row in rows])))
    picked = pick(ordered)
    note = (
        "" if len(picked) == len(ordered) else f"{len(picked)} of {len(ordered)}: the worst {WORST}, the best {BEST}, "
    )
    note += f"{BETWEEN} drawn from the rest; at most {MOST_ANSWERS} answers each." if note else ""
    return [_card([items[row] for row in rows], rows, scores, other) for rows in picked], note


def pick(ordered: list) -> list:
    """Returns the first, the last and some of the middle of a list."""
    if len(ordered) <= WORST + BEST + BETWEEN:
        return ordered
    middle = range(WORST, len(ordered) - BEST)
    drawn = np.random.default_rng(0).choice(len(middle), BETWEEN, replace=False)
    return [*ordered[:WORST], *(ordered[WORST + index] for index in sorted(drawn.tolist())), *ordered[-BEST:]]


def _card(items: Sequence[Item], rows: Sequence[int], scores: Scores, other: OtherRun | None) -> GalleryItem:
    worst = sorted(range(len(items)), key=lambda index: quality(scores, rows[index]))[:MOST_ANSWERS]
    shown = sorted(worst)
    merged = all(items[index].shown is not None and len(items[index].query.boxes_px) == 1 for index in shown)
    boxes = [items[index].query.boxes_px[0] for index in shown] if merged else list(items[0].query.boxes_px)
    answers = [
        to_answer(items[index], scores, rows[index], other, number if merged else None)
        for number, index in enumerate(shown)
    ]
    return GalleryItem(items[0].query.image, boxes, items[0].query.image.name, answers)


def to_answer(item: Item, scores: Scores, row: int, other: OtherRun | None, number: int | None) -> Answer:
    """Returns one row of a card; number: the index of the item's only box among the card's."""
    before = other.predictions.get(item.id) if other is not None else None

    def renumbered(text: str) -> str:
        return text if number is None else _REGION_1.sub(rf"\g<1>{number + 1}", text)

    answer = item.answer if not item.error else f"(not answered: {item.error})"
    return Answer(
        renumbered(_shortened(item.query.question)),
        renumbered(answer),
        item.references[0] if scores.right[row] is not None else None,
        scores.right[row],
        item.task,
        item.references if scores.right[row] is None or len(item.references) > 1 else (),
        scores.per_item[row],
        number,
        None if before is None else renumbered(str(before.get("answer", ""))),
        None if before is None else next(iter((before.get("scores") or {}).values()), None),
    )


def _shortened(question: str) -> str:
    """Returns a question without its middle where it lists more than a reader wants to see under every image."""
    return question if len(question) <= 700 else f"{question[:400]} … {question[-150:]}"


def _provenance(metrics: dict[str, Any]) -> list[list[str]]:
    shown = (
        "command", "model", "data", "images", "split", "data_arguments", "limit", "shuffle", "items", "pictures",
        "references_per_item", "tokenizer", "decoding", "bootstrap", "seconds", "processes", "versions",
    )  # fmt: skip
    return [[name.replace("_", " "), str(metrics[name])] for name in shown if metrics.get(name) is not None]
