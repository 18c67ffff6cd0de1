"""LLaVA-Instruct-150K with boxes that EVA-02 detected in the same images (`det_llava`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.constants import IMAGE_TOKEN
from gpt4roi.data.annotations import Drops, alternating_texts, require_file_name, require_text
from gpt4roi.data.base import Item
from gpt4roi.data.columns import Columns, make_offsets
from gpt4roi.data.index import IndexedDataset, make_columns
from gpt4roi.data.readers.detections import read_detections
from gpt4roi.data.readers.dialogues import draw, with_image_preamble
from gpt4roi.data.tables import lvis_names, lvis_names_as_released
from gpt4roi.errors import InputError
from gpt4roi.io.coco import FilteredOutError, InvalidAnnotationError
from gpt4roi.io.json_files import kind_of, parse_json
from gpt4roi.processing.prompts import DETECTED_REGION, PRESENCE_NO, PRESENCE_QUESTIONS, PRESENCE_YES
from gpt4roi.structures import RegionSample, Turn

LISTED_PROBABILITY = 0.5
MIN_SCORE, MIN_SIDE = 0.3, 0.02
MAX_REGIONS, MAX_FALLBACK = 100, 10


class DetLlava(IndexedDataset):
    """Repeats the dialogues; half of the samples first list what was detected where.

    Two rounds about a thing that is not there and one that is follow each dialogue.

    Args:
        ann_file: LLaVA's json.
        det_pkl_path: EVA's pickle, or the .npz it was converted to; images are matched by name.
        img_prefix: The folder of the images.
        as_released: What the released weights saw: without these two rounds, with the names of LVIS shifted from label
            938 on, and with boxes reaching over the image's border.
    """

    def __init__(
        self,
        ann_file: str | Path,
        det_pkl_path: str | Path,
        img_prefix: str | Path = "",
        as_released: bool = False,
    ) -> None:
        super().__init__([ann_file, det_pkl_path], img_prefix)
        self.as_released = as_released
        self.class_names = lvis_names_as_released() if as_released else lvis_names()

    def build(self, contents: list[bytes]) -> Columns:
        drops = Drops([(0, ""), (1, "entries")])
        found = read_detections(self.files[1], contents[1], drops, section=1)
        number_of = {name: number for number, name in enumerate(found.names)}
        by_end = {name.rsplit("/", 1)[-1]: number for name, number in number_of.items()}
        entries = parse_json(contents[0], self.files[0])
        if not isinstance(entries, list):
            raise InputError(f"{self.files[0]}: expected a list of dialogues (LLaVA's form), got {kind_of(entries)}")
        positions, images, texts, counts, chosen = [], [], [], [], []
        for position, entry in enumerate(entries):
            try:
                image, turns = _dialogue(entry)
            except InvalidAnnotationError as error:
                drops.add(error, position)
                continue
            positions.append(position)
            images.append(image)
            texts += turns
            counts.append(len(turns))
            chosen.append(number_of.get(image, by_end.get(image.rsplit("/", 1)[-1], -1)))
        parts = [slice(*found.first[number : number + 2]) if number >= 0 else slice(0) for number in chosen]
        arrays = {
            "position": np.asarray(positions, dtype=np.int64),
            "first_turn": make_offsets(counts),
            "first": make_offsets(part.stop - (part.start or 0) for part in parts),
            "detections": np.concatenate([found.boxes[:0], *(found.boxes[part] for part in parts)]),
            "labels": np.concatenate([found.labels[:0], *(found.labels[part] for part in parts)]),
        }
        return make_columns(arrays, {"image": images, "turn": texts}, drops)

    def item(self, index: int) -> Item:
        detections, labels = self._detected(index)
        return Item(
            image=self.image(index),
            boxes_px=detections[:, :4].astype(np.float64),
            box_frame="unit",
            region_texts=tuple(self.class_names[label] for label in labels.tolist()),
            box_sources=(self.source(index),) * len(labels),
            source=self.source(index),
        )

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        detections, labels = self._detected(index)
        texts = self.columns.texts("turn", self.columns.rows("first_turn", index))
        kept = confident(detections)
        listed = kept if rng.random() <= LISTED_PROBABILITY else kept[:0]
        names = [self.class_names[label] for label in labels[listed].tolist()]
        texts[0] = "".join(f"{DETECTED_REGION.format(name=name)}\n" for name in names) + texts[0]
        turns = [Turn(("user", "assistant")[step % 2], text) for step, text in enumerate(texts)]
        if not self.as_released:
            turns += presence_rounds(labels, labels[kept], self.class_names, rng)
        boxes = detections[listed, :4].astype(np.float64)
        return RegionSample(
            image=self.image(index),
            turns=tuple(with_image_preamble(turns)),
            boxes_px=boxes if self.as_released else boxes.clip(0, 1),
            box_frame="unit",
            region_texts=tuple(names),
            source=self.source(index),
            ignore_alpha=self.as_released,
        )

    def _detected(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        rows = self.columns.rows("first", index)
        return self.columns["detections"][rows], self.columns["labels"][rows]


def confident(detections: np.ndarray) -> np.ndarray:
    """Returns the numbers of the detections float32[N, 5] that are listed: sure and large ones, at most 100.

    Where there are none, the first ten whatever they are.
    """
    sides = detections[:, 2:4] - detections[:, :2]
    kept = np.flatnonzero((detections[:, 4] > MIN_SCORE) & (sides > MIN_SIDE).all(axis=1))[:MAX_REGIONS]
    return kept if len(kept) else np.arange(len(detections))[:MAX_FALLBACK]


def presence_rounds(
    detected: np.ndarray, confirmed: np.ndarray, names: Sequence[str], rng: np.random.Generator
) -> list[Turn]:
    """Asks about a class that was not detected, and about one that was, where there is any.

    detected: labels of all detections; confirmed: of those that are listed.
    """
    absent = np.setdiff1d(np.arange(len(names)), detected)
    asked = [(names[int(rng.choice(absent))], PRESENCE_NO)] if len(absent) else []
    if len(confirmed):
        asked.append((names[int(rng.choice(confirmed))], PRESENCE_YES))
    turns = []
    for name, answers in asked:
        turns.append(Turn("user", draw(PRESENCE_QUESTIONS, rng).format(name=name)))
        turns.append(Turn("assistant", draw(answers, rng).format(name=name)))
    return turns


def _dialogue(entry: Any) -> tuple[str, list[str]]:
    """Returns image and texts of a dialogue, in which human and gpt take turns; `<image>` goes from the questions."""
    if not isinstance(entry, dict):
        raise InvalidAnnotationError("dialogue that is not an object")
    if "image" not in entry:
        raise FilteredOutError("dialogue without an image")
    image = require_file_name(entry["image"], "image of the dialogue")
    texts = alternating_texts(entry.get("conversations"), "dialogue")
    texts[::2] = [text.replace(IMAGE_TOKEN, "").strip() if isinstance(text, str) else text for text in texts[::2]]
    return image, [require_text(text, "turn of the dialogue") for text in texts]
