"""Questions about a scene whose answers follow from its boxes and captions.

Tasks: `caption`, `larger`, `left`, `above`, `near` (left or above, of near pairs), `count` (all things of the picture),
`animals` (how many of some regions are animals), `which` (which of them show animals, or one thing: an answer that
names regions), `spelt` (a name that the question spells out, to be said again). Regions are named by their 0-based
index here and as <region1>, … in the text. A pair of regions is only asked about where the answer is plain (see
`is_plain`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

import numpy as np

from gpt4roi.processing.mentions import name_regions

Box = Sequence[float]
"""x1, y1, x2, y2 in pixels."""

WORDING = {
    "caption": "What is {0}?",
    "larger": "Which is larger, {0} or {1}?",
    "left": "Is {0} left of {1}?",
    "above": "Is {0} above {1}?",
    "count": "How many things are in the picture?",
    "animals": "How many of {0} and {1} are animals?",
    "which": "Which of {0} and {1} show {2}?",
}
RELATIONS = ("larger", "left", "above")

SMALLEST_RATIO = 1.2
"""Smallest ratio of two areas that "larger" is asked about."""
SMALLEST_OFFSET = 24.0
"""Smallest distance between two centres, along the axis asked about, in pixels of a scene of 256."""
RATIO_BANDS = (SMALLEST_RATIO, 1.5, 2.0, 3.0, math.inf)
OFFSET_BANDS = (SMALLEST_OFFSET, 48.0, 80.0, 120.0, math.inf)
NEAR = 60.0
"""Offset below which a pair that is asked about counts as near, in pixels of a scene of 256."""
LARGEST_RATIO_SOUGHT = 6.0
LARGEST_OFFSET_SOUGHT = 180.0

COUNTED_KIND = "animals"
MOST_COUNTED = 4
"""Regions among which animals are counted."""
COUNTS_PER_SCENE = 2
RELATIONS_PER_SCENE = {"larger": 4, "left": 2, "above": 2}


@dataclass(frozen=True)
class Question:
    """One question and its answer. pair: what `measure` returns with the regions, None where no pair is compared."""

    task: str
    question: str
    answer: str
    pair: dict | None = None


def mention(region: int) -> str:
    """Returns how the text names a region; region: 0-based."""
    return f"<region{region + 1}>"


def area(box: Box) -> float:
    """Returns a box's area, in square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def answer(task: str, boxes: Sequence[Box], captions: Sequence[str], regions: Sequence[int] = ()) -> str:
    """Returns the right answer to a task's question about regions (in the order in which the question names them)."""
    if task == "caption":
        return captions[regions[0]]
    if task == "count":
        return str(len(boxes))
    first, second = (boxes[region] for region in regions)
    if task == "larger":
        winner = regions[0] if area(first) > area(second) else regions[1]
        return mention(winner).strip("<>")
    axis = {"left": 0, "above": 1}[task]
    return "yes" if first[axis] + first[axis + 2] < second[axis] + second[axis + 2] else "no"


def measure(task: str, first: Box, second: Box) -> dict:
    """Measures how hard a pair is.

    Returns distance: between the centres, pixels; offset: the same along the axis that `left` or `above` asks about,
    None for `larger`; ratio: the greater area over the smaller.
    """
    dx, dy = (abs(first[i] + first[i + 2] - second[i] - second[i + 2]) / 2 for i in (0, 1))
    areas = sorted((area(first), area(second)))
    offset = {"left": dx, "above": dy}.get(task)
    return {"distance": round(math.hypot(dx, dy), 1), "offset": offset, "ratio": round(areas[1] / areas[0], 3)}


def is_plain(task: str, measured: dict, unit: float = 1.0) -> bool:
    """Tells whether a pair is far enough apart to be asked about; unit: the scene's size over 256."""
    if task == "larger":
        return measured["ratio"] >= SMALLEST_RATIO
    return measured["offset"] >= SMALLEST_OFFSET * unit


