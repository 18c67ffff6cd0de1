"""From answers to numbers: shares with 95 % intervals (whole scenes are resampled), chance levels, difficulty bands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from gpt4roi.evaluation.captions import score_captions
from gpt4roi.evaluation.metrics import Measure, exact_match, majority_share, word_overlap, words
from gpt4roi.processing.mentions import MENTION
from quickstart.benchmark.items import RELATIONS, Item

DISTANCE_BANDS = (0.0, 60.0, 100.0, 140.0, math.inf)
"""Between the centres of two regions, in pixels of the scene."""
RATIO_BANDS = (1.0, 1.5, 2.0, 3.0, math.inf)
"""The larger area over the smaller."""
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
        "other": {task: _with_chance([item for item in plain if item.task == task]) for task in others},
        "unseen": _unseen([item for item in items if item.split == "test_unseen"], kinds),
    }
    return {"summary": _summary(metrics), **metrics}


def measures_of(items: Sequence[Item]) -> tuple[dict[str, Measure], list[str]]:
    """Returns the main figures as measures that can be compared between runs, and what could not be computed."""
    plain = [item for item in items if not item.control and item.split == "test"]
    captions = [item for item in plain if item.task == "caption"]
    permuted = [item for item in items if item.control == "permuted"]
    relations = [item for item in plain if item.task in RELATIONS]
    unseen = [item for item in items if item.split == "test_unseen"]
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
    }
    return measures, list(found.notes)


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
    }
