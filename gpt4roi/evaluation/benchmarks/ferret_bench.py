"""Ferret-Bench: three parts of 40 questions (describing regions, reasoning about them, grounded conversation).

Source    Ferret's folders refer_desc/ (shipped as refer_caption/), refer_reason/ and ground_conv/, each with
          question.jsonl and answer.jsonl (`question_id`, `text`, of a question `image` too) and, where it is there,
          context.jsonl; images of COCO val2017 [guess: the fields, as of LLaVA's benchmark that it follows].
Split     all (default), or one part.
Prompt    the questions of the files; the boxes in their texts, [x1, y1, x2, y2] as fractions of the image, become
          regions.
Metric    100 · sum of the judge's ratings (1 to 10) of the answers / sum of those of the references; by part, and their
          mean.
Protocol  the paper's judge is GPT-4, which sees texts alone. The judge's prompt is in our own words [guess].
Pitfalls  the published script looks for refer_desc/ and does not find the shipped folder. ground_conv expects boxes in
          the answer; a model of boxes as input alone writes none, and is rated so. 40 questions: intervals are wide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks.referring_expressions import COCO_FOLDERS
from gpt4roi.evaluation.files import fields, find_images
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_pairs
from gpt4roi.io.images_on_disk import ImageFinder
from gpt4roi.io.json_files import read_jsonl
from gpt4roi.processing.images import read_header

PARTS = {
    "refer_desc": ("refer_desc", "refer_caption"),
    "refer_reason": ("refer_reason",),
    "ground_conv": ("ground_conv",),
}
"""The folders that a part may lie in."""
FOLDERS = ("images", "coco/val2017", "val2017", *COCO_FOLDERS)
_NUMBER = r"\s*(\d*\.?\d+)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


def load(source: Source) -> list[Item]:
    """Returns one item for each question of the chosen parts."""
    parts = list(PARTS) if source.split in (None, "all") else [str(source.split)]
    find = find_images(source, (root / name for root in (source.data, source.data.parent) for name in FOLDERS), True)
    return [item for part in parts for item in _of_part(source, part, find)]


def _of_part(source: Source, part: str, find: ImageFinder) -> Iterator[Item]:
    folder = next((source.data / name for name in PARTS[part] if (source.data / name).is_dir()), None)
    if folder is None:
        raise InputError(f"--data {source.data}: the folder has no {' or '.join(PARTS[part])}; --split takes one part")
    answers, contexts = _texts(folder / "answer.jsonl"), {}
    if (folder / "context.jsonl").is_file():
        contexts = _texts(folder / "context.jsonl")
    for record in source.choose(read_jsonl(folder / "question.jsonl")):
        where = f"{folder / 'question.jsonl'}, question {record.get('question_id')!r}"
        name, file_name, text = fields(record, ("question_id", "image", "text"), where)
        if str(name) not in answers:
            raise InputError(f"{where}: answer.jsonl has no answer to it")
        image = find(str(file_name))
        question, boxes = _with_regions(str(text), image)
        query = Query(image, question, boxes, id=f"{part}:{name}")
        context = contexts.get(str(name)) or contexts.get(str(file_name), "")
        shown = 0 if len(boxes) == 1 else None
        yield Item(query.id, query, (answers[str(name)],), part, shown=shown, metadata={"context": context})


def _texts(path: Path) -> dict[str, str]:
    """Returns the text of each line by its question, or else its image."""
    found = {}
    for record in read_jsonl(path, "Ferret-Bench's"):
        key = next((record[name] for name in ("question_id", "image", "id") if name in record), None)
        text = next((record[name] for name in ("text", "context", "caption", "captions") if name in record), None)
        if key is None or text is None:
            raise InputError(f"{path}: expected question_id and text, got {', '.join(record)}")
        found[str(key)] = text if isinstance(text, str) else "\n".join(map(str, text))
    return found


def _with_regions(text: str, image: Path) -> tuple[str, np.ndarray]:
    """Returns a question with its boxes as regions, and these, float64[N, 4] xyxy in pixels."""
    boxes = list(dict.fromkeys(_BOX.findall(text)))
    question = _BOX.sub(lambda found: f"<region{boxes.index(found.groups()) + 1}>", text)
    if not boxes:
        return question, np.zeros((0, 4))
    height, width = read_header(str(image)).size_in("upright")
    return question, np.asarray(boxes, dtype=np.float64) * [width, height, width, height]


BENCHMARKS = {
    "ferret-bench": Benchmark("Ferret-Bench", ("all", *PARTS), load, score_pairs, max_new_tokens=512, judge="required")
}
