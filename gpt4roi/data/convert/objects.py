"""Conversion of samples to objects of the unified format, and of objects to a file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.base import RegionDataset
from gpt4roi.data.unified_object import BadObjectError, check_object
from gpt4roi.errors import InputError
from gpt4roi.geometry.frames import BoxFrame, FrameClues, FrameCounts, FrameRule
from gpt4roi.io.atomic import atomic_path
from gpt4roi.io.coco import InvalidAnnotationError
from gpt4roi.io.images_on_disk import ImageFinder
from gpt4roi.io.json_files import parse_jsonl, read_bytes
from gpt4roi.processing.images import read_header
from gpt4roi.structures import RegionSample

_SPEAKERS = {"user": "human", "assistant": "gpt"}
_MAX_EXAMPLES = 5
NOT_THERE = "image that is not there"


@dataclass
class Conversion:
    """Where a conversion writes to, and what it left out.

    Attributes:
        folder: Of the file that is written; images are named relative to it.
        left_out: Reason -> number.
        noted: What is converted all the same, but told -> number.
        examples: The first messages.
        faults: How much of what is left out is wrong in itself, rather than left out by a rule.
        kept: How many objects and boxes are converted.
        images: How many images were looked for.
        rule: How the frame of boxes is found.
        frames: What was decided about it.
        present: How many objects the file had already.
        masks: Objects get masks in place of boxes, where their regions have one.
    """

    folder: Path
    rule: FrameRule = field(default_factory=FrameRule)
    left_out: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    faults: int = 0
    kept: int = 0
    images: int = 0
    frames: FrameCounts = field(default_factory=FrameCounts)
    present: int = 0
    masks: bool = False

    def leave_out(self, reason: str, message: str, count: int = 1, fault: bool = True) -> None:
        """Notes what cannot be converted; fault: it is wrong in itself."""
        self.left_out[reason] += count
        self.faults += count if fault else 0
        self._name(f"left out: {message}")

    def leave_out_annotation(self, error: InvalidAnnotationError, where: str) -> None:
        """Notes what the file has that cannot be converted."""
        self.leave_out(error.reason, f"{where}: {error}", fault=error.fault)

    def note(self, what: str, where: str, message: str = "") -> None:
        """Notes what is converted all the same, but has to be told."""
        self.noted[what] += 1
        self._name(f"{where}: {message or what}")

    def _name(self, message: str) -> None:
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(message)

    def found(self, find: ImageFinder, name: str, where: str) -> str:
        """Returns the path of an image that a file names; notes where it is not there."""
        path = find.find(name)
        self.images += 1
        if path is None:
            self.note(NOT_THERE, where, f"image {name!r} is not in {find.folders[0]}; give its folder as --img-prefix")
        return str(path or find.folders[0] / name)

    def place(self, image: str, clues: FrameClues) -> BoxFrame | None:
        """Returns the frame of the boxes of an image, which is counted; None where the image cannot be opened.

        Raises:
            InvalidAnnotationError: The file says another size than the image has.
        """
        try:
            header = read_header(image)
        except InputError:
            return None
        try:
            placed = self.rule.place(header, clues, image)
        except InputError as error:
            raise InvalidAnnotationError(str(error), "image of another size than the file says") from None
        self.frames.add(placed.remarks(), image)
        return placed

    def image_name(self, path: str) -> str:
        """Returns an image's path as the written file names it: relative to its folder, where that is possible."""
        try:
            return Path(os.path.relpath(path, self.folder)).as_posix()
        except ValueError:  # another drive
            return str(Path(path).absolute())


