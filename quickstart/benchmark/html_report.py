"""HTML report of the benchmark: its own key figures, tables and galleries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gpt4roi.evaluation.compare import OtherRun
from gpt4roi.evaluation.items import Item, Scores
from gpt4roi.report.report import Answer, Estimate, GalleryItem, Report
from quickstart.benchmark.items import PHOTOGRAPHS, RELATIONS

LEAD = (
    "Regions of photographs that carry no training region, and scenes composed from cut-out images on photographs that "
    "were never used in training. Every question is asked by itself and answered greedily; right means the same words, "
    "or on photographs one of the accepted names."
)
CALIBRATION = (
    "Confidence: the mean probability of the answer's tokens. In thirds of the answers, from the least sure up."
)
INTERVALS = "Bars: share right in percent; the two marks enclose 95 % of resamplings of whole scenes; n: answers."


def tables(page: Report, metrics: dict) -> None:
    """Adds the figures and the controls."""
    if metrics["photographs"]["accepted"]["n"]:
        page.table("Photographs", ["", "share"], _photograph_rows(metrics))
    rows = [
        row for what in ("photographs", "captions") for row in _calibration_rows(what, metrics["calibration"][what])
    ]
    if rows:
        page.table("How sure, how right", ["", "mean confidence, %", "right"], rows, CALIBRATION)
    page.table("Captions", ["", "share"], _caption_rows(metrics), INTERVALS)
    page.table("Relations", ["", "right", "chance", "regions exchanged"], _relation_rows(metrics))
    page.table("Relations by difficulty", ["", "band", "right"], _band_rows(metrics), folded=True)
    overlapping = metrics["overlapping"]
    if overlapping["asked"]["n"]:
        rows = [["the thing itself", overlapping["asked"]], ["the other one of its pair", overlapping["given"]]]
        shares = [[what, _percentage(share)] for what, share in rows]
        page.table("Things that lie on each other", ["named", "share"], shares, "Their boxes nearly coincide.")
    page.table("Things never shown in training", ["", "share"], _unseen_rows(metrics))


def galleries(
    items: Sequence[Item], scores: Scores, other: OtherRun | None
) -> list[tuple[str, list[GalleryItem], str]]:
    """Returns the galleries: title, cards, note."""
    photographs = _gallery(items, PHOTOGRAPHS, other)
    shown = [("Photographs", photographs, "The worst first.")] if photographs else []
    note = "Held-out scenes, the unchanged questions."
    seen = ("Scenes", _gallery(items, "test", other), note)
    return [*shown, seen, ("Scenes of things never shown", _gallery(items, "test_unseen", other), "")]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def key_figures(metrics: dict) -> list[tuple[str, str, str]]:
    """Returns the tiles at the top of the page: what, value, small print."""
    summary = metrics["summary"]
    exact = metrics["captions"]["exact"]
    interval = f"{exact['n']} regions, {100 * exact['low']:.1f}–{100 * exact['high']:.1f}"
    right = metrics["relations"]["all"]["right"]
    photographs = metrics["photographs"]["accepted"]
    about_head = f"{photographs['n']} regions; the tower's own head {_percent(metrics['photographs']['head']['value'])}"
    shown = [("photographs", _percent(photographs["value"]), about_head)] if photographs["n"] else []
    return [
        *shown,
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
            f"exact; {100 * summary['unseen_accepted']:.0f} % name the right category",
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


def _photograph_rows(metrics: dict) -> list[list]:
    found = metrics["photographs"]
    return [
        ["an accepted name", _percentage(found["accepted"])],
        ["ceiling: the vision tower's own classifier", _percentage(found["head"])],
        ["floor: the recipe without photographs", Estimate(found["floor"], percent=True)],
    ]


def _calibration_rows(what: str, found: dict) -> list[list]:
    if not found:
        return []
    names = [f"{what}, {third} sure third" for third in ("least", "middle", "most")]
    rows = [
        [name, round(100 * third["confidence"], 1), _percentage(third["right"])]
        for name, third in zip(names, found["terciles"], strict=False)
    ]
    return [*rows, [f"{what}, expected calibration error", None, Estimate(found["ece"], percent=True)]]


def _relation_rows(metrics: dict) -> list[list]:
    rows = []
    for task in (*RELATIONS, "all"):
        of_task = metrics["relations"][task]
        if of_task["right"]["n"]:
            swapped = _percentage(of_task["swapped"]["right"])
            rows.append([task, _percentage(of_task["right"]), _percent(of_task["chance"]), swapped])
    rows.append(["near: left and above, 24 to 60 px apart", _percentage(metrics["near"]), None, None])
    rows += [
        [task, _percentage(found["right"]), _percent(found["chance"]), None] for task, found in metrics["other"].items()
    ]
    rows += [[name.replace("_", ": "), _percentage(found), None, None] for name, found in metrics["which"].items()]
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
        ["accepted: names a thing of the right category (any bird for a bird)", _percentage(unseen["accepted"])],
        ["accepted for another region (chance)", _percentage(unseen["accepted_of_another"])],
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
    stamp = item.metadata["stamp"]
    right = replace(stamp, answer=item.answer).right
    previous = None if before is None else str(before.get("answer", ""))
    scores = {} if item.confidence is None else {"confidence": item.confidence}
    return Answer(
        item.query.question,
        item.answer,
        stamp.truth,
        right,
        item.task,
        scores=scores,
        region=item.shown,
        before=previous,
    )
