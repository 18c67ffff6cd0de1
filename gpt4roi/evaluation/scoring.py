"""Scoring: captions, open-vocabulary names and multiple choice, from predictions to Scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.captions import score_captions
from gpt4roi.evaluation.choices import likeliest, parse_choice
from gpt4roi.evaluation.items import Item, Scores, Source, count_references
from gpt4roi.evaluation.judge import Judge, JudgePrompt, Verdicts, json_number
from gpt4roi.evaluation.metrics import Measure, exact_match, word_overlap
from gpt4roi.evaluation.similarity import (
    MISSING,
    SentenceModel,
    clean_category,
    clean_name,
    find_sentence_model,
    lexical_match,
    semantic_iou,
)

CAPTION_MEASURES = ("CIDEr", "METEOR", "BLEU-4", "ROUGE-L")
LIKELIHOOD, PARSED = "accuracy (likelihood)", "accuracy (parsed)"
PER_EXPRESSION, ALL_REFERENCES = "one reference per expression", "all references of a box"
SAME_NAME, KIND_OR_PART = "lexical, same name", "lexical, kind or part"
CLAIR = JudgePrompt(
    """You are trying to tell if a candidate set of captions is describing the same image as a reference set of \
captions.
Candidate set:
{candidate}
Reference set:
{reference}
On a precise scale from 0 to 100, how likely is it that the candidate set is describing the same image as the \
reference set? (JSON format, with a key "score", value between 0 and 100, and a key "reason" with a string value.)""",
    partial(json_number, name="score", low=0, high=100),
    max_tokens=512,
)
"""As its paper prints it (Chan et al. 2023, CLAIR); the figure is the mean of score / 100."""


def score_texts(items: Sequence[Item], source: Source | None = None, both_protocols: bool = False) -> Scores:
    """Scores captions against references, and their words without any tool; by CLAIR where the source has a judge.

    both_protocols: also with every reference as an item of its own, `CIDEr (one reference per expression)`; the same
    answer then counts once for each. Otherwise, and beside it, an item has all its references.
    """
    answers, groups, notes = [item.answer for item in items], [item.group for item in items], []
    found = score_captions(answers, [item.references for item in items], groups)
    overlap = [max(word_overlap(item.answer, truth) for truth in item.references) for item in items]
    exact = [any(exact_match(item.answer, truth) for truth in item.references) for item in items]
    own = {"word overlap": Measure.mean(overlap, groups), "exact match": Measure.mean(exact, groups)}
    measures = _in_order(found.measures) | own
    protocols = {ALL_REFERENCES: count_references(items)} if both_protocols else {}
    main: tuple[str, ...] = CAPTION_MEASURES
    if both_protocols:
        alone = [(item, (truth,)) for item in items for truth in item.references]
        apart = score_captions(
            [item.answer for item, _ in alone], [truth for _, truth in alone], [item.group for item, _ in alone]
        )
        named = {f"{name} ({ALL_REFERENCES})": measure for name, measure in measures.items()}
        measures = {f"{name} ({PER_EXPRESSION})": one for name, one in _in_order(apart.measures).items()} | named
        notes = [f"{PER_EXPRESSION}: {note}" for note in apart.notes if note not in found.notes]
        protocols[PER_EXPRESSION] = {"mean": 1.0, "min": 1, "max": 1, "n": len(alone)}
        main = tuple(f"{name} ({kind})" for kind in (PER_EXPRESSION, ALL_REFERENCES) for name in ("CIDEr", "METEOR"))
    shown = [name for name in (*CAPTION_MEASURES, "SPICE") if name in found.measures]
    per_item = [
        {name: float(found.measures[name].per_item[row]) for name in shown} | {"word overlap": float(overlap[row])}
        for row in range(len(items))
    ]
    details = {"tokenizer": found.tokenizer} | ({"protocols": protocols} if both_protocols else {})
    if source is not None and source.judge is not None:
        verdicts = judge_captions(source.judge, items)
        shares = [value / 100 if value is not None else 0.0 for value in verdicts.values]
        name = verdicts.named(f"CLAIR, {ALL_REFERENCES}" if both_protocols else "CLAIR")
        measures, main = {name: Measure.mean(shares, groups)} | measures, (name, *main)
        for row, share in zip(per_item, shares, strict=True):
            row["CLAIR"] = share
        details, notes = details | {"judge": verdicts.details}, [*verdicts.notes, *notes]
    return Scores(measures, per_item, [None] * len(items), {}, [*found.notes, *notes], details, main)


def judge_of(source: Source) -> Judge:
    """Returns the judge of a source. Raises InputError where it has none."""
    if source.judge is None:
        raise InputError("this benchmark asks a judge: give --judge URL and --judge-model NAME")
    return source.judge


def read_pair(reply: str) -> tuple[float, float] | None:
    """Returns the two numbers from 1 to 10 that a reply's first line consists of; None for another reply."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)[ ,]+(\d+(?:\.\d+)?)", reply.strip().partition("\n")[0].strip())
    if found is None or not all(1 <= float(one) <= 10 for one in found.groups()):
        return None
    return float(found[1]), float(found[2])


