"""RefCOCO+ captions.

Source    MDETR's finetune_refcoco+_SPLIT.json; images of COCO train2014, flat.
Split     testA (people, default), testB (other things), val: UNC's.
Prompt    our own wording of the field's [guess]: independent measurements of GPT4RoI do not state theirs.
Metric    CIDEr, METEOR, BLEU, ROUGE-L (pycocoevalcap).
Protocol  both: "one reference per expression" and "all references of a box", see refcocog.
Pitfalls  expressions are two or three words ("left man"): a full sentence scores low whatever it says, so models that
          describe at length look worse than they are; images occur in COCO train2017 and in Visual Genome.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt4roi.evaluation.benchmarks._expressions import load_expressions
from gpt4roi.evaluation.items import Item, Scores, Source
from gpt4roi.evaluation.scoring import score_texts

TITLE = "RefCOCO+ captions"
SPLITS = ("testA", "testB", "val")
QUESTION = "In a few words, how would you refer to <region1>?"


def load(source: Source) -> list[Item]:
    """Returns one item for each box."""
    return load_expressions(source, "refcoco+", SPLITS, source.question or QUESTION)


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores both protocols."""
    return score_texts(items, both_protocols=True)
