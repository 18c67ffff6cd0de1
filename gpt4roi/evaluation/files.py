"""Benchmark files: where annotations and images lie, and fields, boxes and ids of their records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.items import Source
from gpt4roi.io.coco import InvalidAnnotationError, parse_floats


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


def find_images(source: Source, usual: Iterable[Path]) -> Path:
    """Returns the images' folder: the given one, or the first usual one that exists. Raises InputError for none."""
    folders = [source.images] if source.images is not None else list(usual)
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        searched = ", ".join(str(folder) for folder in folders)
        raise InputError(f"no folder of images: looked for {searched}; give --images DIR")
    return found


def fields(record: Any, names: Sequence[str], where: str) -> list[Any]:
    """Returns the named fields of an object. Raises InputError naming the first that is missing."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with {', '.join(names)}, got {type(record).__name__}")
    for name in names:
        if name not in record:
            raise InputError(f"{where}: no {name!r}; it has {', '.join(map(str, record))}")
    return [record[name] for name in names]


def box_of_xywh(box: Any, where: str) -> np.ndarray:
    """Returns float64[4] xyxy in pixels of a COCO box. Raises InputError where it is none or has no area."""
    try:
        x, y, width, height = parse_floats(box, 4)
    except InvalidAnnotationError:
        raise InputError(f"{where}: expected a box [x, y, width, height], got {box!r:.60}") from None
    if not (width > 0 and height > 0):
        raise InputError(f"{where}: the box [{x:g}, {y:g}, {width:g}, {height:g}] has no area")
    return np.asarray([x, y, x + width, y + height])


def by_id(records: Any, where: str) -> dict[Any, dict]:
    """Returns the objects of a list by their `id`."""
    return {fields(record, ["id"], f"{where}#{row}")[0]: record for row, record in enumerate(records)}
