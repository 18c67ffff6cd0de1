"""Visual Commonsense Reasoning.

Source    val.jsonl and vcr1images/ of the official release; boxes from each item's metadata file.
Split     val (default). The labels of test are hidden; its numbers come from the leaderboard.
Prompt    all objects are introduced as regions, then the question with its options (A) to (D), answered by a letter.
          Our own wording [guess]: the paper prints its prompts, for a model fine-tuned on them.
Metric    accuracy of Q→A, of QA→R (the right answer is given, the rationale asked), and of Q→AR.
Protocol  Q→AR is right where both are, joined by annot_id, never by order, and not the product of the two. Every item
          counts; what was not answered is wrong. By likelihood of the letters, and by parsing the answer.
Pitfalls  token lists number objects from 0, the `*_orig` strings from 1, and those also hold plain numbers: only the
          token lists are read here. A model that was not trained for letters may do better in its own
          format. `--limit` counts lines of the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.choices import letters, write_options
from gpt4roi.evaluation.files import fields, find_annotations, find_images
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.metrics import Measure
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import choose, score_choices
from gpt4roi.io.coco import frame_clues
from gpt4roi.io.images_on_disk import ImageFinder
from gpt4roi.io.json_files import read_json, read_jsonl

SPLITS = ("val",)
ANSWER, RATIONALE, BOTH = "Q→A", "QA→R", "Q→AR"
ANSWER_PROMPT = "{regions}Question: {question}\nOptions:\n{options}\nAnswer with the letter of the right option."
RATIONALE_PROMPT = (
    "{regions}Question: {question}\nAnswer: {answer}\nWhich of these is the reason for the answer?\n{options}\n"
    "Answer with the letter of the right option."
)
_KEYS = (
    "annot_id", "img_fn", "metadata_fn", "objects", "question",
    "answer_choices", "answer_label", "rationale_choices", "rationale_label",
)  # fmt: skip
_LOOSE = re.compile(r"\s+([.,?!;:%)]|n't\b|'(?:s|re|ve|ll|d|m)\b)")


def load(source: Source) -> list[Item]:
    """Returns two items for each line, `ID:qa` and `ID:qar`."""
    name = f"{source.split or SPLITS[0]}.jsonl"
    path = find_annotations(source, (name, f"vcr/{name}"))
    find = find_images(source, (path.parent / "vcr1images", path.parent / "images"))
    records = source.choose([(f"{path}#{row}", one) for row, one in enumerate(read_jsonl(path), start=1)])
    return [item for where, record in records for item in _items(record, find, where)]


def _items(record: dict, find: ImageFinder, where: str) -> list[Item]:
    name, img_fn, metadata_fn, objects, question, answers, answer_label, reasons, reason_label = fields(
        record, _KEYS, where
    )
    metadata = read_json(find(metadata_fn))
    boxes = np.asarray(fields(metadata, ["boxes"], str(metadata_fn))[0], dtype=np.float64)
    if len(boxes) != len(objects):
        raise InputError(f"{where}: {len(objects)} objects, but {metadata_fn} has {len(boxes)} boxes")

    def asked(prompt: str, options: Sequence[str], kind: str, label: int, **parts: str) -> Item:
        text = prompt.format(regions=introduce(objects), options=write_options(options), **parts)
        query = Query(find(img_fn), text, boxes.reshape(len(boxes), -1)[:, :4], choices=letters(len(options)), id=kind)
        right, of = (options[label],), {"annot_id": name}
        return Item(kind, query, right, parts_of[kind], tuple(options), label, None, of, clues=frame_clues(metadata))

    parts_of = {f"{name}:qa": ANSWER, f"{name}:qar": RATIONALE}
    question_text = write_tokens(question, objects, where)
    first, second = ([write_tokens(one, objects, where) for one in several] for several in (answers, reasons))
    right = first[answer_label]
    return [
        asked(ANSWER_PROMPT, first, f"{name}:qa", answer_label, question=question_text),
        asked(RATIONALE_PROMPT, second, f"{name}:qar", reason_label, question=question_text, answer=right),
    ]


def introduce(objects: Sequence[str]) -> str:
    """Returns the sentence that shows every object as a region."""
    listed = ", ".join(f"<region{number}>" for number in range(1, len(objects) + 1))
    return f"There are {listed} in the image.\n" if objects else ""


def write_tokens(tokens: Sequence[Any], objects: Sequence[str], where: str) -> str:
    """Returns a token list as text; `[0, 2]` becomes `person at <region1> and dog at <region3>`."""
    written = []
    for token in tokens:
        if isinstance(token, str):
            written.append(token)
            continue
        if not isinstance(token, list) or not all(isinstance(n, int) and 0 <= n < len(objects) for n in token):
            raise InputError(f"{where}: the token {token!r} names no object; there are {len(objects)}, from 0")
        written.append(" and ".join(f"{objects[number]} at <region{number + 1}>" for number in token))
    return _LOOSE.sub(r"\1", " ".join(written))


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores both questions, and where both are right."""
    scores = score_choices(items)
    scores.main, measures = (), {}
    for way, right in choose(items).items():
        found = dict(zip(((item.metadata["annot_id"], item.task) for item in items), right, strict=True))
        group_of = {item.metadata["annot_id"]: item.group for item in items}
        columns = {
            ANSWER: [found[name, ANSWER] for name in group_of],
            RATIONALE: [found[name, RATIONALE] for name in group_of],
        }
        columns[BOTH] = [all(pair) for pair in zip(*columns.values(), strict=True)]
        way = way.removeprefix("accuracy ")
        for kind in (ANSWER, RATIONALE, BOTH):
            measures[f"{kind} {way}"] = Measure.mean(columns[kind], list(group_of.values()))
        scores.main += tuple(f"{kind} {way}" for kind in (ANSWER, RATIONALE, BOTH))
    scores.measures = measures | {name: one for name, one in scores.measures.items() if not name.startswith("accuracy")}
    scores.by_task = {}
    scores.details["chance"] = {ANSWER: 0.25, RATIONALE: 0.25, BOTH: 0.0625}
    return scores


BENCHMARKS = {"vcr": Benchmark("Visual Commonsense Reasoning", SPLITS, load, score)}
