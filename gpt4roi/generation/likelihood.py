"""How likely a model finds each of several answers to a question.

What the answers of a question have in common, the prompt above all, runs once; the rest of each answer follows on its
own copy of the keys and values. Only tokens that a training would learn count, so `### Assistant:` and the end mark
are part of every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from gpt4roi.generation.engine import Prompt, branched, embed_prompt
from gpt4roi.models.compat import CACHE


@dataclass(frozen=True)
class Continued:
    """A prompt with one answer to it. learnt: bool[T], true where a token belongs to the answer."""

    prompt: Prompt
    learnt: torch.Tensor


@torch.inference_mode()
def log_likelihoods(model: Any, questions: Sequence[Sequence[Continued]], batch_size: int = 64) -> list[list[float]]:
    """Returns for each question the log-likelihood of every answer, up to a constant of the question.

    questions: for each at least one continued prompt; those of a question differ in nothing before the answer.
    batch_size: answers at once. Questions are put together where what their answers share has the same length.
    """
    results: list[list[float]] = [[] for _ in questions]
    by_length: dict[int, list[int]] = {}
    for number, continued in enumerate(questions):
        by_length.setdefault(_shared(continued), []).append(number)
    for shared, members in sorted(by_length.items()):
        rows = max(1, batch_size // max(len(questions[number]) for number in members))
        for start in range(0, len(members), rows):
            batch = members[start : start + rows]
            for number, found in zip(batch, _of_batch(model, [questions[n] for n in batch], shared), strict=True):
                results[number] = found
    return results


def _shared(answers: Sequence[Continued]) -> int:
    """Returns how many first tokens all answers share; at least one token of each is left over."""
    first = answers[0].prompt.input_ids
    length = min(len(one.prompt.input_ids) for one in answers) - 1
    for one in answers[1:]:
        different = (one.prompt.input_ids[:length] != first[:length]).nonzero()
        length = int(different[0]) if len(different) else length
    return length


def _of_batch(model: Any, questions: Sequence[Sequence[Continued]], shared: int) -> list[list[float]]:
    answers = [one for question in questions for one in question]
    embedded = [embed_prompt(model, one.prompt) for one in answers]
    places = torch.tensor([sum(map(len, questions[:row])) for row in range(len(questions))])
    cache = DynamicCache(config=model.language_model.config)
    beginnings = torch.stack([embedded[place][:shared] for place in places.tolist()])
    begun = model.language_model(inputs_embeds=beginnings, use_cache=True, logits_to_keep=1, **{CACHE: cache})
    of_question = [row for row, question in enumerate(questions) for _ in question]
    branch = branched(model, cache, of_question)
    # What is longer than its neighbours decides nothing about them: padding stands behind and is not counted.
    ends = torch.nn.utils.rnn.pad_sequence([rows[shared:] for rows in embedded], batch_first=True)
    followed = model.language_model(inputs_embeds=ends, use_cache=True, **{CACHE: branch}).logits
    logits = torch.cat([begun.logits[of_question], followed[:, :-1]], dim=1).float().log_softmax(dim=-1)
    totals = []
    for row, one in zip(logits, answers, strict=True):
        tokens = one.prompt.input_ids[shared:].to(row.device)
        learnt = one.learnt[shared:].to(row.device)
        totals.append(float(row[: len(tokens)].gather(1, tokens[:, None])[:, 0][learnt].sum()))
    rest = iter(totals)
    return [[next(rest) for _ in question] for question in questions]
