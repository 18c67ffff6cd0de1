"""VCR: a question, its answer and the reason, about persons and things by number (`vcr`, `single_vcr`, `multi_vcr`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.annotations import Drops, require_file_name, require_text
from gpt4roi.data.base import Item
from gpt4roi.data.columns import Columns, make_offsets
from gpt4roi.data.index import IndexedDataset, make_columns
from gpt4roi.data.readers.dialogues import draw, mention, with_image_preamble
from gpt4roi.errors import InputError
from gpt4roi.geometry import boxes as box_ops
from gpt4roi.io.coco import FilteredOutError, InvalidAnnotationError, parse_floats, parse_side
from gpt4roi.io.json_files import parse_jsonl, read_json
from gpt4roi.processing.images import read_header
from gpt4roi.processing.prompts import VCR_PREFIXES, VCR_WHY_QUESTIONS
from gpt4roi.structures import RegionSample, Turn

_PARTS = ("question", "answer", "rationale")

_TAG = re.compile("\ue000(\\d+)\ue001")
_DIGITS = re.compile(r"\d+")
_UNIT = re.compile(
    r"\s*(?:%|percent|o'?clock|[ap]\.?m\b|(?:second|minute|hour|day|week|month|year|dollar|cent|mile|meter|pound|degree|time)s?\b"
    r"|feet|foot|inch|inches)",
    re.IGNORECASE,
)
"""What follows a number that counts something."""


class VCR(IndexedDataset):
    """Lists all objects of the image as regions, then asks the question and why (`vcr`).

    Args:
        ann_file: VCR's jsonl.
        img_prefix: The folder `vcr1images`, which holds the images and a .json of boxes beside each; that is opened
            when its item is drawn.
        as_released: What the released weights saw: every number taken for an object, boxes reaching over the image's
            border, and (`vcr` alone) the name of the next object instead of the one meant; of `single_vcr` and
            `multi_vcr` no item whose answer means an object that the question does not.
    """

    version = 3

    def __init__(self, ann_file: str | Path, img_prefix: str | Path = "", as_released: bool = False) -> None:
        self.as_released = as_released
        super().__init__([ann_file], img_prefix, f"as_released={as_released}")

    def build(self, contents: list[bytes]) -> Columns:
        drops = Drops([(0, "")])
        positions: list[int] = []
        objects: list[list[str]] = []
        columns: dict[str, list[str]] = {name: [] for name in ("image", "metadata", *_PARTS)}
        for number, entry in parse_jsonl(contents[0], self.files[0]):
            try:
                row, names = self._row(entry)
            except InvalidAnnotationError as error:
                drops.add(error, number)
                continue
            positions.append(number)
            objects.append(names)
            for name, value in row.items():
                columns[name].append(value)
        columns["object"] = list(chain.from_iterable(objects))
        arrays = {
            "position": np.asarray(positions, dtype=np.int64),
            "first_object": make_offsets(map(len, objects)),
        }
        return make_columns(arrays, columns, drops)

    def _row(self, entry: Any) -> tuple[dict[str, str], list[str]]:
        """Returns the texts of an entry by their column, and the names of its objects."""
        if isinstance(entry, InputError):
            raise InvalidAnnotationError("line that is not valid JSON")
        if not isinstance(entry, dict):
            raise InvalidAnnotationError("line that is not an object")
        objects = entry.get("objects")
        if not isinstance(objects, list) or not objects:
            raise InvalidAnnotationError("objects are missing or empty")
        objects = [require_text(name, "name of an object") for name in objects]
        row = {
            "image": require_file_name(entry.get("img_fn"), "img_fn"),
            "metadata": require_file_name(entry.get("metadata_fn"), "metadata_fn"),
        }
        for part in _PARTS:
            text = require_text(entry.get(f"{part}_orig"), f"{part}_orig")
            if self.as_released:
                row[part] = mark_as_released(text)
            else:
                row[part] = mark(text, entry.get(part), len(objects))
        self.check([row[part] for part in _PARTS], len(objects))
        return row, objects

    def check(self, texts: list[str], num_objects: int) -> None:
        """Raises InvalidAnnotationError for an item that is left out; texts: question, answer and rationale, marked."""
        if self.as_released and any(tag >= num_objects for text in texts for tag in tags(text)):
            raise FilteredOutError("text with a number that is not below the number of objects")

    def check_answer(self, asked: list[int], answered: list[int]) -> None:
        """Leaves out, as the original did, an item whose answer means an object that the question does not."""
        if self.as_released and not set(answered) <= set(asked):
            raise FilteredOutError("answer that means an object which the question does not")

    def dialogue(self, texts: list[str], objects: list[str], rng: np.random.Generator) -> tuple[list[Turn], list[int]]:
        """Returns the turns, and the objects (from 1) whose boxes they mention, in the boxes' order."""
        if self.as_released:
            question, answer, rationale = (write(text, lambda tag: f"{objects[tag]} at region{tag}") for text in texts)
        else:
            question, answer, rationale = (
                write(text, lambda tag: f"{objects[tag - 1]} at {mention(tag)}") for text in texts
            )
        listed = list(range(1, len(objects) + 1))
        prefix = draw(VCR_PREFIXES, rng).format(regions=", ".join(map(mention, listed)))
        return rounds(prefix + question, answer, rationale, rng), listed

    def objects(self, index: int) -> list[str]:
        """Returns the class names of an item's objects."""
        return self.columns.texts("object", self.columns.rows("first_object", index))

    def item(self, index: int) -> Item:
        boxes, size = self._boxes(index)
        return Item(
            image=self.image(index),
            boxes_px=boxes,
            image_size=size,
            region_texts=tuple(self.objects(index)),
            box_sources=(self.image(index, "metadata"),) * len(boxes),
            caption=unmarked(self.columns.text("question", index)),
            source=self.source(index),
        )

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        objects = self.objects(index)
        texts = [self.columns.text(part, index) for part in _PARTS]
        turns, mentioned = self.dialogue(texts, objects, rng)
        boxes, size = self._boxes(index)
        if not self.as_released:
            size = size or read_header(self.image(index), f" in {self.source(index)}").size
            boxes = box_ops.clip(boxes, size)
        return RegionSample(
            image=self.image(index),
            turns=tuple(with_image_preamble(turns)),
            boxes_px=boxes[[tag - 1 for tag in mentioned]],
            region_texts=tuple(objects[tag - 1] for tag in mentioned),
            source=self.source(index),
            ignore_alpha=self.as_released,
        )

    def _boxes(self, index: int) -> tuple[np.ndarray, tuple[int, int] | None]:
        """Returns the boxes float64[N, 4] of all objects, and (height, width) where the image's .json tells it.

        Raises InputError where that cannot be read, or has other boxes than there are objects.
        """
        path = Path(self.image(index, "metadata"))
        try:
            content = read_json(path, "the boxes of an image")
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
                boxes[number] = parse_floats(row[:4] if isinstance(row, list) else row, 4)
            except InvalidAnnotationError as error:
                raise InputError(f"{path}#boxes[{number}]: {error} in {self.source(index)}") from None
        try:
            return boxes, (parse_side(content.get("height")), parse_side(content.get("width")))
        except InvalidAnnotationError:
            return boxes, None


