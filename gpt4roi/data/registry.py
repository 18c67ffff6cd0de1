"""Dataset config: the registry of readers, and the mixture that a list of data sets stands for."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

from gpt4roi.data.base import RegionDataset
from gpt4roi.data.mixture import Mixture
from gpt4roi.data.readers.coco_det import CocoDetection
from gpt4roi.data.readers.det_llava import DetLlava
from gpt4roi.data.readers.flickr30k import Flickr30k
from gpt4roi.data.readers.refcoco import RefCOCO, RefCOCOG, RefCOCOP
from gpt4roi.data.readers.vcr import VCR, MultiVCR, SingleVCR
from gpt4roi.data.readers.vg import VisualGenome
from gpt4roi.data.unified import UnifiedDataset
from gpt4roi.errors import InputError
from gpt4roi.io.json_files import kind_of, read_bytes, read_json

READERS: dict[str, type[RegionDataset]] = {
    "coco_det": CocoDetection,
    "RefCOCO": RefCOCO,
    "RefCOCOP": RefCOCOP,
    "RefCOCOG": RefCOCOG,
    "flickr30k": Flickr30k,
    "VGDATA": VisualGenome,
    "det_llava": DetLlava,
    "vcr": VCR,
    "single_vcr": SingleVCR,
    "multi_vcr": MultiVCR,
    "unified": UnifiedDataset,
}
"""What `type` in a list of data sets can say. The keys beside it are the reader's own parameters, and SUBSET_KEYS."""

SUBSET_KEYS = ("ratio", "max_samples", "seed")
"""Which subset is taken: a part of a set or all of it several times, at most so many, chosen by a seed of its own."""

MAX_RATIO = 1000

_SAME_KEYS = {
    "ann_path": "ann_file",
    "vis_root": "img_prefix",
    "picture_pipeline": "image_pipeline",
    "pairs_per_visit": "pairs_per_epoch",
}
_SAME_FOLDERS = {"coco_det": "coco", "coco": "coco_det", "coco_imgs": "coco_all", "coco_all": "coco_imgs"}
"""The original spelt some keys and folders in two ways, and version 0.1 said picture and visit; all are understood."""
_PATHS = ("ann_file", "img_prefix", "det_pkl_path")


def build_mixture(config: str | Path | list[dict[str, Any]], seed: int = 0, where: str = "the list") -> Mixture:
    """Opens every data set of a list.

    Args:
        config: The list itself; a .json file or .py file that holds it (a .py file is read as a literal, never
            executed); or a single file in the unified format (.jsonl, or a .json list of images).
        seed: Of the subsets that are taken.
        where: What a list is called in messages; nothing is put before them where it is empty.

    Raises:
        InputError: An unknown type or key, or a file that can't be read; the message names the entry.
    """
    where, entries = (where, config) if isinstance(config, list) else (str(config), read_config(Path(config)))
    parts, subsets = [], []
    for position, entry in enumerate(entries):
        prefix = f"{where}, data set {position}: " if where else ""
        subsets.append([_subset_value(entry, key, prefix) for key in SUBSET_KEYS] if isinstance(entry, dict) else [])
        parts.append(open_reader(entry, prefix))
    if not parts:
        raise InputError(f"{where}: names no data set")
    ratios, caps, seeds = zip(*subsets, strict=True)
    return Mixture(parts, [1.0 if ratio is None else ratio for ratio in ratios], seed, caps, seeds)


def open_reader(entry: Any, where: str = "the data set: ") -> RegionDataset:
    """Opens one data set of a list; `where` begins every message. Raises InputError as build_mixture does."""
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise InputError(f"{where}expected an object with 'type', got {entry!r:.80}")
    reader = READERS.get(entry["type"])
    if reader is None:
        raise InputError(f"{where}unknown type {entry['type']!r:.80}; known are {', '.join(sorted(READERS))}")
    keys = _normalize_keys(entry, where)
    parameters = inspect.signature(reader).parameters
    unknown = sorted(set(keys) - set(parameters))
    if unknown:
        accepted = ", ".join([*parameters, *SUBSET_KEYS])
        raise InputError(f"{where}unknown keys {unknown!s:.200} for {entry['type']}; accepted are {accepted}")
    for name, parameter in parameters.items():
        if name not in keys and parameter.default is parameter.empty:
            raise InputError(f"{where}{name} is missing; {entry['type']} needs the path of that file")
        if name in keys:
            _check(keys[name], str(parameter.annotation), f"{where}{name}")
    return reader(**keys)


