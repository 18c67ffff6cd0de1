"""From answers to numbers: shares with 95 % intervals (whole scenes are resampled), chance levels, difficulty bands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from gpt4roi.evaluation.captions import score_captions
from gpt4roi.evaluation.metrics import Measure, exact_match, majority_share, set_overlap, word_overlap, words
from gpt4roi.processing.mentions import MENTION, named_regions
from quickstart.accepted import is_accepted
from quickstart.benchmark.items import OVERLAPPING, PHOTOGRAPHS, RELATIONS, Item

DISTANCE_BANDS = (0.0, 60.0, 100.0, 140.0, math.inf)
"""Between the centres of two regions, in pixels of the scene."""
RATIO_BANDS = (1.0, 1.5, 2.0, 3.0, math.inf)
"""The larger area over the smaller."""
NEAR = (24.0, 60.0)
"""Offsets of near pairs along the axis that is asked about, in pixels of the scene."""
CALIBRATION_BINS = 10
BEFORE_PHOTOGRAPHS = 0.0
"""Share of photographs that the recipe without photographs and without the tower's own head got right: the floor."""
OFFSET_BANDS = (0.0, 48.0, 80.0, 120.0, math.inf)
"""Between the centres along the axis that is asked about, in pixels of the scene."""


def figures(items: Sequence[Item], kinds: dict[str, str]) -> dict:
    """Returns all measures as plain values; kinds: the kind of every known caption."""
    plain = [item for item in items if not item.control and item.split == "test"]
    captions = [item for item in plain if item.task == "caption"]
    relations = {task: _relation([item for item in items if item.task == task], items) for task in RELATIONS}
    others = dict.fromkeys(item.task for item in plain if item.task not in ("caption", *RELATIONS))
    metrics = {
        "captions": {
            "exact": _share(captions),
            "word_overlap": _mean(captions, lambda item: word_overlap(item.answer, item.truth)),
            "permuted": _permuted([item for item in items if item.control == "permuted"]),
            "blank": {"exact": _share([item for item in items if item.control == "blank"])},
        },
        "relations": {"all": _relation([item for item in items if item.task in RELATIONS], items), **relations},
        "near": _share(_near(plain)),
        "other": {task: _with_chance([item for item in plain if item.task == task]) for task in others},
        "which": {name: one.estimate().to_dict() for name, one in _which(plain).items()},
        "unseen": _unseen([item for item in items if item.split == "test_unseen"], kinds),
        "photographs": _photographs([item for item in items if item.split == PHOTOGRAPHS]),
        "overlapping": _permuted([item for item in items if item.split == OVERLAPPING]),
        "calibration": {"captions": calibration(captions)},
    }
    metrics["calibration"]["photographs"] = calibration([item for item in items if item.split == PHOTOGRAPHS])
    return {"summary": _summary(metrics), **metrics}


def measures_of(items: Sequence[Item]) -> tuple[dict[str, Measure], list[str]]:
    """Returns the main figures as measures that can be compared between runs, and what could not be computed."""
    plain = [item for item in items if not item.control and item.split == "test"]
    captions = [item for item in plain if item.task == "caption"]
    permuted = [item for item in items if item.control == "permuted"]
    relations = [item for item in plain if item.task in RELATIONS]
    unseen = [item for item in items if item.split == "test_unseen"]
    photographs = [item for item in items if item.split == PHOTOGRAPHS]
    found = score_captions(
        [item.answer for item in captions], [[item.truth] for item in captions], _scenes(captions), quick=True
    )
    cider = {"captions_cider": found.measures["CIDEr"]} if "CIDEr" in found.measures else {}
    measures = {
        "captions_exact": _right(captions),
        "relations": _right(relations),
        "permuted_given": _measure(permuted, lambda item: exact_match(item.answer, item.given or "")),
        "unseen_word_overlap": _measure(unseen, lambda item: word_overlap(item.answer, item.truth)),
        "captions_word_overlap": _measure(captions, lambda item: word_overlap(item.answer, item.truth)),
        **cider,
        "permuted_asked": _right(permuted),
        "blank_exact": _right([item for item in items if item.control == "blank"]),
        **{task: _right([item for item in plain if item.task == task]) for task in RELATIONS},
        "relations_swapped": _right([item for item in items if item.control == "swapped"]),
        "unseen_exact": _right(unseen),
        "unseen_accepted": _measure(unseen, lambda item: item.is_accepted),
        "near": _right(_near(plain)),
        "count": _right([item for item in plain if item.task == "animals"]),
        **_which(plain),
    }
    if photographs:
        measures["photographs"] = _right(photographs)
    overlapping = [item for item in items if item.split == OVERLAPPING]
    if overlapping:
        measures["overlapping"] = _right(overlapping)
    return measures, list(found.notes)


