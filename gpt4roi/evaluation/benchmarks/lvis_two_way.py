"""LVIS, Ferret's two-way question: is the region a … or a …?

Source    lvis_v1_val.json; the images of COCO 2017.
Split     validation; ground-truth boxes.
Prompt    Ferret's.
Metric    accuracy, chance 50 %: by likelihood of the two names; and by Ferret's rule: an answer is right that holds the
          category's name or a synonym once "not …" and "no …" are deleted.
Protocol  the wrong name is drawn with a fixed seed from the file's `neg_category_ids`, which
          people looked for in vain, and so is the order of the
          two [guess: Ferret's own draws are not published with its code].
Pitfalls  Ferret's rule lets an answer that repeats both names pass; likelihood does not.
"""

from __future__ import annotations

from gpt4roi.evaluation.benchmarks._categories import LVIS_FILES, two_way

BENCHMARK = two_way("LVIS two-way question", LVIS_FILES)
