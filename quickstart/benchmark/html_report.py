"""HTML report of the benchmark: its own key figures, tables and galleries."""

from __future__ import annotations

from collections.abc import Sequence

from gpt4roi.evaluation.compare import OtherRun
from gpt4roi.evaluation.items import Item, Scores
from gpt4roi.evaluation.metrics import exact_match
from gpt4roi.report.report import Answer, Estimate, GalleryItem, Report
from quickstart.benchmark.items import RELATIONS

LEAD = (
    "Scenes composed from cut-out images on photographs that were never used in training. Every question is asked "
    "by itself and answered greedily; right means the same words."
)
INTERVALS = "Bars: share right in percent; the two marks enclose 95 % of resamplings of whole scenes; n: answers."


def tables(page: Report, metrics: dict) -> None:
    """Adds the figures and the controls."""
    page.table("Captions", ["", "share"], _caption_rows(metrics), INTERVALS)
    page.table("Relations", ["", "right", "chance", "regions exchanged"], _relation_rows(metrics))
    page.table("Relations by difficulty", ["", "band", "right"], _band_rows(metrics), folded=True)
    page.table("Things never shown in training", ["", "share"], _unseen_rows(metrics))


def galleries(
    items: Sequence[Item], scores: Scores, other: OtherRun | None
) -> list[tuple[str, list[GalleryItem], str]]:
    """Returns both galleries: title, cards, note."""
    note = "Held-out scenes, the unchanged questions."
    seen = ("Scenes", _gallery(items, "test", other), note)
    return [seen, ("Scenes of things never shown", _gallery(items, "test_unseen", other), "")]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def key_figures(metrics: dict) -> list[tuple[str, str, str]]:
    """Returns the tiles at the top of the page: what, value, small print."""
    summary = metrics["summary"]
    exact = metrics["captions"]["exact"]
    interval = f"{exact['n']} regions, {100 * exact['low']:.1f}–{100 * exact['high']:.1f}"
    right = metrics["relations"]["all"]["right"]
    return [
        ("captions exact", _percent(summary["captions_exact"]), interval),
        (
            "relations right",
            _percent(summary["relations"]),
            f"{right['n']} questions, chance {100 * summary['relations_chance']:.0f}",
        ),
        (
            "boxes permuted",
            _percent(summary["permuted_asked"]),
            f"of the asked; {100 * summary['permuted_given']:.1f} of the box shown",
        ),
        ("regions blank", _percent(summary["blank_exact"]), "captions exact without any region"),
        (
            "never shown",
            _percent(summary["unseen_exact"]),
            f"exact; {100 * summary['unseen_word_overlap']:.0f} % word overlap",
        ),
    ]


def _percentage(estimate: dict) -> Estimate:
    return Estimate(estimate["value"], estimate["low"], estimate["high"], estimate["n"], percent=True)


def _cider(estimate: dict) -> Estimate:
    value, low, high = (100 * estimate[key] for key in ("value", "low", "high"))
    return Estimate(value, low, high, estimate["n"])


def _caption_rows(metrics: dict) -> list[list]:
    captions = metrics["captions"]
    return [
        ["exact", _percentage(captions["exact"])],
        ["word overlap (F1)", _percentage(captions["word_overlap"])],
        *(
            [["CIDEr × 100", _cider(metrics["estimates"]["captions_cider"])]]
            if "captions_cider" in metrics["estimates"]
            else []
        ),
        ["boxes permuted: of the region asked about (should be near 0)", _percentage(captions["permuted"]["asked"])],
        ["boxes permuted: of the box really shown (should be as above)", _percentage(captions["permuted"]["given"])],
        ["regions blank (should be near 0)", _percentage(captions["blank"]["exact"])],
    ]


def _relation_rows(metrics: dict) -> list[list]:
    rows = []
    for task in (*RELATIONS, "all"):
        of_task = metrics["relations"][task]
        if of_task["right"]["n"]:
            swapped = _percentage(of_task["swapped"]["right"])
            rows.append([task, _percentage(of_task["right"]), _percent(of_task["chance"]), swapped])
    rows += [
        [task, _percentage(found["right"]), _percent(found["chance"]), None] for task, found in metrics["other"].items()
    ]
    return rows


def _band_rows(metrics: dict) -> list[list]:
    rows = []
    for task in RELATIONS:
        for key, what in (("by_ratio", "ratio of areas"), ("by_offset", "offset, px"), ("by_distance", "distance, px")):
            for band in metrics["relations"][task].get(key, []):
                reach = f"{band['from']:g} and more" if band["to"] is None else f"{band['from']:g} to {band['to']:g}"
                rows.append([f"{task}: {what}", reach, _percentage(band)])
    return rows


def _unseen_rows(metrics: dict) -> list[list]:
    unseen = metrics["unseen"]
    return [
        ["exact", _percentage(unseen["exact"])],
        ["word overlap (F1)", _percentage(unseen["word_overlap"])],
        ["word overlap with another region's caption (chance)", _percentage(unseen["word_overlap_of_another"])],
        ["names a thing of the right kind (animal, food, …)", _percentage(unseen["kind"])],
        ["of another region's kind (chance)", _percentage(unseen["kind_of_another"])],
    ]


def _gallery(items: Sequence[Item], split: str, other: OtherRun | None) -> list[GalleryItem]:
    scenes: dict[str, list[Item]] = {}
    for item in items:
        if item.metadata["split"] == split and not item.metadata["control"]:
            scenes.setdefault(item.metadata["scene"], []).append(item)
    return [
        GalleryItem(
            of_scene[0].query.image, of_scene[0].query.boxes_px, scene, [_answer(item, other) for item in of_scene]
        )
        for scene, of_scene in scenes.items()
    ]


def _answer(item: Item, other: OtherRun | None) -> Answer:
    before = other.predictions.get(item.id) if other is not None else None
    truth = item.references[0]
    previous = None if before is None else str(before.get("answer", ""))
    right = exact_match(item.answer, truth)
    return Answer(item.query.question, item.answer, truth, right, item.task, region=item.shown, before=previous)
