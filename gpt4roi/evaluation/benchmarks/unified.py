"""A held-out file of one's own, in the unified format.

Source    a file as trainings read (`--data my/test.jsonl`): images, boxes, questions and answers.
Split     test: the whole file.
Prompt    the questions of the file, each by itself; of a dialogue whose turns depend on each other, the first.
Metric    by what the answer in the file is. Text: CIDEr, METEOR, BLEU, ROUGE-L, sentence similarity, exact match, and
          CLAIR with a judge. Yes or no, an option of those that the question lists, or regions by their numbers
          (`region2, region5`): accuracy, by likelihood too where there are options; of regions also F1.
Protocol  one reference an item. By `tasks`: the share that is right (texts word for word), beside that of the
          commonest answer of the task, which a model reaches that sees nothing.
Pitfalls  a few dozen questions give wide intervals; images that are in the training file too give figures of what was
          memorized (`gpt4roi data check TRAIN --eval TEST` finds them).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.errors import InputError
from gpt4roi.evaluation.choices import parse_choice, read_options, written_like
from gpt4roi.evaluation.files import find_annotations
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.metrics import Measure, exact_match, set_overlap, words
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import choose, rows_by_task, score_texts
from gpt4roi.evaluation.similarity import MISSING, SentenceModel, find_sentence_model
from gpt4roi.geometry.frames import Frame, FrameClues
from gpt4roi.processing.mentions import MENTION, number_boxes

TEXT, YES_NO, CHOICE, POINTING = "text", "yes/no", "multiple choice", "pointing"
FRAMES: dict[str | None, Frame] = {"detection": "upright", "dialogue": "stored"}
"""Of the boxes of an object that states its image pipeline."""
_YES_NO = re.compile(r"(\W*)(yes|no)(\W*)", re.I)
_REGION = re.compile(r"<?\bregion\s?(\d+)\b>?(?: <bbox>)?", re.I)
_NONE = re.compile(r"(?:none|no regions?)\W*", re.I)


def load(source: Source) -> list[Item]:
    """Returns one item for each question that can be asked by itself."""
    if source.question is not None:
        raise InputError("--question: unified asks the questions of its file; leave it out")
    path = find_annotations(source, ("test.jsonl",))
    data = UnifiedDataset(path, source.images)
    for drop in data.drops():
        if drop.detail:
            source.leave_out(drop.detail)
        else:
            source.filtered[drop.reason] += 1
    return [item for index in source.choose(range(len(data))) for item in _items(data, index, source)]


def _items(data: UnifiedDataset, index: int, source: Source) -> Iterator[Item]:
    entry, where = data.entry(index), data.source(index)
    turns = entry["conversations"]
    pairs = [
        (place, turns[place][1], turns[place + 1][1])
        for place in range(len(turns) - 1)
        if (turns[place][0], turns[place + 1][0]) == ("user", "assistant")
    ]
    if entry["image"] is None:
        source.filtered["question without an image"] += len(pairs)
        return
    if not entry["independent"]:
        source.filtered["later question of a dialogue"] += len(pairs) - 1
        pairs = pairs[:1]
    bare = number_boxes([text for _, text in turns], len(entry["boxes"]))
    frame = FRAMES.get(entry["image_pipeline"])
    clues = FrameClues(entry["image_size"], frame, "stored")  # as a training opens it unless the object says otherwise
    image = Path(data.image_path(entry["image"]))
    for place, question, answer in pairs:
        boxes = entry["boxes"][bare[place]] if any(bare) else entry["boxes"]
        shown = {int(number) - 1 for number in MENTION.findall(question)} or set(range(question.count(REGION_TOKEN)))
        options, choices, kind = _options(question, answer)
        label = options.index(_canonical(kind, answer, options)) if options else None
        task = entry["tasks"][place // 2] if entry["tasks"] else ""
        name = f"{where.rpartition('#')[2]}.{place // 2}"
        query = Query(image, question, boxes, choices=choices, id=name)
        only = shown.pop() if len(shown) == 1 else None
        yield Item(name, query, (answer,), task, options, label, only, {"kind": kind}, clues=clues)


def _options(question: str, answer: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Returns what may be answered, how the file would write each, and what kind of question it is."""
    found = _YES_NO.fullmatch(answer.strip())
    if found:
        before, word, after = found.groups()
        write = str.upper if word.isupper() else str.title if word[0].isupper() else str.lower
        return ("yes", "no"), tuple(f"{before}{write(one)}{after}" for one in ("yes", "no")), YES_NO
    options = read_options(question)
    label = parse_choice(answer, options) if options else None
    if label is not None:
        return options, written_like(answer, options, label), CHOICE
    return (), (), TEXT if regions_of(answer) is None else POINTING