def ask(task: str, boxes: Sequence[Box], captions: Sequence[str], regions: Sequence[int] = ()) -> Question:
    """Builds a question about regions, with its answer."""
    text = WORDING[task].format(*(mention(region) for region in regions))
    pair = None
    if task in RELATIONS:
        pair = {"regions": [region + 1 for region in regions], **measure(task, *(boxes[r] for r in regions))}
    return Question(task, text, answer(task, boxes, captions, regions), pair)


def ask_spelt(name: str) -> Question:
    """Builds a caption's question that spells the name out in place of the region; the answer says it again."""
    return Question("spelt", WORDING["caption"].format(name), name)


def conversations(asked: Sequence[Question]) -> list[dict]:
    """Returns questions and answers as the unified format writes them."""
    return [
        {"from": role, "value": text}
        for question in asked
        for role, text in (("human", question.question), ("gpt", question.answer))
    ]


def _difficulty(task: str, measured: dict, unit: float) -> float:
    """Returns the number whose values are spread evenly: the logarithm of the ratio, or the offset in 256ths."""
    return math.log(measured["ratio"]) if task == "larger" else measured["offset"] / unit


def _sought(rng: np.random.Generator, task: str) -> float:
    if task == "larger":
        return rng.uniform(math.log(SMALLEST_RATIO), math.log(LARGEST_RATIO_SOUGHT))
    return rng.uniform(SMALLEST_OFFSET, LARGEST_OFFSET_SOUGHT)


def _ordered(task: str, boxes: Sequence[Box], pair: tuple[int, int], first_wins: bool) -> tuple[int, int]:
    """Orders a pair so that the region that is larger, further left or higher is named first, or second."""
    a, b = pair
    key = {"larger": lambda r: -area(boxes[r]), "left": lambda r: boxes[r][0] + boxes[r][2]}.get(
        task, lambda r: boxes[r][1] + boxes[r][3]
    )
    winner, loser = (a, b) if key(a) < key(b) else (b, a)
    return (winner, loser) if first_wins else (loser, winner)


def _plain_pairs(task: str, boxes: Sequence[Box], unit: float) -> list[tuple[tuple[int, int], float]]:
    """Returns the pairs that can be asked about, each with its difficulty."""
    measured = [((a, b), measure(task, boxes[a], boxes[b])) for a, b in combinations(range(len(boxes)), 2)]
    return [(pair, _difficulty(task, m, unit)) for pair, m in measured if is_plain(task, m, unit)]


