"""Questions of a benchmark, and a model that answers all of them in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage, encode_images
from gpt4roi.generation.engine import Decoding, Prompt, generate_batches
from gpt4roi.generation.likelihood import Continued, log_likelihoods
from gpt4roi.generation.stopping import answer_ended
from gpt4roi.processing.user_input import open_image
from gpt4roi.structures import RegionSample, Turn

IMAGE_BATCH_SIZE = 16


@dataclass(frozen=True)
class Ask:
    """One question about an image, on its own.

    image: path. question: mentions regions as `<region1>`. boxes_px: float[N, 4], xyxy in pixels; row 0 is region1.
    blank: the regions' embeddings are replaced by the mean over all regions asked about, so that they tell nothing.
    choices: the answers that are possible, of a multiple-choice question. id: the item's, unique in a benchmark.
    """

    image: Path
    question: str
    boxes_px: np.ndarray
    blank: bool = False
    choices: tuple[str, ...] = ()
    id: str = ""


@dataclass(frozen=True)
class Seen:
    """An image that the tower looked at, and its (height, width)."""

    encoded: EncodedImage
    size: tuple[int, int]


class Answerer(Protocol):
    """Answers every question, in order. Anything that can be called like this can be evaluated.

    It may also have a method `likelihoods(asks)`, which returns for each question the log-likelihood of each of its
    choices (up to a constant); without it multiple choice is scored by parsing the answer alone.
    """

    def __call__(self, asks: Sequence[Ask]) -> list[str]: ...


Wanted = Callable[[list[int]], bool]
"""Tells from the indices of the questions in a batch whether it is to be answered."""


class ModelAnswerer:
    """Answers greedily with a model of ours: every image is looked at once, everything else runs in batches.

    batch_size: prompts at once. max_new_tokens: where an answer is cut.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 64, max_new_tokens: int = 24) -> None:
        self.model, self.processor = model.eval(), processor
        self.batch_size, self.decoding = batch_size, Decoding(max_new_tokens)
        self._seen: dict[Path, Seen] = {}

    def __call__(self, asks: Sequence[Ask]) -> list[str]:
        """Returns one answer for each question."""
        answers = [""] * len(asks)
        for batch, texts in self.in_batches(asks, lambda batch: True):
            for number, text in zip(batch, texts, strict=True):
                answers[number] = text
        return answers

    def in_batches(self, asks: Sequence[Ask], wanted: Wanted) -> Iterator[tuple[list[int], list[str]]]:
        """Yields the indices of each wanted batch of questions with their answers.

        Which questions stand together does not depend on what is wanted.
        """
        self._look_at([ask.image for ask in asks])
        texts = [self._text(ask) for ask in asks]
        regions = self._embed_regions(asks, texts)
        mean = torch.cat(regions).mean(dim=0) if regions else None
        places = {image: place for place, image in enumerate(dict.fromkeys(ask.image for ask in asks))}
        prompts = [
            Prompt(
                text["input_ids"],
                places[ask.image],
                self._seen[ask.image].encoded.image_features,
                mean.expand_as(rows) if ask.blank else rows,
            )
            for ask, text, rows in zip(asks, texts, regions, strict=True)
        ]
        ended = answer_ended(self.processor)
        for batch, tokens in generate_batches(self.model, prompts, self.decoding, ended, self.batch_size, wanted):
            yield batch, [self.processor.decode(said) for said in tokens]

    def likelihoods(self, asks: Sequence[Ask]) -> list[list[float]]:
        """Returns for each question the log-likelihood of each of its choices, up to a constant of the question."""
        self._look_at([ask.image for ask in asks])
        questions = [[self._answered(ask, choice) for choice in ask.choices] for ask in asks]
        return log_likelihoods(self.model, questions, self.batch_size)

    def _answered(self, ask: Ask, choice: str) -> Continued:
        seen = self._seen[ask.image]
        turns = (Turn("user", ask.question), Turn("assistant", choice))
        sample = RegionSample(str(ask.image), turns, ask.boxes_px, source=str(ask.image))
        text = self.processor.encode_text(sample, image_size=seen.size)
        if text["n_cut_answers"]:
            raise InputError(f"{ask.id or ask.image}: the question is too long for the model: {ask.question!r:.80}")
        prompt = Prompt(text["input_ids"], 0, seen.encoded.image_features, seen.encoded.region_features(text["boxes"]))
        return Continued(prompt, text["labels"] != IGNORE_INDEX)

    def _look_at(self, asked: Sequence[Path]) -> None:
        """Looks at images, and forgets all others unless these were all seen before."""
        images = list(dict.fromkeys(asked))
        if all(image in self._seen for image in images):
            return
        self._seen = {}
        for start in range(0, len(images), IMAGE_BATCH_SIZE):
            paths = images[start : start + IMAGE_BATCH_SIZE]
            values, sizes = zip(*map(self._values_and_size, paths), strict=True)
            for path, size, encoded in zip(paths, sizes, encode_images(self.model, torch.stack(values)), strict=True):
                self._seen[path] = Seen(encoded, size)

    def _values_and_size(self, path: Path) -> tuple[torch.Tensor, tuple[int, int]]:
        image = open_image(path)  # large ones are held one at a time
        return self.processor.pixel_values(image, "dialogue"), (image.height, image.width)

    def _text(self, ask: Ask) -> dict:
        sample = RegionSample(str(ask.image), (Turn("user", ask.question),), ask.boxes_px, source=str(ask.image))
        return self.processor.encode_text(sample, generation=True, image_size=self._seen[ask.image].size)

    def _embed_regions(self, asks: Sequence[Ask], texts: Sequence[dict]) -> list[torch.Tensor]:
        """Returns the region embeddings of every question; all regions of an image are computed in one go."""
        of_image: dict[Path, list[torch.Tensor]] = {}
        for ask, text in zip(asks, texts, strict=True):
            of_image.setdefault(ask.image, []).append(text["boxes"])
        for image, boxes in of_image.items():
            self._seen[image].encoded.region_features(torch.cat(boxes))
        pairs = zip(asks, texts, strict=True)
        return [self._seen[ask.image].encoded.region_features(text["boxes"]) for ask, text in pairs]
