"""Query, Predictor: a question of a benchmark, and what answers it: a model in batches, or a user's Python file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage, Prompt, encode_images, prepare_image
from gpt4roi.generation.explain import Explanation, explain
from gpt4roi.generation.likelihood import AnsweredPrompt, answered_prompt, log_likelihoods
from gpt4roi.generation.many import answer_batches
from gpt4roi.generation.sampling import SamplingParams
from gpt4roi.io.python_files import import_file
from gpt4roi.processing.user_input import open_image
from gpt4roi.structures import RegionSample, Turn

IMAGE_BATCH_SIZE = 16


@dataclass(frozen=True)
class Query:
    """One question about an image, on its own.

    Attributes:
        image: Path.
        question: Mentions regions as `<region1>`.
        boxes_px: float[N, 4], xyxy in pixels of the image as it is seen upright, once read; row 0 is region1.
        blank: The regions' embeddings are replaced by the mean over all regions of the queries at hand, so that they
            hold no information.
        choices: The possible answers of a multiple-choice question.
        id: The item's, unique in a benchmark.
        masks: Of the boxes, as of structures.Regions, where the data have any; for models whose region_shape is `mask`.
    """

    image: Path
    question: str
    boxes_px: np.ndarray
    blank: bool = False
    choices: tuple[str, ...] = ()
    id: str = ""
    masks: tuple[np.ndarray | None, ...] = ()

    def sample(self) -> RegionSample:
        """Returns the dialogue of the question."""
        turns = (Turn("user", self.question),)
        return RegionSample(str(self.image), turns, self.boxes_px, source=str(self.image), masks=self.masks)


class Predictor(Protocol):
    """Answers every query, in order. Anything that can be called like this can be evaluated.

    It may also have a method `likelihoods(queries)`, which returns for each query the log-likelihood of each of its
    choices (up to a constant); without it multiple choice is scored by parsing the answer alone. With a method
    `explain(query, answer)` the report can show where answers looked.
    """

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        """Returns one answer for each query."""
        ...


class ModelPredictor:
    """Answers greedily with a GPT4RoI model: every image is encoded once, everything else runs in batches."""

    def __init__(self, model: Any, processor: Any, batch_size: int = 64, max_new_tokens: int = 24) -> None:
        """batch_size: prompts at once; max_new_tokens: where an answer is cut."""
        self.model, self.processor = model.eval(), processor
        self.batch_size, self.params = batch_size, SamplingParams(max_new_tokens)
        self._encoded: dict[Path, EncodedImage] = {}

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        """Returns one answer for each query."""
        answers = [""] * len(queries)
        for batch, texts, _ in self.in_batches(queries, lambda batch: True):
            for number, text in zip(batch, texts, strict=True):
                answers[number] = text
        return answers

    def in_batches(
        self, queries: Sequence[Query], selects: Callable[[list[int]], bool]
    ) -> Iterator[tuple[list[int], list[str], list[float]]]:
        """Yields the indices of each selected batch of queries with answers and confidences, as answer_batches does."""
        prompts = self._prompts(queries)
        regions = [prompt.region_features for prompt in prompts if prompt.region_features is not None]
        if any(query.blank for query in queries):
            mean = torch.cat(regions).mean(dim=0)
            prompts = [
                replace(prompt, region_features=mean.expand_as(rows)) if query.blank else prompt
                for query, prompt, rows in zip(queries, prompts, regions, strict=True)
            ]
        yield from answer_batches(self.model, self.processor, prompts, self.params, self.batch_size, selects)

    def likelihoods(self, queries: Sequence[Query]) -> list[list[float]]:
        """Returns for each query the log-likelihood of each of its choices, up to a constant of the query."""
        self._encode([query.image for query in queries])
        questions = [[self._answered(query, choice) for choice in query.choices] for query in queries]
        return log_likelihoods(self.model, questions, self.batch_size)

    def explain(self, query: Query, answer: str) -> Explanation:
        """Returns which cells of the image an answer depends on, by occlusion."""
        return explain(self.model, self.processor, open_image(query.image), query.sample(), answer, ["occlusion"])

    def _answered(self, query: Query, choice: str) -> AnsweredPrompt:
        where = f"{query.id or query.image}: "
        return answered_prompt(self.processor, self._encoded[query.image], query.sample(), choice, where)

    def _prompts(self, queries: Sequence[Query]) -> list[Prompt]:
        """Returns the prompt of each query; all regions of an image are embedded together."""
        self._encode([query.image for query in queries])
        of_image: dict[Path, list[int]] = {}
        for index, query in enumerate(queries):
            of_image.setdefault(query.image, []).append(index)
        prompts: dict[int, Prompt] = {}
        for number, (path, members) in enumerate(of_image.items()):
            samples = [queries[index].sample() for index in members]
            prompts |= zip(members, self._encoded[path].prompts(self.processor, samples, number), strict=True)
        return [prompts[index] for index in range(len(queries))]

    def _encode(self, paths: Sequence[Path]) -> None:
        """Encodes images, and forgets all others unless these are all cached."""
        distinct = list(dict.fromkeys(paths))
        if all(path in self._encoded for path in distinct):
            return
        # Large images are held one at a time.
        prepared = (prepare_image(self.processor, open_image(path)) for path in distinct)
        self._encoded = dict(zip(distinct, encode_images(self.model, prepared, IMAGE_BATCH_SIZE), strict=True))


class WrappedModel:
    """A Python file as a predictor: its `answer(queries)`, and its `likelihoods(queries)` if it has one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        module = import_file(self.path, "--model")
        if not callable(getattr(module, "answer", None)):
            raise InputError(
                f"--model {path}: defines no function answer(queries) that returns a text for each question"
            )
        self._answer = module.answer
        if callable(getattr(module, "likelihoods", None)):
            self.likelihoods = module.likelihoods

    def __call__(self, queries: Sequence[Query]) -> list[str]:
        """Returns what the file's function answers."""
        return list(self._answer(queries))
