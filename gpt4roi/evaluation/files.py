"""Reads the official files of benchmarks; what is wrong with one is said in a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.items import Source


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
        looked = ", ".join(str(folder) for folder in folders)
        raise InputError(f"no folder of images: looked for {looked}; give --images DIR")
    return found


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises InputError naming file and place where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON: {error}") from None


def read_json_lines(path: Path) -> list[Any]:
    """Reads a file of one JSON value a line. Raises InputError naming file and line."""
    values = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    values.append(_parse(line, f"{path}#{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return values


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: no JSON: {error}") from None


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
        x, y, width, height = (float(value) for value in box)
    except (TypeError, ValueError):
        raise InputError(f"{where}: expected a box [x, y, width, height], got {box!r:.60}") from None
    if not (np.isfinite([x, y, width, height]).all() and width > 0 and height > 0):
        raise InputError(f"{where}: the box [{x:g}, {y:g}, {width:g}, {height:g}] has no area")
    return np.asarray([x, y, x + width, y + height])


def by_id(records: Any, where: str) -> dict[Any, dict]:
    """Returns the objects of a list by their `id`."""
    return {fields(record, ["id"], f"{where}#{row}")[0]: record for row, record in enumerate(records)}
