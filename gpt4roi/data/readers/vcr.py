"""VCR: a question, its answer and the reason, about persons and things by number (`vcr`, `single_vcr`, `multi_vcr`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gpt4roi.data.annotations import (
    Drops,
    LeftOutError,
    UnusableError,
    file_name,
    length,
    numbers,
    parse_json,
    parse_lines,
    read_bytes,
    text,
)
from gpt4roi.data.base import Item
from gpt4roi.data.columns import Columns
from gpt4roi.data.indexed import IndexedDataset, make_columns
from gpt4roi.data.readers import vcr_tags
from gpt4roi.data.readers.dialogues import draw, mention, shown
from gpt4roi.errors import InputError
from gpt4roi.geometry import boxes as box_ops
from gpt4roi.processing.prompts import VCR_PREFIXES, VCR_WHY_QUESTIONS
from gpt4roi.structures import RegionSample, Turn

_PARTS = ("question", "answer", "rationale")


class VCR(IndexedDataset):
    """Lists all objects of the image as regions, then asks the question and why (`vcr`).

    ann_file: VCR's jsonl. img_prefix: the folder `vcr1images`, which holds the images and a .json of boxes beside
    each; that is opened when its item is drawn.
    as_released: what the released weights saw: every number taken for an object, boxes reaching over the image's
        border, and (`vcr` alone) the name of the next object instead of the one meant.
    """

    def __init__(self, ann_file: str | Path, img_prefix: str | Path = "", as_released: bool = False) -> None:
        self.as_released = as_released
        super().__init__([ann_file], img_prefix, f"as_released={as_released}")

    def build(self, contents: list[bytes]) -> Columns:
        drops = Drops([(0, "")])
        positions: list[int] = []
        columns: dict[str, list[str]] = {name: [] for name in ("image", "metadata", "objects", *_PARTS)}
        for number, entry in parse_lines(self.files[0], contents[0]):
            try:
                row = self._row(entry)
            except UnusableError as error:
                drops.add(error, number)
                continue
            positions.append(number)
            for name, value in row.items():
                columns[name].append(value)
        return make_columns({"position": np.asarray(positions, dtype=np.int64)}, columns, drops)

    def _row(self, entry: Any) -> dict[str, str]:
        if isinstance(entry, UnusableError):
            raise entry
        if not isinstance(entry, dict):
            raise UnusableError("line that is not an object")
        objects = entry.get("objects")
        if not isinstance(objects, list) or not objects:
            raise UnusableError("objects are missing or empty")
        objects = [text(name, "name of an object") for name in objects]
        row = {
            "image": file_name(entry.get("img_fn"), "img_fn"),
            "metadata": file_name(entry.get("metadata_fn"), "metadata_fn"),
            "objects": json.dumps(objects),
        }
        for part in _PARTS:
            said = text(entry.get(f"{part}_orig"), f"{part}_orig")
            if self.as_released:
                row[part] = vcr_tags.mark_as_released(said)
            else:
                row[part] = vcr_tags.mark(said, entry.get(part), len(objects))
        self.check([row[part] for part in _PARTS], len(objects))
        return row

    def check(self, texts: list[str], num_objects: int) -> None:
        """Raises UnusableError for an item that is left out; texts: question, answer and rationale, marked."""
        if self.as_released and any(tag >= num_objects for said in texts for tag in vcr_tags.tags(said)):
            raise LeftOutError("text with a number that is not below the number of objects")

    def dialogue(self, texts: list[str], objects: list[str], rng: np.random.Generator) -> tuple[list[Turn], list[int]]:
        """Returns the turns, and the objects (from 1) whose boxes they mention, in the boxes' order."""
        if self.as_released:
            question, answer, rationale = (
                vcr_tags.write(said, lambda tag: f"{objects[tag]} at region{tag}") for said in texts
            )
        else:
            question, answer, rationale = (
                vcr_tags.write(said, lambda tag: f"{objects[tag - 1]} at {mention(tag)}") for said in texts
            )
        shown_objects = list(range(1, len(objects) + 1))
        prefix = draw(VCR_PREFIXES, rng).format(regions=", ".join(map(mention, shown_objects)))
        return rounds(prefix + question, answer, rationale, rng), shown_objects

    def source(self, index: int) -> str:
        """Returns the place of an item, as `Drop.where`."""
        return self.place(int(self.columns["position"][index]))

    def objects(self, index: int) -> list[str]:
        """Returns the class names of an item's objects."""
        return json.loads(self.columns.text("objects", index))

    def item(self, index: int) -> Item:
        boxes, size = self._boxes(index)
        return Item(
            image=self.image(index),
            boxes_px=boxes,
            image_size=size,
            region_texts=tuple(self.objects(index)),
            box_sources=(self.image(index, "metadata"),) * len(boxes),
            caption=vcr_tags.unmarked(self.columns.text("question", index)),
            source=self.source(index),
        )

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        objects = self.objects(index)
        texts = [self.columns.text(part, index) for part in _PARTS]
        turns, mentioned = self.dialogue(texts, objects, rng)
        boxes, size = self._boxes(index)
        if not self.as_released:
            boxes = box_ops.clip(boxes, size or self._image_size(index))
        return RegionSample(
            image=self.image(index),
            turns=tuple(shown(turns)),
            boxes_px=boxes[[tag - 1 for tag in mentioned]],
            region_texts=tuple(objects[tag - 1] for tag in mentioned),
            source=self.source(index),
        )

    def _boxes(self, index: int) -> tuple[np.ndarray, tuple[int, int] | None]:
        """Returns the boxes float64[N, 4] of all objects, and (height, width) where the image's .json tells it.

        Raises InputError where that cannot be read, or has other boxes than there are objects.
        """
        path = Path(self.image(index, "metadata"))
        try:
            content = parse_json(path, read_bytes(path))
        except InputError as error:
            raise InputError(f"{error} (the boxes of {self.source(index)})") from None
        rows = content.get("boxes") if isinstance(content, dict) else None
        expected = len(self.objects(index))
        if not isinstance(rows, list) or len(rows) != expected:
            got = f"{len(rows)} boxes" if isinstance(rows, list) else "no list of boxes"
            raise InputError(f"{path}: {got} but {expected} objects in {self.source(index)}")
        boxes = np.zeros((expected, 4))
        for number, row in enumerate(rows):
            try:
                boxes[number] = numbers(row[:4] if isinstance(row, list) else row, 4)
            except UnusableError as error:
                raise InputError(f"{path}#boxes[{number}]: {error} in {self.source(index)}") from None
        try:
            return boxes, (length(content.get("height")), length(content.get("width")))
        except UnusableError:
            return boxes, None

    def _image_size(self, index: int) -> tuple[int, int]:
        path = self.image(index)
        try:
            with Image.open(path) as image:
                return image.height, image.width
        except Exception as error:  # a damaged head raises many kinds
            raise InputError(f"image {path} cannot be opened in {self.source(index)}: {error}") from None


