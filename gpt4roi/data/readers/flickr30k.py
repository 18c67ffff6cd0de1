"""Flickr30k Entities in MDETR's form: a caption, and boxes for its phrases (`flickr30k`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.readers.coco_format import CocoStyleDataset
from gpt4roi.data.readers.dialogues import draw, mention, with_image_preamble
from gpt4roi.io.coco import Id, InvalidAnnotationError
from gpt4roi.processing.prompts import FLICKR_CAPTION_QUESTIONS, FLICKR_REGION_QUESTIONS
from gpt4roi.structures import RegionSample, Turn


class Flickr30k(CocoStyleDataset):
    """Asks for the caption, given all boxes, and then for the phrase of each; see CocoStyleDataset.

    A box that several phrases of the caption mean is called by all of them, in the order of the file.

    Args:
        as_released: What the released weights saw: the first phrase alone, a comma after the last region of the list,
            and "region 1" with a blank in the questions about one region.
        ann_file, img_prefix, max_gt_per_img, test_mode: See CocoStyleDataset.
    """

    captions = True
    index_depends_on = "as_released"

    def __init__(
        self,
        ann_file: str | Path,
        img_prefix: str | Path = "",
        max_gt_per_img: int = 150,
        test_mode: bool = False,
        as_released: bool = False,
    ) -> None:
        super().__init__(ann_file, img_prefix, max_gt_per_img, test_mode, as_released)

    def categories(self, names: dict[Id, str] | None) -> dict[Id, str] | None:
        return names

    def region_text(self, annotation: dict, caption: str, category: str) -> str:
        phrases = spans(annotation.get("tokens_positive"), caption)
        if self.as_released:
            return phrases[0]
        return ", ".join(dict.fromkeys(phrases))

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        boxes, phrases = self.drawn(index, rng)
        numbers = range(1, len(phrases) + 1)
        regions = ",".join(map(mention, numbers)) + ("," if self.as_released else "")
        turns = [
            Turn("user", draw(FLICKR_CAPTION_QUESTIONS, rng).format(regions=regions)),
            Turn("assistant", self.columns.text("caption", index)),
        ]
        for number, phrase in zip(numbers, phrases, strict=True):
            region = f"region {number}" if self.as_released else mention(number)
            turns += [Turn("user", draw(FLICKR_REGION_QUESTIONS, rng).format(region=region)), Turn("assistant", phrase)]
        return self.make_sample(index, boxes, phrases, with_image_preamble(turns))


def spans(value: Any, caption: str) -> list[str]:
    """Returns the parts of a caption that `tokens_positive` (pairs of characters, end excluded) names.

    Raises InvalidAnnotationError where it names none, or one that is not there.
    """
    if not isinstance(value, list) or not value:
        raise InvalidAnnotationError("box without a phrase (tokens_positive)")
    phrases = []
    for span in value:
        if not isinstance(span, list) or len(span) != 2 or any(type(end) is not int for end in span):
            raise InvalidAnnotationError("box whose phrase (tokens_positive) is not two whole numbers")
        start, end = span
        if start < 0 or not caption[start:end].strip():
            raise InvalidAnnotationError("box whose phrase (tokens_positive) is not in the caption")
        phrases.append(caption[start:end])
    return phrases
