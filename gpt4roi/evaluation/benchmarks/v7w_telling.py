"""Visual7W telling: six kinds of question answered in words, with the boxes of what they are about.

Source    dataset_v7w_telling.json and visual7w_images/ of the official release; boxes from v7w_telling_answers.json of
          its grounding annotations.
Split     test (default), val, train: as every image states.
Prompt    the grounded boxes as regions, the question, four answers (A) to (D). Our own wording [guess].
Metric    accuracy over all questions (not the mean over kinds); by likelihood of the letters, and by parsing.
Protocol  options in an order drawn for each question with a fixed seed; the file has the right one first. Boxes are
          given without their names.
Pitfalls  boxes belong to what question and right answer mention, so they tell where to look; not every question has
          some. Without the grounding file questions are asked without boxes, which the notes then say.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt4roi.evaluation.benchmarks._visual7w import mix, read_questions
from gpt4roi.evaluation.choices import letters, write_options
from gpt4roi.evaluation.files import fields
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_choices
from gpt4roi.io.json_files import read_json

SPLITS = ("test", "val", "train")
FILES = ("dataset_v7w_telling.json", "visual7w-telling/dataset.json")
GROUNDING = ("v7w_telling_answers.json", "dataset_v7w_grounding_annotations/v7w_telling_answers.json")
PROMPT = "{regions}{question}\n{options}\nAnswer with the letter of the right option."
_NO_BOXES = f"asked without boxes: {GROUNDING[0]} is not beside the questions"


def load(source: Source) -> list[Item]:
    """Returns one item for each question."""
    _, folder, questions = read_questions(source, FILES, source.split or SPLITS[0])
    grounding = next((folder / name for name in GROUNDING if (folder / name).is_file()), None)
    boxes: dict[int, list[list[float]]] = {}
    if grounding is not None:
        for row, box in enumerate(fields(read_json(grounding), ["boxes"], str(grounding))[0]):
            names = ("qa_id", "x", "y", "width", "height")
            qa_id, x, y, width, height = fields(box, names, f"{grounding}, boxes#{row}")
            boxes.setdefault(qa_id, []).append([x, y, x + width, y + height])
    items = []
    for image, pair in questions:
        options, label = mix(pair)
        corners = np.asarray(boxes.get(pair["qa_id"], []), dtype=np.float64).reshape(-1, 4)
        listed = ", ".join(f"<region{number}>" for number in range(1, len(corners) + 1))
        regions = f"The question is about {listed}.\n" if listed else ""
        text = PROMPT.format(regions=regions, question=pair["question"], options=write_options(options))
        query = Query(image, text, corners, choices=letters(len(options)), id=str(pair["qa_id"]))
        metadata = {"grounded": grounding is not None}
        items.append(
            Item(query.id, query, (options[label],), pair.get("type", ""), tuple(options), label, None, metadata)
        )
    return items


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores the choices, and by kind of question."""
    scores = score_choices(items)
    scores.details["with_boxes"] = sum(len(item.query.boxes_px) > 0 for item in items)
    if items and not items[0].metadata["grounded"]:
        scores.notes.append(_NO_BOXES)
    return scores


BENCHMARK = Benchmark("Visual7W telling", SPLITS, load, score)
