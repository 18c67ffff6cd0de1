"""Log-likelihoods of several answers to a question, for multiple choice.

What the answers of a question have in common, the prompt above all, is prefilled once; the rest of each answer follows
on its own copy of the KV cache. Only supervised tokens count, so `### Assistant:` and the end mark are part of every
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from transformers import DynamicCache

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage, Prompt
from gpt4roi.generation.engine import expand_cache
from gpt4roi.processing.tokenizer import common_prefix_length
from gpt4roi.structures import Regions, RegionSample, Turn


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with one answer to it; supervised: bool[T], true where a token belongs to the answer."""

    prompt: Prompt
    supervised: torch.Tensor


def answered_prompt(
    processor: Any, image: EncodedImage, question: RegionSample, answer: str, where: str = ""
) -> AnsweredPrompt:
    """Returns a question about an image with one answer to it.

    Raises:
        InputError: They are too long for the model; `where` begins the message.
    """
    sample = replace(question, turns=(*question.turns, Turn("assistant", answer)))
    text = processor.encode_text(sample, image_size=image.size)
    if text["n_cut_answers"]:
        raise InputError(f"{where}the question is too long for the model: {question.turns[-1].text!r:.80}")
    return AnsweredPrompt(image.prompt(text), text["labels"] != IGNORE_INDEX)


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns labels to choose from, without outer blanks. Raises InputError on fewer than two, or the same twice."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels are a list of texts, got {labels!r:.80}")
    cleaned = tuple(label.strip() for label in labels)
    if len(cleaned) < 2 or not all(cleaned) or len(set(cleaned)) < len(cleaned):
        raise InputError(f"expected at least two labels, none empty or given twice, got {list(labels)!r:.80}")
    return cleaned


class Choice(NamedTuple):
    """The probability of every label, given that one of them is the answer; num_tokens: read to find them."""

    probabilities: dict[str, float]
    num_tokens: int


def choose(
    model: Any,
    processor: Any,
    image: EncodedImage,
    questions: Sequence[tuple[np.ndarray | Regions, str]],
    labels: Sequence[str],
    batch_size: int = 64,
) -> list[Choice]:
    """Returns for each question how likely every label is.

    questions: each with its regions of the image (boxes float[k, 4] in pixels, or Regions) and a text about them.
    """
    asked = [RegionSample("the image", (Turn("user", text),), cast(Any, regions)) for regions, text in questions]
    answered = [[answered_prompt(processor, image, sample, label) for label in labels] for sample in asked]
    found = []
    for answers, row in zip(answered, log_likelihoods(model, answered, batch_size), strict=True):
        shares = torch.tensor(row).softmax(dim=0).tolist()
        lengths, shared = [len(one.prompt.input_ids) for one in answers], _shared_length(answers)
        found.append(Choice(dict(zip(labels, shares, strict=True)), shared + sum(lengths) - shared * len(lengths)))
    return found


def _shared_length(answers: Sequence[AnsweredPrompt]) -> int:
    """Returns how many tokens before the answers to a question are the same, and computed once; each has one more."""
    rows = [one.prompt.input_ids.numpy() for one in answers]
    # What answers begin with alike is not left out: the likelihood of an answer stands for itself.
    begins = min(int(one.supervised.nonzero()[0]) for one in answers)
    return min(common_prefix_length(rows), min(map(len, rows)) - 1, begins)


def log_likelihoods(
    model: Any, questions: Sequence[Sequence[AnsweredPrompt]], batch_size: int = 64
) -> list[list[float]]:
    """Returns for each question the log-likelihood of every answer, its end included.

    Questions whose answers share prefixes of the same length form batches.

    Args:
        model: A GPT4RoI model.
        questions: For each at least one answered prompt; those of a question are the same before the answer.
        batch_size: Answers at once.
    """
    found = answer_log_probabilities(model, questions, batch_size)
    return [[float(tokens.sum()) for tokens in answers] for answers in found]


@torch.inference_mode()
def answer_log_probabilities(
    model: Any, questions: Sequence[Sequence[AnsweredPrompt]], batch_size: int = 64
) -> list[list[torch.Tensor]]:
    """Returns what log_likelihoods sums up: the log-probabilities float32[T] of each answer's supervised tokens."""
    results: list[list[torch.Tensor]] = [[] for _ in questions]
    by_length: dict[int, list[int]] = {}
    for number, answers in enumerate(questions):
        by_length.setdefault(_shared_length(answers), []).append(number)
    for shared, members in sorted(by_length.items()):
        step = max(1, batch_size // max(len(questions[number]) for number in members))
        for start in range(0, len(members), step):
            batch = members[start : start + step]
            for number, found in zip(batch, _of_batch(model, [questions[n] for n in batch], shared), strict=True):
                results[number] = found
    return results


def _of_batch(model: Any, questions: Sequence[Sequence[AnsweredPrompt]], shared: int) -> list[list[torch.Tensor]]:
    answers = [one for question in questions for one in question]
    embedded = [one.prompt.embed(model) for one in answers]
    firsts = [sum(map(len, questions[:row])) for row in range(len(questions))]
    cache = DynamicCache(config=model.config.get_text_config())
    prefixes = torch.stack([embedded[first][:shared] for first in firsts])
    prefilled = model.decode(prefixes, cache)
    of_question = [row for row, question in enumerate(questions) for _ in question]
    branch = expand_cache(model, cache, of_question)
    # What is longer than its neighbours decides nothing about them: padding stands behind and is not counted.
    suffixes = torch.nn.utils.rnn.pad_sequence([rows[shared:] for rows in embedded], batch_first=True)
    following = model.decode(suffixes, branch, logits_to_keep=0)
    logits = torch.cat([prefilled[of_question], following[:, :-1]], dim=1).float().log_softmax(dim=-1)
    found = []
    for row, one in zip(logits, answers, strict=True):
        tokens = one.prompt.input_ids[shared:].to(row.device)
        supervised = one.supervised[shared:].to(row.device)
        found.append(row[: len(tokens)].gather(1, tokens[:, None])[:, 0][supervised])
    rest = iter(found)
    return [[next(rest) for _ in question] for question in questions]