def _normalize_keys(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the reader's keys of an entry in one spelling, with folders in the spelling that is there."""
    keys: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "type" or key in SUBSET_KEYS:
            continue
        name = _SAME_KEYS.get(key, key)
        if key == "data_path":
            name = "ann_file" if str(value).endswith((".json", ".jsonl")) else "img_prefix"
        try:
            value = _existing_path(value) if name in _PATHS and isinstance(value, str) else value
        except (OSError, ValueError):  # too long, or with characters that no name has
            raise InputError(f"{where}{key} cannot be a path: {value!r:.80}") from None
        if keys.setdefault(name, value) != value:
            raise InputError(f"{where}{key} and another key for {name} differ: {value!r:.80}, {keys[name]!r:.80}")
    return keys


def _existing_path(path: str) -> str:
    """Returns a path with coco_det for coco, coco_imgs for coco_all or the other way, where only that folder exists.

    Raises OSError or ValueError where it can be no path.
    """
    if b"\x00" in path.encode():
        raise ValueError("a NUL in a path")
    parts = Path(path).parts
    for place, part in enumerate(parts):
        other = Path(*parts[:place], _SAME_FOLDERS.get(part, part))
        if not Path(*parts[: place + 1]).exists() and other.exists():
            return str(Path(other, *parts[place + 1 :]))
    return path


def _check(value: Any, annotation: str, label: str) -> None:
    """Raises InputError where a value is not of the kind that a reader's parameter says."""
    if annotation.startswith("str | Path") and not (
        isinstance(value, str | Path) or (value is None and "None" in annotation)
    ):
        raise InputError(f"{label} must be a path, got {value!r:.80}")
    if annotation == "bool" and not isinstance(value, bool):
        raise InputError(f"{label} must be true or false, got {value!r:.80}")
    if annotation == "int" and (type(value) is not int or value < 1):
        raise InputError(f"{label} must be a whole number above 0, got {value!r:.80}")


def _subset_value(entry: dict[str, Any], key: str, where: str) -> Any:
    value = entry.get(key)
    if value is None:
        return None
    if key == "ratio":
        if isinstance(value, bool) or not isinstance(value, int | float) or not value <= MAX_RATIO:
            raise InputError(f"{where}ratio must be a number above 0, at most {MAX_RATIO}, got {value!r:.40}")
        return float(value)
    if type(value) is not int or value < (1 if key == "max_samples" else 0):
        raise InputError(f"{where}{key} must be a whole number, got {value!r:.80}")
    return value


def read_config(path: Path) -> list[dict[str, Any]]:
    """Returns the list of data sets that a file holds; a file of images becomes a list of itself."""
    if not path.is_file() and path.parts[:2] == ("gpt4roi", "configs"):  # started outside a checkout
        path = Path(__file__).parents[2] / path
    if not path.is_file():
        raise InputError(f"{path}: no such file; --dataset_config takes a list of data sets or a .jsonl of images")
    if path.suffix == ".jsonl":
        return [{"type": "unified", "ann_file": str(path)}]
    entries = _read_literal(path) if path.suffix == ".py" else read_json(path)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of data sets, got {kind_of(entries)}")
    if entries and isinstance(entries[0], dict) and "conversations" in entries[0]:
        return [{"type": "unified", "ann_file": str(path)}]
    return entries


def _read_literal(path: Path) -> Any:
    """Returns the value of the only assignment in a Python file that holds literals alone."""
    try:
        statements = [node for node in ast.parse(read_bytes(path)).body if isinstance(node, ast.Assign)]
        if len(statements) != 1:
            raise InputError(f"{path}: expected one assignment of a list of data sets, got {len(statements)}")
        return ast.literal_eval(statements[0].value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: expected plain literals: {error}") from None
