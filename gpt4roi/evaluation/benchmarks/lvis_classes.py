"""LVIS classification from boxes.

Source    lvis_v1_val.json; the images of COCO 2017 (its validation images lie in train2017 and val2017).
Split     v1 val; ground-truth boxes.
Prompt    open: 1203 names do not fit into a prompt. Osprey's question for names.
Metric    top-1: the answer is the category's name or one of its synonyms word for word; and the category's name is the
          nearest of all 1203 to the answer by all-MiniLM-L6-v2.
Protocol  every box by itself; over boxes, not the mean over categories.
Pitfalls  what stands in brackets in a name (`bus_(vehicle)`) is left out, so a few categories share a name; LVIS
          annotates only some of the things in an image.
"""

from __future__ import annotations

from gpt4roi.evaluation.benchmarks._categories import LVIS_FILES, classification
from gpt4roi.evaluation.benchmarks._names import QUESTION

BENCHMARK = classification("LVIS classification from boxes", "val", LVIS_FILES, lambda named: QUESTION)
