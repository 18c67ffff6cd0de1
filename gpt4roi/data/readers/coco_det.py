"""COCO's detection data: each box is asked for its class (`coco_det`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt4roi.data.readers.coco_format import FRAME, CocoStyleDataset, in_frame, large_enough
from gpt4roi.data.readers.dialogues import bare_rounds
from gpt4roi.data.tables import coco_names
from gpt4roi.geometry import boxes as box_ops
from gpt4roi.io.coco import Id
from gpt4roi.processing.prompts import DETECTION_INSTRUCTION
from gpt4roi.structures import Augmentation, RegionSample

SHIFT_PROBABILITY, MAX_SHIFT, FLIP_PROBABILITY = 0.5, 32, 0.5
MIN_SIDE_AFTER_SHIFT = 1.0
"""Boxes clipped to this width or height, or less, by the shift are removed; in pixels of the frame."""


class CocoDetection(CocoStyleDataset):
    """Asks for the class of each box; half of the samples are shifted, half mirrored.

    Args:
        test_mode: Reads val2017 instead of train2017, and neither shifts nor mirrors.
        own_categories: Takes the file's own categories; unless given, those of its categories that COCO knows.
        as_released: Transparent pixels have the colours that the file holds for them.
        ann_file, img_prefix, max_gt_per_img: See CocoStyleDataset.
    """

    index_depends_on = "own_categories"

    def __init__(
        self,
        ann_file: str | Path,
        img_prefix: str | Path = "",
        max_gt_per_img: int = 100,
        test_mode: bool = False,
        own_categories: bool = False,
        as_released: bool = False,
    ) -> None:
        self.own_categories = own_categories
        if test_mode:
            ann_file, img_prefix = (str(path).replace("train2017", "val2017") for path in (ann_file, img_prefix))
        super().__init__(ann_file, img_prefix, max_gt_per_img, test_mode, as_released)
        known = self.columns.metadata["classes"] if own_categories else coco_names().values()
        self.instruction = DETECTION_INSTRUCTION.format(names=", ".join(known))

    def categories(self, names: dict[Id, str] | None) -> dict[Id, str] | None:
        names, known = names or {}, set(coco_names().values())
        return names if self.own_categories else {key: name for key, name in names.items() if name in known}

    def region_text(self, annotation: dict, caption: str, category: str) -> str:
        return category

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        boxes, texts = self.columns["boxes"][self.regions(index)], self.texts(index)
        augmentation = None
        if not self.test_mode:
            frame = in_frame(boxes, self.columns["size"][[index]])
            shift, kept = draw_shift(frame, rng)
            augmentation = Augmentation(shift=shift, flip=bool(rng.random() < FLIP_PROBABILITY))
            boxes, texts = boxes[kept], [texts[box] for box in np.flatnonzero(kept).tolist()]
        order = rng.permutation(len(boxes))[: self.max_gt_per_img]
        texts = [texts[box] for box in order.tolist()]
        return self.make_sample(index, boxes[order], texts, bare_rounds(self.instruction, texts), augmentation)


def draw_shift(frame: np.ndarray, rng: np.random.Generator) -> tuple[tuple[int, int], np.ndarray]:
    """Draws how far an image is shifted, (dx, dy) in pixels of the frame, and which boxes bool[N] stay.

    frame: boxes float32[N, 4] in the frame. A shift that would leave no box is not made.
    """
    if rng.random() < SHIFT_PROBABILITY:
        dx, dy = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, size=2).tolist()
        moved = box_ops.clip(frame + np.asarray([dx, dy, dx, dy], dtype=np.float32), (FRAME, FRAME))
        kept = box_ops.keep_valid(moved, MIN_SIDE_AFTER_SHIFT) & large_enough(moved)
        if kept.any():
            return (dx, dy), kept
    return (0, 0), np.ones(len(frame), dtype=bool)
