"""Visual7W: pointing ("which" questions answered by one of four boxes) and telling (six kinds, answered in words).

Source    dataset_v7w_pointing.json or dataset_v7w_telling.json, and visual7w_images/, of the official release; for
          telling the boxes of v7w_telling_answers.json, of its grounding annotations.
Split     test (default), val, train: as every image states.
Prompt    pointing: the question and the four boxes as options (A) to (D). GPT4RoI's own prompt is neither in its
          repository nor in the paper [guess]. telling: the grounded boxes as regions, the question, four answers (A) to
          (D), in our own wording [guess].
Metric    accuracy over all questions (not the mean over kinds); by likelihood of the letters, and by parsing the answer
          (a letter, or a region).
Protocol  options in an order drawn for each question with a fixed seed; the file has the right one first. The boxes of
          telling are given without their names.
Pitfalls  others draw the boxes of pointing into the image, or give them as numbers: the same set, another task. Those
          of telling belong to what question and right answer mention, so they tell where to look; not every question
          has some. Without the grounding file questions are asked without boxes, which the notes then say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.choices import letters, write_options
from gpt4roi.evaluation.files import by_id, fields, find_annotations, find_images
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_choices
from gpt4roi.io.json_files import read_json

SPLITS = ("test", "val", "train")
POINTING = ("dataset_v7w_pointing.json", "visual7w-pointing/dataset.json")
TELLING = ("dataset_v7w_telling.json", "visual7w-telling/dataset.json")
GROUNDING = ("v7w_telling_answers.json", "dataset_v7w_grounding_annotations/v7w_telling_answers.json")
PROMPT = "{regions}{question}\n{options}\nAnswer with the letter of the right option."
_NO_BOXES = f"asked without boxes: {GROUNDING[0]} is not beside the questions"
FOLDERS = ("visual7w_images", "images")
_SEED = 0


def read_questions(
    source: Source, names: tuple[str, ...], split: str
) -> tuple[dict, Path, Iterator[tuple[Path, dict]]]:
    """Returns the file's content, its folder, and every question of the chosen images with its image."""
    path = find_annotations(source, names)
    content = read_json(path)
    (images,) = fields(content, ["images"], str(path))
    find = find_images(source, (path.parent / name for name in FOLDERS))
    of_split = [image for image in images if fields(image, ("split", "filename"), str(path))[0] == split]

    def questions() -> Iterator[tuple[Path, dict]]:
        for image in source.choose(of_split):
            for pair in fields(image, ["qa_pairs"], f"{path}, {image['filename']}")[0]:
                fields(pair, ("qa_id", "question", "answer", "multiple_choices"), f"{path}, {image['filename']}")
                yield find(image["filename"]), pair

    return content, path.parent, questions()


def mix(pair: dict) -> tuple[list[Any], int]:
    """Returns the candidates in an order that is drawn for the question, and the place of the right one."""
    candidates = [pair["answer"], *pair["multiple_choices"]]
    order = np.random.default_rng([_SEED, int(pair["qa_id"])]).permutation(len(candidates)).tolist()
    return [candidates[place] for place in order], order.index(0)


def load_pointing(source: Source) -> list[Item]:
    """Returns one item for each question; its options are boxes."""
    content, _, questions = read_questions(source, POINTING, source.split or SPLITS[0])
    boxes = by_id([{**box, "id": box.get("box_id")} for box in fields(content, ["boxes"], POINTING[0])[0]], POINTING[0])
    items = []
    for image, pair in questions:
        candidates, label = mix(pair)
        missing = [box for box in candidates if box not in boxes]
        if missing:
            raise InputError(f"{POINTING[0]}, question {pair['qa_id']}: there is no box {missing[0]!r}")
        corners = np.asarray([_corners(boxes[box]) for box in candidates])
        listed = write_options([f"<region{number}>" for number in range(1, len(candidates) + 1)])
        text = PROMPT.format(regions="", question=pair["question"], options=listed)
        options = tuple(f"region{number}" for number in range(1, len(candidates) + 1))
        query = Query(image, text, corners, choices=letters(len(candidates)), id=str(pair["qa_id"]))
        task = pair.get("type", "which")
        items.append(Item(query.id, query, (options[label],), task, options, label, None))
    return items


def _corners(box: dict) -> list[float]:
    x, y, width, height = fields(box, ("x", "y", "width", "height"), f"{POINTING[0]}, box {box['id']}")
    return [x, y, x + width, y + height]


def load_telling(source: Source) -> list[Item]:
    """Returns one item for each question; its options are texts."""
    _, folder, questions = read_questions(source, TELLING, source.split or SPLITS[0])
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


def score_telling(items: Sequence[Item], source: Source) -> Scores:
    """Scores the choices, and by kind of question."""
    scores = score_choices(items)
    scores.details["with_boxes"] = sum(len(item.query.boxes_px) > 0 for item in items)
    if items and not items[0].metadata["grounded"]:
        scores.notes.append(_NO_BOXES)
    return scores


BENCHMARKS = {
    "v7w-pointing": Benchmark("Visual7W pointing", SPLITS, load_pointing, score_choices),
    "v7w-telling": Benchmark("Visual7W telling", SPLITS, load_telling, score_telling),
}
