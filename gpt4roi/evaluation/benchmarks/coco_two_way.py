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

from gpt4roi.evaluation.benchmarks._categories import COCO_FILES, two_way

BENCHMARK = two_way("COCO two-way question", COCO_FILES)
