"""LVIS, open-vocabulary names of regions.

Source    Osprey's lvis_val_1k_category.json (1,000 images, 4,004 objects); COCO 2017 images.
Split     that list.
Prompt    Osprey's.
Metric    SS: cosine of all-MiniLM-L6-v2 embeddings of answer and category. S-IoU: shared words over all words.
Protocol  `_` and `:` in a category become blanks; of an answer what follows the first colon counts, without `.`, `:`
          and `,`; means over objects. Models of boxes get the box around the mask.
Pitfalls  the reference run draws answers at temperature 0.2 without a seed, so published numbers move a little; greedy
          here. Bare crops, masks and boxes are three tasks under one name. Exact match is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt4roi.evaluation.benchmarks._names import load_objects
from gpt4roi.evaluation.items import Item, Scores, Source
from gpt4roi.evaluation.scoring import score_names

TITLE = "LVIS open-vocabulary names"
SPLITS = ("val_1k",)


def load(source: Source) -> list[Item]:
    """Returns one item for each object."""
    return load_objects(source, "lvis_val_1k_category.json")


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores similarity and shared words."""
    return score_names(items, source.sentence_model)
