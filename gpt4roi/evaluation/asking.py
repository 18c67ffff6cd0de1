"""Questions of a benchmark, and a model that answers all of them in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gpt4roi.answers import answer_ended
from gpt4roi.constants import IGNORE_INDEX
from gpt4roi.decoding import Decoding, Prompt, generate
from gpt4roi.encoded_picture import EncodedPicture, encode_pictures
from gpt4roi.errors import InputError
from gpt4roi.evaluation.likelihood import Continued, log_likelihoods
from gpt4roi.inputs import open_picture
from gpt4roi.structures import RegionSample, Turn

PICTURES_AT_ONCE = 16


@dataclass(frozen=True)
class Ask:
    """One question about a picture, on its own.

    picture: path. question: mentions regions as `<region1>`. boxes_px: float[N, 4], xyxy in pixels; row 0 is region1.
    blank: the regions' embeddings are replaced by the mean over all regions asked about, so that they tell nothing.
    choices: the answers that are possible, of a multiple-choice question. id: the item's, unique in a benchmark.
    """

    picture: Path
    question: str
    boxes_px: np.ndarray
    blank: bool = False
    choices: tuple[str, ...] = ()
    id: str = ""


class Answerer(Protocol):
    """Answers every question, in order. Anything that can be called like this can be evaluated.

    It may also have a method `likelihoods(asks)`, which returns for each question the log-likelihood of each of its
    choices (up to a constant); without it multiple choice is scored by parsing the answer alone.
    """

    def __call__(self, asks: Sequence[Ask]) -> list[str]: ...


class ModelAnswerer:
    """Answers greedily with a model of ours: every picture is looked at once, everything else runs in batches.

    batch_size: prompts at once. max_new_tokens: where an answer is cut.
    """

    def __init__(self, model: Any, processor: Any, batch_size: int = 64, max_new_tokens: int = 24) -> None:
        self.model, self.processor = model.eval(), processor
        self.batch_size, self.decoding = batch_size, Decoding(max_new_tokens)

    def __call__(self, asks: Sequence[Ask]) -> list[str]:
        """Returns one answer for each question."""
        pictures = list(dict.fromkeys(ask.picture for ask in asks))
        encoded, sizes = self._look_at(pictures)
        places = {picture: place for place, picture in enumerate(pictures)}
        of_ask = [places[ask.picture] for ask in asks]
        texts = [self._text(ask, sizes[place]) for ask, place in zip(asks, of_ask, strict=True)]
        regions = self._embed_regions(texts, of_ask, encoded)
        mean = torch.cat(regions).mean(dim=0) if regions else None
        prompts = [
            Prompt(text["input_ids"], place, encoded[place].image_features, mean.expand_as(rows) if ask.blank else rows)
            for ask, place, text, rows in zip(asks, of_ask, texts, regions, strict=True)
        ]
        answers = generate(self.model, prompts, self.decoding, answer_ended(self.processor), self.batch_size)
        return [self.processor.decode(answer) for answer in answers]

    def likelihoods(self, asks: Sequence[Ask]) -> list[list[float]]:
        """Returns for each question the log-likelihood of each of its choices, up to a constant of the question."""
        pictures = list(dict.fromkeys(ask.picture for ask in asks))
        encoded, sizes = self._look_at(pictures)
        place_of = {picture: place for place, picture in enumerate(pictures)}
        questions = []
        for ask in asks:
            place = place_of[ask.picture]
            questions.append([self._answered(ask, choice, place, encoded, sizes[place]) for choice in ask.choices])
        return log_likelihoods(self.model, questions, self.batch_size)

    def _answered(
        self, ask: Ask, choice: str, place: int, encoded: list[EncodedPicture], image_size: tuple[int, int]
    ) -> Continued:
        turns = (Turn("user", ask.question), Turn("assistant", choice))
        sample = RegionSample(str(ask.picture), turns, ask.boxes_px, source=str(ask.picture))
        text = self.processor.encode_text(sample, image_size=image_size)
        if text["n_cut_answers"]:
            raise InputError(f"{ask.id or ask.picture}: the question is too long for the model: {ask.question!r:.80}")
        regions = encoded[place].region_features(text["boxes"])
        prompt = Prompt(text["input_ids"], place, encoded[place].image_features, regions)
        return Continued(prompt, text["labels"] != IGNORE_INDEX)

    def _look_at(self, pictures: Sequence[Path]) -> tuple[list[EncodedPicture], list[tuple[int, int]]]:
        encoded, sizes = [], []
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            opened = [open_picture(path) for path in pictures[start : start + PICTURES_AT_ONCE]]
            values = torch.stack([self.processor.pixel_values(picture, "bicubic") for picture in opened])
            encoded += encode_pictures(self.model, values)
            sizes += [(picture.height, picture.width) for picture in opened]
        return encoded, sizes

    def _text(self, ask: Ask, image_size: tuple[int, int]) -> dict:
        sample = RegionSample(str(ask.picture), (Turn("user", ask.question),), ask.boxes_px, source=str(ask.picture))
        return self.processor.encode_text(sample, generation=True, image_size=image_size)

    @staticmethod
    def _embed_regions(texts: list[dict], of_ask: list[int], encoded: list[EncodedPicture]) -> list[torch.Tensor]:
        """Returns the region embeddings of every question; all regions of a picture are computed in one go."""
        of_picture: dict[int, list[torch.Tensor]] = {}
        for text, place in zip(texts, of_ask, strict=True):
            of_picture.setdefault(place, []).append(text["boxes"])
        for place, boxes in of_picture.items():
            encoded[place].region_features(torch.cat(boxes))
        return [encoded[place].region_features(text["boxes"]) for text, place in zip(texts, of_ask, strict=True)]