class SingleVCR(VCR):
    """Asks about the only object that the question means and that the answer means too (`single_vcr`)."""

    def check(self, texts: list[str], num_objects: int) -> None:
        asked, answered = (tags(text) for text in texts[:2])
        inside_words = self.as_released and len(digits(texts[0])) != 1
        if len(asked) != 1 or asked[0] not in answered or inside_words:
            raise FilteredOutError("question or answer that does not mean one object")
        if not 1 <= asked[0] <= num_objects:
            raise FilteredOutError("question about an object that is not listed")
        self.check_answer(asked, answered)

    def dialogue(self, texts: list[str], objects: list[str], rng: np.random.Generator) -> tuple[list[Turn], list[int]]:
        tag = tags(texts[0])[0]
        return renumbered(texts, objects, [tag], rng), [tag]


class MultiVCR(VCR):
    """Asks about the objects that the question means, where it means several, numbered in its order (`multi_vcr`)."""

    def check(self, texts: list[str], num_objects: int) -> None:
        asked = tags(texts[0])
        if len(asked) < 2:
            raise FilteredOutError("question that does not mean several objects")
        if not all(1 <= tag <= num_objects for tag in asked):
            raise FilteredOutError("question about an object that is not listed")
        if self.as_released and len(asked) != len(digits(texts[0])):
            raise FilteredOutError("question with a number inside a word")
        self.check_answer(asked, tags(texts[1]))

    def dialogue(self, texts: list[str], objects: list[str], rng: np.random.Generator) -> tuple[list[Turn], list[int]]:
        distinct = list(dict.fromkeys(tags(texts[0])))
        return renumbered(texts, objects, distinct, rng), distinct


