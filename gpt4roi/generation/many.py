"""One question about each of many regions, on one image or many: the engine behind `describe` and `caption`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import EncodedImage, encode_images
from gpt4roi.generation.engine import Prompt, generate
from gpt4roi.generation.sampling import Decoding
from gpt4roi.generation.stopping import answer_ended, answer_text
from gpt4roi.structures import RegionSample, Turn

IMAGE_BATCH_SIZE = 8
"""How many images the tower looks at together."""

Item = TypeVar("Item")


def grouped(items: Iterable[Item], weigh: Callable[[Item], int], enough: int) -> Iterator[list[Item]]:
    """Yields consecutive items in groups that weigh enough together; each item weighs 1 at least."""
    group: list[Item] = []
    weight = 0
    for item in items:
        group.append(item)
        weight += max(weigh(item), 1)
        if weight >= enough:
            yield group
            group, weight = [], 0
    if group:
        yield group


@dataclass(frozen=True)
class View:
    """What is kept of an image until its group is whole: as large as the model's own, however large the image.

    size: (height, width) of the image; boxes_px: float[N, 4], checked; pixel_values: float32[3, S, S], None where
    there is no box.
    """

    size: tuple[int, int]
    boxes_px: np.ndarray
    pixel_values: torch.Tensor | None


def view_of(processor: Any, image: Image.Image, boxes_px: np.ndarray) -> View:
    """Prepares an opened image, RGB, and its boxes for describe_images; the image may then be forgotten."""
    pixel_values = processor.pixel_values(image, "dialogue") if len(boxes_px) else None
    return View((image.height, image.width), boxes_px, pixel_values)


def look_at(model: Any, processor: Any, images: Sequence[Image.Image]) -> list[EncodedImage]:
    """Runs the tower over opened images together."""
    return encode_images(model, torch.stack([processor.pixel_values(image, "dialogue") for image in images]))


def prompts_about(
    processor: Any, encoded: EncodedImage, size: tuple[int, int], boxes_px: np.ndarray, question: str, number: int = 0
) -> list[Prompt]:
    """Writes the question once for each box of an image, as a conversation of its own.

    size: (height, width) of the image; boxes_px: float[N, 4]; question: about `<region1>`; number: the image's.
    """
    turns = (Turn("user", question),)
    texts = []
    for box in boxes_px:
        sample = RegionSample("the image", turns, box[None])
        texts.append(processor.encode_text(sample, generation=True, image_size=size))
    if not texts:
        return []
    regions = encoded.region_features(torch.cat([text["boxes"] for text in texts]))
    return [
        Prompt(text["input_ids"], number, encoded.image_features, row[None])
        for text, row in zip(texts, regions, strict=True)
    ]


def describe_images(
    model: Any, processor: Any, views: Sequence[View], question: str, decoding: Decoding, batch_size: int
) -> list[list[str]]:
    """Asks the question about every box of every image; returns a list of answers for each image.

    Looks at each image once, reads what its prompts share once, and answers all regions together in batches of
    batch_size.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    prompts: list[Prompt] = []
    for start in range(0, len(views), IMAGE_BATCH_SIZE):
        portion = range(start, min(start + IMAGE_BATCH_SIZE, len(views)))
        asked = [number for number in portion if views[number].pixel_values is not None]
        if not asked:
            continue
        seen = encode_images(model, torch.stack([views[number].pixel_values for number in asked]))
        for number, encoded in zip(asked, seen, strict=True):
            prompts += prompts_about(processor, encoded, views[number].size, views[number].boxes_px, question, number)
    texts = iter(answer(model, processor, prompts, decoding, batch_size))
    return [[next(texts) for _ in view.boxes_px] for view in views]


def answer(model: Any, processor: Any, prompts: Sequence[Prompt], decoding: Decoding, batch_size: int) -> list[str]:
    """Answers prompts in batches; returns one text for each."""
    tokens = generate(model, prompts, decoding, answer_ended(processor, decoding.stop), batch_size)
    return [answer_text(processor, row, decoding.stop) for row in tokens]