def draw_relations(
    rng: np.random.Generator, boxes: Sequence[Box], captions: Sequence[str], unit: float = 1.0
) -> list[Question]:
    """Draws a scene's relation questions: half of each task with either answer, pairs spread evenly over difficulty."""
    drawn = []
    for task, wanted in RELATIONS_PER_SCENE.items():
        pairs = _plain_pairs(task, boxes, unit)
        used = set()
        for first_wins in rng.permutation([True, False] * (wanted // 2)):
            sought = _sought(rng, task)
            left = [(abs(value - sought), pair) for pair, value in pairs if (pair, bool(first_wins)) not in used]
            if not left:
                continue
            pair = min(left)[1]
            used.add((pair, bool(first_wins)))
            drawn.append(ask(task, boxes, captions, _ordered(task, boxes, pair, bool(first_wins))))
    return drawn


def draw_counts(
    rng: np.random.Generator, labels: Sequence[str], counted: str = COUNTED_KIND, task: str = "animals"
) -> Question:
    """Asks how many (or `which`) of two to four regions have a label, each number that there is equally often.

    Args:
        rng: Draws the regions.
        labels: Kinds, or captions, of all regions of the scene.
        counted: The label.
        task: `animals` or `which`.
    """
    having = [
        [region for region, label in enumerate(labels) if (label == counted) == wanted] for wanted in (True, False)
    ]
    asked = int(rng.integers(2, min(MOST_COUNTED, len(labels)) + 1))
    number = int(rng.integers(max(0, asked - len(having[1])), min(asked, len(having[0])) + 1))
    parts = zip(having, (number, asked - number), strict=True)
    chosen = [int(region) for regions, share in parts for region in rng.permutation(regions)[:share]]
    order = sorted(chosen) if task == "which" else rng.permutation(chosen)
    *others, last = (mention(int(region)) for region in order)
    text = name_regions([region + 1 for region in chosen[:number]]) if task == "which" else str(number)
    return Question(task, WORDING[task].format(", ".join(others), last, counted), text)


def draw_which(rng: np.random.Generator, kinds: Sequence[str], captions: Sequence[str]) -> list[Question]:
    """Asks which regions show animals, and which show one thing of the scene, which may not be among them."""
    thing = captions[int(rng.integers(len(captions)))]
    return [draw_counts(rng, kinds, task="which"), draw_counts(rng, captions, thing, "which")]


def draw_near(
    rng: np.random.Generator, boxes: Sequence[Box], captions: Sequence[str], unit: float = 1.0
) -> list[Question]:
    """Asks `left` and `above` about every near pair, in a random order; the task is `near`, with a share of its own."""
    drawn = []
    for task in ("left", "above"):
        for pair, offset in _plain_pairs(task, boxes, unit):
            if offset < NEAR:
                asked = ask(task, boxes, captions, _ordered(task, boxes, pair, bool(rng.integers(2))))
                drawn.append(replace(asked, task="near"))
    return drawn


def draw_balanced(
    rng: np.random.Generator, scenes: Sequence[tuple[Sequence[Box], Sequence[str]]], wanted: int, unit: float = 1.0
) -> list[list[Question]]:
    """Draws `wanted` questions of every relation over all scenes: both answers equally often, evenly over the bands.

    scenes: (boxes, captions) each. Returns each scene's questions. Where a band has too few pairs, they are asked in
    the other order as well, and then other bands fill up; fewer questions come out only where the pairs run out.
    """
    of_scene: list[list[Question]] = [[] for _ in scenes]
    for task in RELATIONS:
        streams = [_both_orders(band) for band in _pairs_by_band(rng, task, [boxes for boxes, _ in scenes], unit)]
        for scene, pair, first_wins in islice(_round_robin(streams), wanted):
            boxes, captions = scenes[scene]
            of_scene[scene].append(ask(task, boxes, captions, _ordered(task, boxes, pair, first_wins)))
    return of_scene


def _pairs_by_band(
    rng: np.random.Generator, task: str, boxes_of_scenes: Sequence[Sequence[Box]], unit: float
) -> list[list[tuple[int, tuple[int, int]]]]:
    """Sorts every plain pair of every scene, as (scene, pair) in a random order, into the bands of its task."""
    edges = [math.log(edge) for edge in RATIO_BANDS] if task == "larger" else list(OFFSET_BANDS)
    bands: list[list[tuple[int, tuple[int, int]]]] = [[] for _ in edges[1:]]
    for scene, boxes in enumerate(boxes_of_scenes):
        for pair, value in _plain_pairs(task, boxes, unit):
            bands[max(0, sum(value >= edge for edge in edges[:-1]) - 1)].append((scene, pair))
    return [[band[i] for i in rng.permutation(len(band))] for band in bands]


def _both_orders(band: Sequence[tuple[int, tuple[int, int]]]) -> list[tuple[int, tuple[int, int], bool]]:
    """Lists every pair once, with the winner named first in every second, and then every pair the other way round."""
    once = [(scene, pair, number % 2 == 0) for number, (scene, pair) in enumerate(band)]
    return once + [(scene, pair, not first_wins) for scene, pair, first_wins in once]


def _round_robin(streams: Sequence[Sequence]) -> Iterator:
    """Takes two items at a time, which have the two answers, from one stream after the other until all are empty."""
    for start in range(0, max(map(len, streams), default=0), 2):
        for stream in streams:
            yield from stream[start : start + 2]