class SingleVCR(VCR):
    """Asks about the only object that the question means and that the answer means too (`single_vcr`)."""

    def check(self, texts: list[str], num_objects: int) -> None:
        asked, answered = (vcr_tags.tags(said) for said in texts[:2])
        inside_words = self.as_released and len(vcr_tags.digits(texts[0])) != 1
        if len(asked) != 1 or asked[0] not in answered or inside_words:
            raise LeftOutError("question or answer that does not mean one object")
        if not 1 <= asked[0] <= num_objects:
            raise LeftOutError("question about an object that is not listed")

    def dialogue(self, texts: list[str], objects: list[str], rng: np.random.Generator) -> tuple[list[Turn], list[int]]:
        tag = vcr_tags.tags(texts[0])[0]
        return renumbered(texts, objects, [tag], rng), [tag]


class MultiVCR(VCR):
    """Asks about the objects that the question means, where it means several, numbered in its order (`multi_vcr`)."""

    def check(self, texts: list[str], num_objects: int) -> None:
        asked = vcr_tags.tags(texts[0])
        if len(asked) < 2:
            raise LeftOutError("question that does not mean several objects")
        if not all(1 <= tag <= num_objects for tag in asked):
            raise LeftOutError("question about an object that is not listed")
        if self.as_released and len(asked) != len(vcr_tags.digits(texts[0])):
            raise LeftOutError("question with a number inside a word")

    def dialogue(self, texts: list[str], objects: list[str], rng: np.random.Generator) -> tuple[list[Turn], list[int]]:
        distinct = list(dict.fromkeys(vcr_tags.tags(texts[0])))
        return renumbered(texts, objects, distinct, rng), distinct


def renumbered(texts: list[str], objects: list[str], shown_objects: list[int], rng: np.random.Generator) -> list[Turn]:
    """Writes the rounds with the shown objects (from 1) as region 1, 2, …; others are called by their name alone.

    The reason is asked for only where it means no other objects.
    """

    def name(tag: int) -> str:
        if tag in shown_objects:
            return f"{objects[tag - 1]} at {mention(shown_objects.index(tag) + 1)}"
        return objects[tag - 1] if 1 <= tag <= len(objects) else str(tag)

    question, answer, rationale = (vcr_tags.write(said, name) for said in texts)
    turns = rounds(question, answer, rationale, rng)
    return turns if set(vcr_tags.tags(texts[2])) <= set(shown_objects) else turns[:2]


def rounds(question: str, answer: str, rationale: str, rng: np.random.Generator) -> list[Turn]:
    """Asks a question, and why."""
    return [
        Turn("user", question),
        Turn("assistant", answer),
        Turn("user", draw(VCR_WHY_QUESTIONS, rng)),
        Turn("assistant", rationale),
    ]