def _which(items: Sequence[Item]) -> dict[str, Measure]:
    """Returns how well answers name regions: mean precision, recall and F1, and whether as many as there are."""
    asked = [item for item in items if item.task == "which"]
    sets = [
        [set(named_regions(text, len(item.query.boxes_px))) for text in (item.answer, item.truth)] for item in asked
    ]
    rows = [(*set_overlap(said, expected), float(len(said) == len(expected))) for said, expected in sets]
    columns = zip(("precision", "recall", "f1", "count"), zip(*rows, strict=True), strict=True) if rows else ()
    return {f"which_{name}": Measure.mean(values, _scenes(asked)) for name, values in columns}


def _scenes(items: Sequence[Item]) -> list[str]:
    return [item.scene for item in items]


def _measure(items: Sequence[Item], value: Callable[[Item], float]) -> Measure:
    return Measure.mean([float(value(item)) for item in items], _scenes(items))


def _right(items: Sequence[Item]) -> Measure:
    return _measure(items, lambda item: item.right)


def _mean(items: Sequence[Item], value: Callable[[Item], float]) -> dict:
    return _measure(items, value).estimate().to_dict()


def _share(items: Sequence[Item]) -> dict:
    return _mean(items, lambda item: item.right)


def _permuted(items: Sequence[Item]) -> dict:
    return {"asked": _share(items), "given": _mean(items, lambda item: exact_match(item.answer, item.given or ""))}


def _with_chance(items: Sequence[Item]) -> dict:
    return {"right": _share(items), "chance": round(_chance(items), 4)}


def _chance(items: Sequence[Item]) -> float:
    """Returns what the best constant answer scores; naming the first (or the second) region counts as constant."""
    return majority_share([_position(item) for item in items])


def _position(item: Item) -> str:
    mentioned = [f"region{number}" for number in MENTION.findall(item.query.question)]
    return f"region at place {mentioned.index(item.truth)}" if item.truth in mentioned else item.truth


def _relation(items: Sequence[Item], everything: Sequence[Item]) -> dict:
    plain = [item for item in items if not item.control]
    swapped = [item for item in items if item.control == "swapped"]
    by_id = {item.id: item for item in everything}
    was_right = [item for item in swapped if item.asked_as in by_id and by_id[item.asked_as].right]
    by_task = [[item for item in plain if item.task == task] for task in RELATIONS]
    result = {
        "right": _share(plain),
        "chance": round(sum(_chance(of_task) * len(of_task) for of_task in by_task) / max(len(plain), 1), 4),
        "swapped": {"right": _share(swapped), "flipped_of_right": _share(was_right)},
        "by_distance": _bands(plain, "distance", DISTANCE_BANDS),
    }
    if {item.task for item in plain} == {"larger"}:
        result["by_ratio"] = _bands(plain, "ratio", RATIO_BANDS)
    elif {item.task for item in plain} <= {"left", "above"}:
        result["by_offset"] = _bands(plain, "offset", OFFSET_BANDS)
    return result


def _bands(items: Sequence[Item], measure: str, edges: Sequence[float]) -> list[dict]:
    """Returns the share right in each band of a measure of the pair; empty bands are left out."""
    bands = []
    for low, high in itertools.pairwise(edges):
        inside = [item for item in items if item.pair and low <= item.pair[measure] < high]
        if inside:
            bands.append({"from": low, "to": None if math.isinf(high) else high, **_share(inside)})
    return bands