def renumbered(texts: list[str], objects: list[str], listed: list[int], rng: np.random.Generator) -> list[Turn]:
    """Writes the rounds with the shown objects (from 1) as region 1, 2, …; others are called by their name alone.

    The question calls the shown objects by their region alone ("Is region1 <bbox> parked ?"), as the original did; it
    would give the answer away otherwise. The reason is asked for only where it means no other objects.
    """

    def name(tag: int) -> str:
        if tag in listed:
            return f"{objects[tag - 1]} at {mention(listed.index(tag) + 1)}"
        return objects[tag - 1] if 1 <= tag <= len(objects) else str(tag)

    question = write(texts[0], lambda tag: mention(listed.index(tag) + 1))
    answer, rationale = (write(text, name) for text in texts[1:])
    turns = rounds(question, answer, rationale, rng)
    return turns if set(tags(texts[2])) <= set(listed) else turns[:2]


def rounds(question: str, answer: str, rationale: str, rng: np.random.Generator) -> list[Turn]:
    """Asks a question, and why."""
    return [
        Turn("user", question),
        Turn("assistant", answer),
        Turn("user", draw(VCR_WHY_QUESTIONS, rng)),
        Turn("assistant", rationale),
    ]


def mark(text: str, words: Any, num_objects: int) -> str:
    """Returns a text in which each number that means an object stands between two private characters.

    VCR writes objects as numbers from 1 (`question_orig`), and tells in a list of words (`question`) which they are.

    Args:
        text: The text as VCR has it.
        words: VCR's list for the text, objects as lists of numbers from 0; where it is missing or says something else
            than the text, an integer of an object (1 to num_objects) is taken for one, unless a unit follows it.
        num_objects: How many objects the image has.

    Raises:
        InvalidAnnotationError: The words name an object that is not there.
    """
    if "\ue000" in text:
        raise InvalidAnnotationError("text with a character that is reserved here (U+E000)")
    kinds = _runs_of(words)
    runs = [match.group() for match in _DIGITS.finditer(text)]
    if kinds is not None and [run for run, _ in kinds] != runs:
        kinds = None  # the words say something else than the text
    if kinds is not None and any(meant and not 1 <= int(run) <= num_objects for run, meant in kinds):
        raise InvalidAnnotationError("text that means an object which is not listed")
    pieces, end = [], 0
    for place, match in enumerate(_DIGITS.finditer(text)):
        meant = kinds[place][1] if kinds is not None else _means_object(text, match, num_objects)
        if meant:
            pieces += [text[end : match.start()], f"\ue000{int(match.group())}\ue001"]
            end = match.end()
    return "".join(pieces) + text[end:]


def mark_as_released(text: str) -> str:
    """Marks every integer, as the original's replacement did."""
    return re.sub(r"\b\d{1,4}\b", lambda match: f"\ue000{int(match.group())}\ue001", text)


def tags(marked: str) -> list[int]:
    """Returns the objects that a marked text means, in order, as often as it does."""
    return [int(number) for number in _TAG.findall(marked)]


def write(marked: str, name: Callable[[int], str]) -> str:
    """Returns a marked text with each object written by `name`."""
    return _TAG.sub(lambda match: name(int(match.group(1))), marked)


def digits(marked: str) -> list[str]:
    """Returns every run of digits of a text, whether it means an object or not."""
    return _DIGITS.findall(marked)


def unmarked(marked: str) -> str:
    """Returns the text as VCR has it."""
    return write(marked, str)


def _runs_of(words: Any) -> list[tuple[str, bool]] | None:
    """Returns each run of digits of a list of words, and whether it means an object; None where it is no such list."""
    if not isinstance(words, list):
        return None
    runs: list[tuple[str, bool]] = []
    for word in words:
        if isinstance(word, str):
            runs += [(run, False) for run in _DIGITS.findall(word)]
        elif isinstance(word, list) and all(type(number) is int for number in word):
            runs += [(str(number + 1), True) for number in word]
        else:
            return None
    return runs


def _means_object(text: str, match: re.Match[str], num_objects: int) -> bool:
    start, end = match.span()
    beside = text[start - 1 : start] + text[end : end + 1]
    alone = not any(character.isalnum() or character in "_$" for character in beside)
    short = len(match.group()) <= 4  # no image has more objects, and int() has its limits
    return alone and short and 1 <= int(match.group()) <= num_objects and not _UNIT.match(text, end)
