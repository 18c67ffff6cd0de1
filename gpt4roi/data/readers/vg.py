"""Visual Genome: boxes with a caption each, in the form that GRiT prepared (`VGDATA`)."""

from __future__ import annotations

import numpy as np

from gpt4roi.data.annotations import require_text
from gpt4roi.data.readers.coco_format import CocoStyleDataset
from gpt4roi.data.readers.dialogues import region_rounds
from gpt4roi.io.coco import Id
from gpt4roi.processing.prompts import VISUAL_GENOME_QUESTIONS
from gpt4roi.structures import RegionSample


class VisualGenome(CocoStyleDataset):
    """Asks for the caption of each of some boxes.

    Args:
        as_released: Transparent pixels have the colours that the file holds for them.
        ann_file, img_prefix, max_gt_per_img, test_mode: See CocoStyleDataset.
    """

    def categories(self, names: dict[Id, str] | None) -> dict[Id, str] | None:
        return names

    def region_text(self, annotation: dict, caption: str, category: str) -> str:
        return require_text(annotation.get("caption"), "caption of the box")

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        boxes, texts = self.drawn(index, rng)
        return self.make_sample(index, boxes, texts, region_rounds(VISUAL_GENOME_QUESTIONS, texts, rng))
