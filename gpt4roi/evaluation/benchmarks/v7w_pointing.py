"""Visual7W pointing: "which" questions answered by one of four boxes.

Source    dataset_v7w_pointing.json and visual7w_images/ of the official release.
Split     test (default), val, train: as every image states.
Prompt    the question and the four boxes as options (A) to (D). GPT4RoI's own prompt is neither in its repository nor
          in the paper [guess].
Metric    accuracy over all questions; by likelihood of the letters, and by parsing the answer (a letter or a region).
Protocol  the boxes stand in an order drawn for each question with a fixed seed; the file has the right one first.
Pitfalls  others draw the boxes into the image instead, or give them as numbers: the same set, another task.
"""

from __future__ import annotations

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks._visual7w import mix, read_questions
from gpt4roi.evaluation.choices import letters, write_options
from gpt4roi.evaluation.files import by_id, fields
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_choices

SPLITS = ("test", "val", "train")
FILES = ("dataset_v7w_pointing.json", "visual7w-pointing/dataset.json")
PROMPT = "{question}\n{options}\nAnswer with the letter of the right option."


def load(source: Source) -> list[Item]:
    """Returns one item for each question."""
    content, _, questions = read_questions(source, FILES, source.split or SPLITS[0])
    boxes = by_id([{**box, "id": box.get("box_id")} for box in fields(content, ["boxes"], FILES[0])[0]], FILES[0])
    items = []
    for image, pair in questions:
        candidates, label = mix(pair)
        missing = [box for box in candidates if box not in boxes]
        if missing:
            raise InputError(f"{FILES[0]}, question {pair['qa_id']}: there is no box {missing[0]!r}")
        corners = np.asarray([_corners(boxes[box]) for box in candidates])
        listed = write_options([f"<region{number}>" for number in range(1, len(candidates) + 1)])
        text = PROMPT.format(question=pair["question"], options=listed)
        options = tuple(f"region{number}" for number in range(1, len(candidates) + 1))
        query = Query(image, text, corners, choices=letters(len(candidates)), id=str(pair["qa_id"]))
        task = pair.get("type", "which")
        items.append(Item(query.id, query, (options[label],), task, options, label, None))
    return items


def _corners(box: dict) -> list[float]:
    x, y, width, height = fields(box, ("x", "y", "width", "height"), f"{FILES[0]}, box {box['id']}")
    return [x, y, x + width, y + height]


BENCHMARK = Benchmark("Visual7W pointing", SPLITS, load, score_choices)