PAIR = JudgePrompt(
    """Two assistants answered a question about regions of an image. Rate the answer of each from 1 to 10, for whether \
it is correct, to the point, and as detailed as the question asks for; the order of the two must not matter. Write \
the score of Assistant 1 and the score of Assistant 2 on the first line, with one blank between them and nothing else; \
explain below.
[Image]
{context}
[Question]
{question}
[Assistant 1]
{reference}
[Assistant 2]
{candidate}""",
    read_pair,
    max_tokens=512,
)
"""In our own words; its texts: what is known of the image, the question, the reference and the answer."""


def score_pairs(items: Sequence[Item], source: Source, images: Sequence[str] | None = None) -> Scores:
    """Scores answers by a judge that rates reference and answer: the sum of the answers' over that of the references'.

    By part (an item's task), and the mean of the parts. images: data URLs of what the judge sees.
    """
    requests = [
        {"context": str(item.metadata.get("context") or "(not described)"), "question": item.query.question}
        | {"reference": item.references[0], "candidate": item.answer}
        for item in items
    ]
    verdicts = judge_of(source).ask(PAIR, requests, images)
    rated = [pair or (10.0, 0.0) for pair in verdicts.values]
    parts = list(dict.fromkeys(item.task for item in items))
    statistics = np.zeros((len(items), 2 * len(parts)))
    for row, (item, (reference, answer)) in enumerate(zip(items, rated, strict=True)):
        at = 2 * parts.index(item.task)
        statistics[row, at : at + 2] = answer, reference
    ratios, groups = np.asarray([answer / reference for reference, answer in rated]), [item.group for item in items]
    measures = {verdicts.named("mean of the parts"): Measure(statistics, _mean_of_ratios, ratios, groups)}
    for number, part in enumerate(parts):
        rows = [row for row, item in enumerate(items) if item.task == part]
        columns = statistics[rows][:, 2 * number : 2 * number + 2]
        of_part = Measure(columns, _mean_of_ratios, ratios[rows], [groups[row] for row in rows])
        measures[verdicts.named(part or "all")] = of_part
    per_item = [{"rating": answer / 10, "of the reference": reference / 10} for reference, answer in rated]
    details = {"judge": verdicts.details}
    return Scores(measures, per_item, [None] * len(items), {}, verdicts.notes, details, tuple(measures))


def _mean_of_ratios(sums: np.ndarray) -> np.ndarray:
    """Returns the mean over pairs of columns (a, b) of a / b, without pairs of which a resampling has nothing."""
    answers, references = sums[:, 0::2], sums[:, 1::2]
    ratios = np.divide(answers, references, out=np.zeros_like(answers), where=references > 0)
    return ratios.sum(axis=1) / np.maximum((references > 0).sum(axis=1), 1)