def objects_of(dataset: RegionDataset, target: Conversion, epochs: int = 1, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yields one object for each sample of a data set; for each of its items and epochs, drawn anew.

    Shifts and flips are left to the training. What the data set itself leaves out counts as left out.
    """
    for drop in dataset.drops():
        target.leave_out(drop.reason, drop.detail or f"{drop.where}: {drop.reason}", fault=bool(drop.detail))
    dataset = dataset.unaugmented()  # a shift would cost the boxes that it moves out of the image
    for epoch in range(epochs):
        for index in range(len(dataset)):
            try:
                sample = dataset.sample(index, np.random.default_rng([seed, epoch, index]))
                yield as_object(sample, target)
            except InputError as error:
                target.leave_out("sample that cannot be drawn", str(error))


def as_object(sample: RegionSample, target: Conversion) -> dict[str, Any]:
    """Writes a sample as an object; raises InputError where boxes in fractions need an image that does not open."""
    made: dict[str, Any] = {"id": sample.source.rpartition("/")[2]}
    if sample.image is not None:
        made["image"] = target.image_name(sample.image)
    if len(sample.boxes_px):
        made["boxes"] = [[round(value, 2) for value in box] for box in _pixels(sample).tolist()]
    if any(mask is not None for mask in sample.masks):
        target.note("sample whose masks became boxes", sample.source)
    if any(sample.region_texts):
        made["region_texts"] = list(sample.region_texts)
    if len(sample.boxes_px) or sample.image_pipeline != "dialogue":
        made["image_pipeline"] = sample.image_pipeline
    if sample.independent_turns:
        made["independent"] = True
    made["conversations"] = [{"from": _SPEAKERS[turn.role], "value": turn.text} for turn in sample.turns]
    return made


def frame_fields(placed: BoxFrame | None, clues: FrameClues, boxes: np.ndarray) -> dict[str, Any]:
    """Returns the fields that say where boxes lie: height, width, image_pipeline and the boxes themselves.

    Without a frame, only what the file says.
    """
    if placed is None:
        sides: dict[str, Any] = {} if clues.size is None else {"height": clues.size[0], "width": clues.size[1]}
    else:
        height, width = placed.size
        boxes, sides = placed.scaled(boxes), {"height": height, "width": width, "image_pipeline": placed.pipeline}
    return {**sides, "boxes": boxes.round(2).tolist()}


def with_masks(
    fields: dict[str, Any], masks: Sequence[Any], placed: BoxFrame | None, target: Conversion
) -> dict[str, Any]:
    """Returns the fields of frame_fields with masks in place of boxes, where they are asked for and there is one."""
    if not target.masks or not any(masks):
        return fields
    if placed is not None and placed.scale != 1:
        reason = "masks of an image of another size"
        raise InvalidAnnotationError(f"{reason} cannot be scaled; leave out --masks", reason)
    rows = zip(masks, fields.pop("boxes"), strict=True)
    return {**fields, "masks": [mask or [[x1, y1, x2, y1, x2, y2, x1, y2]] for mask, (x1, y1, x2, y2) in rows]}


def caption_fields(texts: Sequence[str], question: str) -> dict[str, Any]:
    """Returns the fields of an object with one independent question, with {region}, for each region's text."""
    turns = []
    for number, text in enumerate(texts, start=1):
        turns.append({"from": "human", "value": question.replace("{region}", f"<region{number}>")})
        turns.append({"from": "gpt", "value": text})
    tasks = ["caption"] * len(texts)
    return {"region_texts": list(texts), "independent": True, "tasks": tasks, "conversations": turns}


def _pixels(sample: RegionSample) -> np.ndarray:
    if sample.box_frame == "pixels":
        return sample.boxes_px
    header = read_header(str(sample.image), f" in {sample.source}")
    height, width = header.size_read_by(sample.image_pipeline)
    return sample.boxes_px * [width, height, width, height]


def usable(objects: Iterable[dict[str, Any]], target: Conversion) -> Iterator[dict[str, Any]]:
    """Yields the objects that the reader of the format takes; the others are left out."""
    for entry in objects:
        try:
            check_object(entry, str(entry["id"]))
        except BadObjectError as error:
            target.leave_out(error.kind, str(error), fault=error.fault)
        else:
            target.kept += 1 + len(entry.get("boxes") or ())
            yield entry


def write_objects(objects: Iterable[dict[str, Any]], path: Path, target: Conversion, append: bool = False) -> int:
    """Writes objects one a line; the file appears when it is complete. Returns how many there were.

    append: After the lines that are there, which stay as they are. What asks the same of the same boxes of an image as
        one of them is not written again, whatever it answers: answers are corrected by hand.
    """
    count, present = 0, _read_present(path) if append and path.exists() else b""
    asked = {_asked(value) for _, value in parse_jsonl(present, path)}
    with atomic_path(path) as beside, beside.open("wb") as file:
        file.write(present if not present or present.endswith(b"\n") else present + b"\n")
        for entry in usable(objects, target):
            if append and _asked(entry) in asked:
                target.present += 1
                continue
            file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            count += 1
        if not count and not target.present:
            first = f"; the first: {target.examples[0]}" if target.examples else ""
            raise InputError(f"{path}: not written, because nothing could be converted{first}")
    return count


def _read_present(path: Path) -> bytes:
    """Reads a file that lines are added to; raises InputError for one that is not of such lines."""
    present = read_bytes(path)
    lines = [value for _, value in parse_jsonl(present, path)]
    is_list = present.lstrip().startswith(b"[")
    if lines and (is_list or not any(isinstance(value, dict) and "conversations" in value for value in lines)):
        raise InputError(f"{path}: expected one object of the unified format a line, to add to; give another name")
    return present


def _asked(entry: Any) -> tuple[Any, ...] | None:
    """Returns what an object asks, of which boxes of which image; None for one that cannot be used."""
    try:
        checked = check_object(entry, "")
    except BadObjectError:
        return None
    questions = tuple(text for role, text in checked["conversations"] if role == "user")
    return os.path.normpath(checked["image"] or ""), checked["boxes"].round(2).tobytes(), questions
