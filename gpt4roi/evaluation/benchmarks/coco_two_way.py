"""COCO, Ferret's two-way question: is the region a … or a …?

Source    instances_val2017.json and val2017/.
Split     validation; ground-truth boxes.
Prompt    Ferret's.
Metric    accuracy, chance 50 %: by likelihood of the two names; and by Ferret's rule: an answer is right that holds the
          category's name or a synonym once "not …" and "no …" are deleted.
Protocol  the wrong name is drawn with a fixed seed from all categories without a box in the
          image, and so is the order of the
          two [guess: Ferret's own draws are not published with its code].
Pitfalls  Ferret's rule lets an answer that repeats both names pass; likelihood does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt4roi.evaluation.benchmarks._categories import COCO_FILES, load_two_way, names_right
from gpt4roi.evaluation.items import Item, Scores, Source
from gpt4roi.evaluation.scoring import score_choices

TITLE = "COCO two-way question"
SPLITS = ("val",)


def load(source: Source) -> list[Item]:
    """Returns one item for each box."""
    return load_two_way(source, COCO_FILES)


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores the choices."""
    return score_choices(items, names_right)