def judge_captions(judge: Judge, items: Sequence[Item]) -> Verdicts:
    """Returns CLAIR's score of each answer against all its references, 0 to 100."""
    requests = [
        {"candidate": f"- {item.answer}", "reference": "\n".join(f"- {truth}" for truth in item.references)}
        for item in items
    ]
    return judge.ask(CLAIR, requests)


def _in_order(measures: dict[str, Measure]) -> dict[str, Measure]:
    names = [*CAPTION_MEASURES, *measures]
    return {name: measures[name] for name in dict.fromkeys(names) if name in measures}


def score_names(items: Sequence[Item], source: Source | None = None) -> Scores:
    """Scores names of things: sentence similarity (SS), shared words (S-IoU), and lexical matches in two readings."""
    groups = [item.group for item in items]
    answers = [clean_name(item.answer) for item in items]
    truths = [clean_category(item.references[0]) for item in items]
    shared = [semantic_iou(*pair) for pair in zip(answers, truths, strict=True)]
    exact = [exact_match(*pair) for pair in zip(answers, truths, strict=True)]
    measures, notes = {}, []
    columns: dict[str, Sequence[float] | np.ndarray] = {"S-IoU": shared}
    folder = find_sentence_model(None if source is None else source.sentence_model)
    if folder is None:
        notes.append(MISSING)
    else:
        alike = SentenceModel(folder).similarity(answers, truths)
        measures["SS"] = Measure.mean(alike, groups)
        columns = {"SS": alike, "S-IoU": shared}
    measures |= {"S-IoU": Measure.mean(shared, groups), "exact match": Measure.mean(exact, groups)}
    for name, lenient in ((SAME_NAME, False), (KIND_OR_PART, True)):
        matched = [lexical_match(*pair, lenient) for pair in zip(answers, truths, strict=True)]
        measures[name] = Measure.mean(matched, groups)
    per_item = [{name: float(column[row]) for name, column in columns.items()} for row in range(len(items))]
    return Scores(measures, per_item, [bool(one) for one in exact], {}, notes, {}, ("SS", "S-IoU", "exact match"))


Parse = Callable[[Item], int | None]


def parse_options(item: Item) -> int | None:
    """Returns the option that the answer names, by letter or in words."""
    return parse_choice(item.answer, item.options)


def choose(items: Sequence[Item], parse: Parse = parse_options) -> dict[str, list[bool]]:
    """Returns for each way of reading an answer which items are right; likelihoods only where all answers have them."""
    ways, answered = {}, [item for item in items if not item.error]
    if answered and all(item.likelihoods is not None for item in answered):
        ways[LIKELIHOOD] = [not item.error and likeliest(item.likelihoods or ()) == item.label for item in items]
    ways[PARSED] = [parse(item) == item.label for item in items]
    return ways


def score_choices(items: Sequence[Item], source: Source | None = None, parse: Parse = parse_options) -> Scores:
    """Scores multiple choice by likelihood, where there are likelihoods, and by parsing answers; source is not used."""
    groups = [item.group for item in items]
    ways = choose(items, parse)
    measures = {name: Measure.mean(right, groups) for name, right in ways.items()}
    if parse is parse_options:
        measures["answers that name an option"] = Measure.mean([parse(item) is not None for item in items], groups)
    by_task = {
        task: {name: Measure.mean(np.asarray(ways[name])[rows], [groups[row] for row in rows]) for name in ways}
        for task, rows in rows_by_task(items).items()
    }
    chance = sum(1 / len(item.options) for item in items) / max(len(items), 1)
    per_item = [{name: float(right[row]) for name, right in ways.items()} for row in range(len(items))]
    right = next(iter(ways.values()))
    missing = "no likelihoods: this predictor gives none, so only parsed answers count"
    notes = [] if LIKELIHOOD in ways else [missing]
    return Scores(measures, per_item, list(right), by_task, notes, {"chance": round(chance, 4)}, tuple(ways))


def rows_by_task(items: Sequence[Item]) -> dict[str, list[int]]:
    """Returns the rows of each task; nothing where there is only one."""
    rows: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        rows.setdefault(item.task, []).append(row)
    return rows if len(rows) > 1 else {}
