"""DLC-Bench: detailed descriptions of masked regions, examined by questions that a judge answers from them.

Source    nvidia/DLC-Bench on the hub: annotations.json (COCO, 100 masks), images/, and qa.json, for each annotation id
          its questions, each with `question`, `choices` (pairs of a text and its score) and `type` (recognition,
          positive or negative) [guess: the fields' names].
Split     test.
Prompt    the benchmark's, "Describe the masked region in detail.", with the region.
Metric    positive: mean score of the questions on what is there; negative: of those on what is not; their average.
Protocol  the judge (Llama-3.1-8B-Instruct in the paper) sees the description alone and picks a choice. Where it gets
          the recognition question wrong, no score of the item is above 0. An item without negative questions does not
          count for negative. The judge's prompt is in our own words [guess]. Models of boxes get the box around the
          mask.
Pitfalls  GPT-4o with the image as judge gives about 10 points more on positive: another figure, under another name.
          A short answer loses no negative questions: a constant answer is not at 0 there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.choices import LETTERS
from gpt4roi.evaluation.files import fields, find_annotations, find_images, usable_boxes
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.judge import JudgePrompt
from gpt4roi.evaluation.metrics import Measure
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import judge_of
from gpt4roi.io.coco import image_file_name, read_tables
from gpt4roi.io.json_files import read_json, read_json_object

QUESTION = "Describe <region1> in detail."
RECOGNITION, POSITIVE, NEGATIVE = "recognition", "positive", "negative"


def read_letter(reply: str) -> int | None:
    """Returns the index of the letter that a reply begins with (`B`, `(B)`, `B. text`); None for another reply."""
    found = re.match(r"\s*\(?([A-J])(?:[).:,\s]|$)", reply)
    return LETTERS.index(found[1]) if found else None


PROMPT = JudgePrompt(
    """An object in an image was described as follows:
{description}

Answer the question from this description alone. Choose the option that comes closest; it need not match word for \
word. Write the letter of exactly one option and nothing else.
{question}
{options}""",
    read_letter,
)


def load(source: Source) -> list[Item]:
    """Returns one item for each mask; its reference is what the best choices say."""
    path = find_annotations(source, ("annotations.json",))
    tables, questions = read_tables(read_json(path), path), read_json_object(path.with_name("qa.json"))
    find = find_images(source, (path.parent / "images", path.parent))
    items = []
    for where, image, annotation, box, clues in usable_boxes(source, tables, path):
        name = str(annotation.get("id"))
        if name not in questions:
            source.leave_out(f"{where}: qa.json has no questions for {name}")
            continue
        asked = [_checked(one, f"qa.json, {name}") for one in questions[name]]
        query = Query(find(image_file_name(image)), source.question or QUESTION, box[None], id=name)
        best = "; ".join(max(one["choices"], key=lambda pair: pair[1])[0] for one in asked)
        items.append(Item(name, query, (best,), metadata={"questions": asked}, clues=clues))
    return source.choose(items)


def _checked(question: Any, where: str) -> dict[str, Any]:
    text, choices, kind = fields(question, ("question", "choices", "type"), where)
    if kind not in (RECOGNITION, POSITIVE, NEGATIVE):
        raise InputError(f"{where}: type {kind!r} is none of {RECOGNITION}, {POSITIVE}, {NEGATIVE}")
    try:
        pairs = [(str(said), float(score)) for said, score in choices]
    except (TypeError, ValueError):
        raise InputError(f"{where}: choices must be pairs of text and score, got {choices!r:.80}") from None
    return {"question": str(text), "choices": pairs, "type": kind}


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores each item by its questions, and the means over items."""
    asked = [(row, one) for row, item in enumerate(items) for one in item.metadata["questions"]]
    requests = [
        {"description": items[row].answer or "(nothing)", "question": one["question"]}
        | {
            "options": "\n".join(
                f"{letter}. {said}" for letter, (said, _) in zip(LETTERS, one["choices"], strict=False)
            )
        }
        for row, one in asked
    ]
    verdicts = judge_of(source).ask(PROMPT, requests)
    per_item: list[dict[str, float]] = []
    given: list[dict[str, list[float]]] = [{RECOGNITION: [], POSITIVE: [], NEGATIVE: []} for _ in items]
    for (row, one), choice in zip(asked, verdicts.values, strict=True):
        scores = [value for _, value in one["choices"]]
        known = choice is not None and choice < len(scores)
        given[row][one["type"]].append(scores[choice] if known else min(scores))
        if choice is not None and not known:
            verdicts.details["unreadable"] += 1
            verdicts.notes.append(f"{items[row].id}: the judge chose ({LETTERS[choice]}) of {len(scores)} options")
    for found in given:
        recognized = all(value > 0 for value in found[RECOGNITION])
        per_item.append(
            {
                kind: float(np.mean(values if recognized else np.minimum(values, 0)))
                for kind, values in found.items()
                if values and kind != RECOGNITION
            }
            | {RECOGNITION: float(recognized)}
        )
    return _means(items, per_item, verdicts)


def _means(items: Sequence[Item], per_item: list[dict[str, float]], verdicts: Any) -> Scores:
    groups, measures = [item.group for item in items], {}
    columns = np.zeros((len(items), 4))
    for row, found in enumerate(per_item):
        for at, kind in enumerate((POSITIVE, NEGATIVE)):
            if kind in found:
                columns[row, 2 * at : 2 * at + 2] = found[kind], 1
    single = np.asarray(
        [np.mean([found[kind] for kind in (POSITIVE, NEGATIVE) if kind in found] or [0.0]) for found in per_item]
    )
    measures[verdicts.named("average")] = Measure(columns, _average, single, groups)
    for kind in (POSITIVE, NEGATIVE, RECOGNITION):
        rows = [row for row, found in enumerate(per_item) if kind in found]
        values = [per_item[row][kind] for row in rows]
        measures[verdicts.named(kind)] = Measure.mean(values, [groups[row] for row in rows])
    details = {"judge": verdicts.details}
    return Scores(measures, per_item, [None] * len(items), {}, verdicts.notes, details, tuple(measures))


def _average(sums: np.ndarray) -> np.ndarray:
    """Returns the mean of two means, from sums of (value, count) of each."""
    return (sums[:, 0] / np.maximum(sums[:, 1], 1) + sums[:, 2] / np.maximum(sums[:, 3], 1)) / 2


BENCHMARKS = {"dlc-bench": Benchmark("DLC-Bench", ("test",), load, score, max_new_tokens=512, judge="required")}
