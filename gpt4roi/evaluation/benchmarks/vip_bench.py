"""ViP-Bench: 303 questions about regions, each of one or several of six capabilities.

Source    mucai/ViP-Bench on the hub: bbox/ and human/, each with questions.jsonl (`question_id`, `image`, `text`, the
          regions' boxes in pixels) and its images, source_image/ without the drawn prompts; vip-bench-meta-data.json
          (`answer`, `capability` by question_id) [guess: the fields' names, after MM-Vet, which it follows].
Split     box (default), human: tight boxes, or what people drew (arrows, scribbles), given here by its box.
Prompt    the questions; `<obj>` in them stands for a region.
Metric    the judge's score of an answer in [0, 1], mean over questions; by capability, where a question counts for each
          of its own.
Protocol  the paper's judge is GPT-4-0613, text alone, five runs averaged; one run here, at temperature 0. The
          instruction is MM-Vet's, without its examples.
Pitfalls  published figures are of models that see the prompts drawn into the image; given boxes are another task.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from gpt4roi.errors import InputError
from gpt4roi.evaluation.files import fields, find_images, mention_regions, read_regions
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.judge import JudgePrompt, only_number
from gpt4roi.evaluation.metrics import Measure
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import judge_of
from gpt4roi.io.json_files import read_json_object, read_jsonl

FOLDERS = {"box": ("bbox", "box"), "human": ("human",)}
PROMPT = JudgePrompt(
    """Compare the ground truth and prediction from AI models, to give a correctness score for the prediction. <AND> \
in the ground truth means it is totally right only when all elements in the ground truth are present in the \
prediction, and <OR> means it is totally right when any one element in the ground truth is present in the \
prediction. The correctness score is 0.0 (totally wrong), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, or 1.0 \
(totally right). Write the correctness score and nothing else.

Question: {question}
Ground truth: {reference}
Prediction: {candidate}
Correctness score:""",
    partial(only_number, low=0, high=1),
    max_tokens=16,
)


def load(source: Source) -> list[Item]:
    """Returns one item for each question of the split."""
    names = FOLDERS[source.split or "box"]
    folder = next((source.data / name for name in names if (source.data / name).is_dir()), None)
    if folder is None:
        raise InputError(f"--data {source.data}: the folder has no {' or '.join(names)}")
    path, truths = folder / "questions.jsonl", read_json_object(source.data / "vip-bench-meta-data.json")
    find = find_images(source, (folder / "source_image", source.data / "source_image", folder / "images"))
    items = []
    for record in source.choose(read_jsonl(path)):
        where = f"{path}, question {record.get('question_id')!r}"
        name, file_name, text = fields(record, ("question_id", "image", "text"), where)
        truth = truths.get(str(name))
        answer, capability = fields(truth, ("answer", "capability"), f"vip-bench-meta-data.json, {name}")
        boxes = read_regions(record, where)
        query = Query(find(str(file_name)), mention_regions(str(text), len(boxes), where), boxes, id=str(name))
        kinds = (capability,) if isinstance(capability, str) else tuple(capability)
        shown = 0 if len(boxes) == 1 else None
        items.append(Item(query.id, query, (str(answer),), shown=shown, metadata={"capability": kinds}))
    return items


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores by the judge, in all and by capability."""
    requests = [
        {"question": item.query.question, "reference": item.references[0], "candidate": item.answer} for item in items
    ]
    verdicts = judge_of(source).ask(PROMPT, requests)
    values, groups = [value or 0.0 for value in verdicts.values], [item.group for item in items]
    measures = {verdicts.named("all"): Measure.mean(values, groups)}
    for kind in dict.fromkeys(kind for item in items for kind in item.metadata["capability"]):
        rows = [row for row, item in enumerate(items) if kind in item.metadata["capability"]]
        measures[verdicts.named(kind)] = Measure.mean([values[row] for row in rows], [groups[row] for row in rows])
    per_item = [{"correctness": value} for value in values]
    details = {"judge": verdicts.details}
    return Scores(measures, per_item, [None] * len(items), {}, verdicts.notes, details, tuple(measures))


BENCHMARKS = {"vip-bench": Benchmark("ViP-Bench", tuple(FOLDERS), load, score, max_new_tokens=256, judge="required")}