def _near(items: Sequence[Item]) -> list[Item]:
    """Returns the questions about which of two near regions is left of, or above, the other."""
    asked = [item for item in items if item.task in ("left", "above") and item.pair]
    return [item for item in asked if NEAR[0] <= (item.pair or {})["offset"] < NEAR[1]]


def _photographs(items: Sequence[Item]) -> dict:
    """Scores regions of photographs beside what the tower's own head says of them, which is about the ceiling."""
    return {
        "accepted": _share(items),
        "head": _mean(items, lambda item: is_accepted(item.head, item.accepted)),
        "floor": BEFORE_PHOTOGRAPHS,
    }


def calibration(items: Sequence[Item]) -> dict:
    """Tells whether confidence means what it says.

    Returns `ece`, the mean difference of confidence and share right over bins of confidence, weighted by their items;
    and `terciles`, from the least to the most confident third: mean confidence, and share right.
    """
    known = sorted((item for item in items if item.confidence is not None), key=lambda item: item.confidence or 0.0)
    if not known:
        return {}
    confidences = np.asarray([item.confidence for item in known], dtype=np.float64)
    right = np.asarray([item.right for item in known], dtype=np.float64)
    bins = np.minimum((confidences * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs((confidences - right)[bins == one].sum()) for one in range(CALIBRATION_BINS)]
    thirds = [third for third in np.array_split(np.arange(len(known)), 3) if len(third)]
    return {
        "ece": round(float(sum(gaps)) / len(known), 6),
        "terciles": [
            {"confidence": round(float(confidences[third].mean()), 6), "right": _share([known[one] for one in third])}
            for third in thirds
        ],
    }


def _unseen(items: Sequence[Item], kinds: dict[str, str]) -> dict:
    """Scores captions of things never shown; `another` compares with the truth of another region, for chance."""
    others = [*items[1:], *items[:1]]
    other_of = {id(item): other for item, other in zip(items, others, strict=True)}
    kind_of = {" ".join(words(caption)): kind for caption, kind in kinds.items()}

    def said_kind(item: Item) -> str | None:
        return kind_of.get(" ".join(words(item.answer)))

    return {
        "exact": _share(items),
        "word_overlap": _mean(items, lambda item: word_overlap(item.answer, item.truth)),
        "accepted": _mean(items, lambda item: item.is_accepted),
        "accepted_of_another": _mean(items, lambda item: is_accepted(item.answer, other_of[id(item)].accepted)),
        "word_overlap_of_another": _mean(items, lambda item: word_overlap(item.answer, other_of[id(item)].truth)),
        "kind": _mean(items, lambda item: said_kind(item) == item.kind),
        "kind_of_another": _mean(items, lambda item: said_kind(item) == other_of[id(item)].kind),
    }


def _summary(metrics: dict) -> dict:
    """Returns the main figures, flat."""
    captions, relations, unseen = metrics["captions"], metrics["relations"], metrics["unseen"]
    return {
        "captions_exact": captions["exact"]["value"],
        "captions_n": captions["exact"]["n"],
        "permuted_asked": captions["permuted"]["asked"]["value"],
        "permuted_given": captions["permuted"]["given"]["value"],
        "blank_exact": captions["blank"]["exact"]["value"],
        **{task: relations[task]["right"]["value"] for task in RELATIONS},
        "relations": relations["all"]["right"]["value"],
        "relations_chance": relations["all"]["chance"],
        "relations_swapped": relations["all"]["swapped"]["right"]["value"],
        "unseen_exact": unseen["exact"]["value"],
        "unseen_word_overlap": unseen["word_overlap"]["value"],
        "unseen_accepted": unseen["accepted"]["value"],
        "near": metrics["near"]["value"],
        **{task: found["right"]["value"] for task, found in metrics["other"].items()},
        **{name: found["value"] for name, found in metrics["which"].items()},
        **_photographs_summary(metrics),
        **({"overlapping": metrics["overlapping"]["asked"]["value"]} if metrics["overlapping"]["asked"]["n"] else {}),
    }


def _photographs_summary(metrics: dict) -> dict:
    found = metrics["photographs"]
    if not found["accepted"]["n"]:
        return {}
    return {
        "photographs": found["accepted"]["value"],
        "photographs_n": found["accepted"]["n"],
        "photographs_head": found["head"]["value"],
    }
