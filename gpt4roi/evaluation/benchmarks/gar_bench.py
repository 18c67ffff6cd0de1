"""GAR-Bench: questions about relations of several regions, and short descriptions of them that a judge checks.

Source    HaochenWang/GAR-Bench on the hub: GAR-Bench-VQA.json, GAR-Bench-Caption-Simple.json and
          GAR-Bench-Caption-Detailed.json, lists of `image`, `mask_rles`, `question`, of VQA `choices` and `answer` (a
          letter), of captions `answer` or `caption` [guess: the fields' names].
Split     of gar-vqa: test. Of gar-caption: simple (default), detailed.
Prompt    the questions; `<Prompt0>` stands for the first region.
Metric    gar-vqa: accuracy, by likelihood of the letters and by parsing; needs no judge. gar-caption: share of
          descriptions that say what the reference says, as the judge (GPT-4o in the paper) has it.
Protocol  masks become boxes, as this is a model of boxes; the paper gives masks. The judge's prompt is in our own words
          [guess], text alone.
Pitfalls  the repository's figures for its own models differ from its paper's by 2 to 3 points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt4roi.errors import InputError
from gpt4roi.evaluation.choices import letters, parse_choice, write_options
from gpt4roi.evaluation.files import fields, find_annotations, find_images, mention_regions, read_regions
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.judge import JudgePrompt, yes_or_no
from gpt4roi.evaluation.metrics import Measure
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import judge_of, score_choices
from gpt4roi.io.json_files import read_json

OPTIONS = "{question}\n{options}\nAnswer with the letter of the right option."
PROMPT = JudgePrompt(
    """Does the description say what the reference says of the regions, the same relation between the same things? It \
may use other words and say more, but must not contradict it. Answer with Yes or No and nothing else.

Question: {question}
Reference: {reference}
Description: {candidate}""",
    yes_or_no,
    max_tokens=16,
)


def _records(source: Source, name: str) -> Iterator[tuple[str, dict, Query]]:
    path = find_annotations(source, (f"{name}.json", f"annotations/{name}.json"))
    folders: tuple[Path, ...] = (path.parent / "images", path.parent.parent / "images", path.parent)
    find = find_images(source, folders)
    for row, record in source.choose(list(enumerate(read_json(path)))):
        where = f"{path}#{row}"
        image, question = fields(record, ("image", "question"), where)
        boxes = read_regions(record, where)
        yield (
            where,
            record,
            Query(find(str(image)), mention_regions(str(question), len(boxes), where), boxes, id=str(row)),
        )


def load_vqa(source: Source) -> list[Item]:
    """Returns one item for each question with its options."""
    items = []
    for where, record, query in _records(source, "GAR-Bench-VQA"):
        given, answer = fields(record, ("choices", "answer"), where)
        options = tuple(str(one) for one in (given.values() if isinstance(given, dict) else given))
        label = parse_choice(str(answer), options)
        if label is None:
            raise InputError(f"{where}: answer {answer!r} is none of {', '.join(options)}")
        text = OPTIONS.format(question=query.question, options=write_options(options))
        asked = Query(query.image, text, query.boxes_px, choices=letters(len(options)), id=query.id)
        task = str(record.get("type", ""))
        items.append(Item(query.id, asked, (options[label],), task, options, label, None))
    return items


def load_captions(source: Source) -> list[Item]:
    """Returns one item for each description that is asked for."""
    name = f"GAR-Bench-Caption-{(source.split or 'simple').title()}"
    items = []
    for where, record, query in _records(source, name):
        (reference,) = fields(record, ["caption" if "caption" in record else "answer"], where)
        items.append(Item(query.id, query, (str(reference),), shown=0 if len(query.boxes_px) == 1 else None))
    return items


def score_captions(items: Sequence[Item], source: Source) -> Scores:
    """Scores the share of descriptions that the judge accepts."""
    requests = [
        {"question": item.query.question, "reference": item.references[0], "candidate": item.answer} for item in items
    ]
    verdicts = judge_of(source).ask(PROMPT, requests)
    right, name = [bool(value) for value in verdicts.values], verdicts.named("right")
    measures = {name: Measure.mean(right, [item.group for item in items])}
    per_item = [{"right": float(one)} for one in right]
    return Scores(measures, per_item, list(right), {}, verdicts.notes, {"judge": verdicts.details}, (name,))


BENCHMARKS = {
    "gar-vqa": Benchmark("GAR-Bench, questions", ("test",), load_vqa, score_choices),
    "gar-caption": Benchmark(
        "GAR-Bench, descriptions", ("simple", "detailed"), load_captions, score_captions, 128, judge="required"
    ),
}
