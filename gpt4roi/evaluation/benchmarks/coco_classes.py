"""COCO classification from boxes.

Source    instances_val2017.json and val2017/.
Split     val2017; ground-truth boxes, crowds left out.
Prompt    ours for detection data: all 80 names, then the bare box, as in the first stage of training.
Metric    top-1: the answer is the category's name word for word; and the category's name is the nearest of all to the
          answer by all-MiniLM-L6-v2.
Protocol  every box by itself; over boxes, not the mean over categories.
Pitfalls  the names are in the prompt, so this is a closed set; numbers without them are another task. Frequent things
          (person, 30 % of the boxes) carry the figure.
"""

from __future__ import annotations

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.evaluation.benchmarks._categories import COCO_FILES, classification
from gpt4roi.processing.prompts import DETECTION_INSTRUCTION


def _question(named: dict[int, tuple[str, ...]]) -> str:
    listed = ", ".join(names[0] for names in named.values())
    return DETECTION_INSTRUCTION.format(names=listed) + REGION_TOKEN


BENCHMARK = classification("COCO classification from boxes", "val2017", COCO_FILES, _question)
