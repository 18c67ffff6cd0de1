"""Benchmark files: where annotations and images lie, and fields, boxes and ids of their records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.items import Source
from gpt4roi.geometry.frames import FrameClues
from gpt4roi.geometry.masks import to_boxes
from gpt4roi.io.coco import (
    CocoTables,
    FilteredOutError,
    Id,
    InvalidAnnotationError,
    annotation_box,
    with_unique_ids,
)
from gpt4roi.io.images_on_disk import ImageFinder

MASK_FIELDS = ("mask_rles", "mask_rle", "masks", "segmentations", "segmentation")
BOX_FIELDS = ("bboxes", "bbox", "boxes", "box")
PLACEHOLDER = re.compile(r"<(?:obj|object|region|bbox|mask|prompt)\s?(\d*)>", re.IGNORECASE)
"""What stands for a region in the questions of a benchmark."""


def find_annotations(source: Source, names: Sequence[str]) -> Path:
    """Returns the annotation file: `source.data` itself, or the first of the usual names inside that folder.

    Raises InputError that lists the names where there is none.
    """
    if source.data.is_file():
        return source.data
    if not source.data.is_dir():
        raise InputError(f"--data {source.data}: no such file or folder; expected {' or '.join(names)} or its folder")
    found = next((source.data / name for name in names if (source.data / name).is_file()), None)
    if found is None:
        raise InputError(f"--data {source.data}: the folder has no {' or '.join(names)}; give the annotation file")
    return found


def find_images(source: Source, usual: Iterable[Path], several: bool = False) -> ImageFinder:
    """Returns what finds the images: in the given folder, or the first usual one that exists.

    Args:
        source: May give the folder.
        usual: Folders that are taken otherwise.
        several: Takes all of these that exist.

    Raises:
        InputError: There is none.
    """
    folders = [source.images] if source.images is not None else list(usual)
    found = [folder for folder in folders if folder.is_dir()]
    if not found:
        searched = ", ".join(str(folder) for folder in folders)
        raise InputError(f"no folder of images: looked for {searched}; give --images DIR")
    return ImageFinder(found if several else found[:1])


def usable_boxes(
    source: Source, tables: CocoTables, path: Path
) -> Iterator[tuple[str, dict, dict, np.ndarray, FrameClues]]:
    """Yields every annotation that can be used: its place, its image, itself, its box float64[4] xyxy, and its frame.

    The others are left out of the source.
    """
    images: dict[Id, dict] = {}
    for position, image in enumerate(tables.images):
        try:
            images[tables.image_id(position)] = image
        except FilteredOutError:
            continue  # its boxes are on the first entry of it
        except InvalidAnnotationError as error:
            source.leave_out(f"{path}, images#{position}: {error}")
    with_unique_ids(tables.annotations)
    for position, annotation in enumerate(tables.annotations):
        where = f"{path}, annotations#{position}"
        try:
            found = images.get(tables.annotation_image(annotation))
            if found is None:
                raise InvalidAnnotationError("box on an image that is left out")
            clues = tables.clues(found, [annotation])
            told = clues.frame is None and source.rule.frame == "auto"  # else the size may be of the other frame
            yield where, found, annotation, np.asarray(annotation_box(annotation, clues.size if told else None)), clues
        except InvalidAnnotationError as error:
            source.leave_out(f"{where}: {error}")


def fields(record: Any, names: Sequence[str], where: str) -> list[Any]:
    """Returns the named fields of an object. Raises InputError naming the first that is missing."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with {', '.join(names)}, got {type(record).__name__}")
    for name in names:
        if name not in record:
            raise InputError(f"{where}: no {name!r}; it has {', '.join(map(str, record))}")
    return [record[name] for name in names]


def read_regions(record: dict, where: str) -> np.ndarray:
    """Returns the boxes of a record's regions, float64[N, 4] xyxy: around its masks, or as it gives them.

    Raises InputError where it has none of the usual fields, or one of another form; where: its place.
    """
    for name in MASK_FIELDS:
        if record.get(name):
            masks = record[name]
            several = isinstance(masks, list) and all(isinstance(one, dict | list) for one in masks)
            is_one = name == "segmentation" or not several
            return to_boxes([masks] if is_one else masks, f" in {where}")
    given = next((record[name] for name in BOX_FIELDS if name in record), None)
    if given is None:
        raise InputError(f"{where}: no region; expected one of {', '.join((*MASK_FIELDS, *BOX_FIELDS))}")
    try:
        return np.asarray(given, dtype=np.float64).reshape(-1, 4)
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected boxes [x1, y1, x2, y2], got {given!r:.80}") from None


def mention_regions(text: str, count: int, where: str) -> str:
    """Returns a question with `<region1>` and so on in place of its placeholders, numbered ones by their number from 0.

    Regions of a text without any are introduced before it. Raises InputError for a placeholder without its region.
    """
    found = PLACEHOLDER.findall(text)
    if count and not found:
        listed = ", ".join(f"<region{number}>" for number in range(1, count + 1))
        return f"The question is about {listed}.\n{text}"
    numbers = iter([int(number) if number else place for place, number in enumerate(found)])

    def mention(match: re.Match[str]) -> str:
        number = next(numbers)
        if number >= count:
            raise InputError(f"{where}: {match[0]} stands for region {number + 1}, but there are {count}")
        return f"<region{number + 1}>"

    return PLACEHOLDER.sub(mention, text)


def by_id(records: Any, where: str) -> dict[Any, dict]:
    """Returns the objects of a list by their `id`."""
    return {fields(record, ["id"], f"{where}#{row}")[0]: record for row, record in enumerate(records)}
