"""RefCOCO, RefCOCO+ and RefCOCOg in MDETR's form, in which each "image" is one referring expression."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt4roi.data.annotations import require_text
from gpt4roi.data.readers.coco_format import CocoStyleDataset
from gpt4roi.data.readers.dialogues import bare_rounds, region_rounds
from gpt4roi.io.coco import FilteredOutError
from gpt4roi.processing.prompts import REFCOCO_INSTRUCTION, REFCOCOG_QUESTIONS
from gpt4roi.structures import RegionSample, Turn

MIN_WORDS = 3


class RefCOCO(CocoStyleDataset):
    """Asks for the expression of each box (`RefCOCO`).

    Expressions of fewer than three words are left out, and `COCO_train2014_` goes from the images' names. Boxes
    marked as crowds are taken: the expression means them.

    Args:
        as_released: A double blank counts as a word, as it did for the released weights.
        ann_file, img_prefix, max_gt_per_img, test_mode: See CocoStyleDataset.
    """

    captions = True
    crowds = True
    index_depends_on = "as_released"

    def file_name(self, name: str) -> str:
        return name.split("_")[-1]

    def caption(self, value: Any) -> str:
        expression = require_text(value, "expression")
        words = expression.split(" ") if self.as_released else expression.split()
        if len(words) < MIN_WORDS:
            raise FilteredOutError(f"expression of fewer than {MIN_WORDS} words")
        return expression

    def region_text(self, annotation: dict, caption: str, category: str) -> str:
        return caption

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        boxes, texts = self.drawn(index, rng)
        return self.make_sample(index, boxes, texts, self.turns(texts, rng))

    def turns(self, texts: list[str], rng: np.random.Generator) -> list[Turn]:
        """Writes the dialogue about boxes in their drawn order."""
        return bare_rounds(REFCOCO_INSTRUCTION, texts)


class RefCOCOP(RefCOCO):
    """RefCOCO+ (`RefCOCOP`): read and asked like RefCOCO."""


class RefCOCOG(RefCOCO):
    """RefCOCOg (`RefCOCOG`): read like RefCOCO, asked in whole questions about `<region1>` and so on."""

    def turns(self, texts: list[str], rng: np.random.Generator) -> list[Turn]:
        return region_rounds(REFCOCOG_QUESTIONS, texts, rng)