def _canonical(kind: str, answer: str, options: Sequence[str]) -> str:
    return words(answer)[0] if kind == YES_NO else options[parse_choice(answer, options) or 0]


def regions_of(answer: str) -> frozenset[int] | None:
    """Returns the numbers of the regions that an answer consists of; none of `none`; None for another answer."""
    if _NONE.fullmatch(answer.strip()):
        return frozenset()
    rest = words(_REGION.sub(" ", answer))
    numbers = frozenset(map(int, _REGION.findall(answer)))
    return numbers if numbers and set(rest) <= {"and"} else None


def _parse(item: Item) -> int | None:
    if item.metadata["kind"] == CHOICE:
        return parse_choice(item.answer, item.options)
    said = {word for word in words(item.answer) if word in item.options}
    return item.options.index(said.pop()) if len(said) == 1 else None


def _is_right(item: Item) -> bool:
    if item.metadata["kind"] == TEXT:
        return exact_match(item.answer, item.references[0])
    if item.metadata["kind"] == POINTING:
        return regions_of(item.answer) == regions_of(item.references[0])
    return _parse(item) == item.label


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores every kind of answer by its own measures, and all of them by task."""
    rows = {kind: [row for row, item in enumerate(items) if item.metadata["kind"] == kind] for kind in KINDS}
    groups, right = [item.group for item in items], [_is_right(item) for item in items]
    total = Scores(
        {}, [{} for _ in items], [None if row in set(rows[TEXT]) else right[row] for row in range(len(items))]
    )
    for kind, members in rows.items():
        if members:
            found = KINDS[kind]([items[row] for row in members], source)
            total.measures |= found.measures
            total.notes += found.notes
            total.details |= found.details
            total.main += found.main
            for row, scores in zip(members, found.per_item, strict=True):
                total.per_item[row] = scores
    total.details["kinds"] = {kind: len(members) for kind, members in rows.items() if members}
    total.by_task = {
        task: {
            "right": Measure.mean([right[row] for row in members], [groups[row] for row in members]),
            "the commonest answer": Measure.mean(
                _commonest([items[row] for row in members]), [groups[row] for row in members]
            ),
        }
        for task, members in rows_by_task(items).items()
    }
    return total


def _commonest(items: Sequence[Item]) -> list[bool]:
    answers = [" ".join(words(item.references[0])) for item in items]
    common = Counter(answers).most_common(1)[0][0]
    return [answer == common for answer in answers]


def _texts(items: Sequence[Item], source: Source) -> Scores:
    scores, folder = score_texts(items, source), find_sentence_model(source.sentence_model)
    if folder is None:
        scores.notes.append(MISSING)
        return scores
    alike = SentenceModel(folder).similarity([item.answer for item in items], [item.references[0] for item in items])
    scores.measures["similarity"] = Measure.mean(alike, [item.group for item in items])
    for row, one in zip(scores.per_item, alike, strict=True):
        row["similarity"] = float(one)
    return scores


def _choices(items: Sequence[Item], source: Source) -> Scores:
    kind, groups = items[0].metadata["kind"], [item.group for item in items]
    ways = {name.replace("accuracy", kind): right for name, right in choose(items, _parse).items()}
    measures = {name: Measure.mean(right, groups) for name, right in ways.items()}
    per_item = [{name: float(right[row]) for name, right in ways.items()} for row in range(len(items))]
    return Scores(measures, per_item, [], main=tuple(ways))


def _pointing(items: Sequence[Item], source: Source) -> Scores:
    groups, per_item = [item.group for item in items], []
    for item in items:
        said, expected = regions_of(item.answer) or frozenset(), regions_of(item.references[0]) or frozenset()
        per_item.append({"pointing F1": set_overlap(said, expected)[2], "pointing": float(_is_right(item))})
    measures = {name: Measure.mean([one[name] for one in per_item], groups) for name in ("pointing F1", "pointing")}
    return Scores(measures, per_item, [], main=("pointing F1",))


KINDS = {TEXT: _texts, YES_NO: _choices, CHOICE: _choices, POINTING: _pointing}
"""How the items of each kind of answer are scored."""

BENCHMARKS = {"unified": Benchmark("Held-out file in the unified format", ("test",), load, score, judge="optional")}
