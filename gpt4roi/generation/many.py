"""Answers to many prompts as text, and one question about each region of many images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage, PreparedImage, Prompt, encode_images
from gpt4roi.generation.engine import generate_batches
from gpt4roi.generation.sampling import SamplingParams, answer_text, confidence, stopping_criterion
from gpt4roi.processing.user_input import groups_of_regions
from gpt4roi.structures import Regions, RegionSample, Turn

Item = TypeVar("Item")


def batched_by_size(items: Iterable[Item], size: Callable[[Item], int], max_size: int) -> Iterator[list[Item]]:
    """Yields consecutive items in batches that end as soon as they reach max_size; an item counts 1 at least."""
    batch: list[Item] = []
    total = 0
    for item in items:
        batch.append(item)
        total += max(size(item), 1)
        if total >= max_size:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def answer_batches(
    model: Any,
    processor: Any,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    batch_size: int,
    selects: Callable[[list[int]], bool] = lambda batch: True,
) -> Iterator[tuple[list[int], list[str], list[float]]]:
    """Yields the indices of each batch of prompts with their answers and how sure the model is of each.

    That is the mean probability of an answer's tokens, its end included. selects: as of engine.generate_batches.
    """
    stopping = stopping_criterion(processor, params.stop)
    for batch, tokens, log_probs in generate_batches(model, prompts, params, stopping, batch_size, selects):
        texts = [answer_text(processor, row, params.stop) for row in tokens]
        yield batch, texts, [confidence(row) for row in log_probs]


class ScoredAnswer(NamedTuple):
    """An answer, and the mean probability of its tokens."""

    text: str
    score: float


def answer_all(
    model: Any, processor: Any, prompts: Sequence[Prompt], params: SamplingParams, batch_size: int = 32
) -> list[str]:
    """Answers prompts in batches; returns one text for each."""
    return [answer.text for answer in scored_answers(model, processor, prompts, params, batch_size)]


def scored_answers(
    model: Any, processor: Any, prompts: Sequence[Prompt], params: SamplingParams, batch_size: int = 32
) -> list[ScoredAnswer]:
    """Answers prompts in batches; returns text and score of each."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    answers = [ScoredAnswer("", 0.0)] * len(prompts)
    for batch, texts, scores in answer_batches(model, processor, prompts, params, batch_size):
        for index, text, score in zip(batch, texts, scores, strict=True):
            answers[index] = ScoredAnswer(text, score)
    return answers


def region_prompts(
    processor: Any,
    image: EncodedImage,
    regions: np.ndarray | Regions,
    question: str,
    number: int = 0,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Prompt]:
    """Writes a question about each region of an image by itself, as a conversation of its own.

    Args:
        processor: Of the model.
        image: The image.
        regions: Regions, or boxes float[N, 4] xyxy in pixels.
        question: Mentions them.
        number: The image's, for Prompt.image.
        groups: Indices of the regions that it is asked about together, `<region1>` the first of each; by default each
            by itself.
    """
    all_regions = regions if isinstance(regions, Regions) else Regions(regions)
    turns, rows = (Turn("user", question),), groups_of_regions(len(regions)) if groups is None else groups
    samples = [RegionSample("the image", turns, cast(Any, all_regions.take(row))) for row in rows]
    return image.prompts(processor, samples, number)


def describe_images(
    model: Any,
    processor: Any,
    images: Iterable[tuple[PreparedImage | None, np.ndarray | Regions]],
    question: str,
    params: SamplingParams,
    batch_size: int,
    scores: bool = False,
) -> Iterator[list[Any]]:
    """Asks a question about every box of every image; yields the answers of one image after the other.

    Every image is encoded once and its shared prefix prefilled once. Consecutive images are answered together until
    their boxes fill a batch.

    Args:
        model: A GPT4RoI model.
        processor: Its processor.
        images: Each prepared, with its regions, as of region_prompts; None where it has none. Taken as needed.
        question: Mentions `<region1>`.
        params: How answers are chosen.
        batch_size: Boxes answered at once.
        scores: Yield ScoredAnswer in place of texts.
    """
    answer = scored_answers if scores else answer_all
    for group in batched_by_size(images, lambda pair: len(pair[1]), batch_size):
        shown = [(number, image, boxes) for number, (image, boxes) in enumerate(group) if image is not None]
        prompts: list[Prompt] = []
        encoded = encode_images(model, (image for _, image, _ in shown))
        for (number, _, boxes), one in zip(shown, encoded, strict=True):
            prompts += region_prompts(processor, one, boxes, question, number)
        answers = iter(answer(model, processor, prompts, params, batch_size))
        for _, boxes in group:
            yield [next(answers) for _ in range(len(boxes))]
