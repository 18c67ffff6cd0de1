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

from gpt4roi.evaluation.benchmarks._names import object_names

BENCHMARK = object_names("LVIS open-vocabulary names", "lvis_val_1k_category.json")
