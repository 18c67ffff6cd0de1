"""From a list of data sets, as people write it, to the mixture that is read."""

from __future__ import annotations

import ast
import inspect
import json
import math
from pathlib import Path
from typing import Any

from gpt4roi.datasets.base import RegionDataset
from gpt4roi.datasets.coco_det import CocoDetection
from gpt4roi.datasets.det_llava import DetLlava
from gpt4roi.datasets.flickr30k import Flickr30k
from gpt4roi.datasets.mixture import Mixture
from gpt4roi.datasets.refcoco import RefCOCO, RefCOCOG, RefCOCOP
from gpt4roi.datasets.unified import UnifiedDataset
from gpt4roi.datasets.vcr import VCR, MultiVCR, SingleVCR
from gpt4roi.datasets.vg import VisualGenome
from gpt4roi.errors import InputError

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
"""What `type` in a list of data sets can say. The keys beside it are the reader's own parameters, and `ratio`."""


def build_mixture(config: str | Path | list[dict[str, Any]], seed: int = 0) -> Mixture:
    """Opens every data set of a list.

    config: the list itself; a .json file or .py file that holds it (a .py file is read as a literal, never executed);
        or a single file in the unified format (.jsonl, or a .json list of pictures).
    Raises InputError naming the entry for an unknown type or key and for a file that can't be read.
    """
    where, entries = ("the list", config) if isinstance(config, list) else (str(config), read_config(Path(config)))
    parts, ratios = [], []
    for position, entry in enumerate(entries):
        label = f"{where}, data set {position}"
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise InputError(f"{label}: expected an object with 'type', got {entry!r:.80}")
        keys = {key: value for key, value in entry.items() if key not in ("type", "ratio")}
        reader = READERS.get(entry["type"])
        if reader is None:
            raise InputError(f"{label}: unknown type {entry['type']!r}; known are {', '.join(sorted(READERS))}")
        accepted = list(inspect.signature(reader).parameters)
        unknown = sorted(set(keys) - set(accepted))
        if unknown:
            raise InputError(f"{label}: unknown keys {unknown} for {entry['type']}; accepted are {accepted} and ratio")
        if "ann_file" not in keys:
            raise InputError(f"{label}: ann_file is missing: the annotation file of the data set")
        ratios.append(_ratio(entry.get("ratio", 1.0), label))
        parts.append(reader(**keys))
    if not parts:
        raise InputError(f"{where}: names no data set")
    return Mixture(parts, ratios, seed)


def _ratio(value: Any, label: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{label}: ratio must be a number above 0, got {value!r}")
    return float(value)


def read_config(path: Path) -> list[dict[str, Any]]:
    """Returns the list of data sets that a file holds; a file of pictures becomes a list of itself."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; --dataset_config takes a list of data sets or a .jsonl of pictures")
    if path.suffix == ".jsonl":
        return [{"type": "unified", "ann_file": str(path)}]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; expected JSON") from None
    entries = _literal(path, text) if path.suffix == ".py" else _json(path, text)
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of data sets, got {type(entries).__name__}")
    if entries and isinstance(entries[0], dict) and "conversations" in entries[0]:
        return [{"type": "unified", "ann_file": str(path)}]
    return entries


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def _literal(path: Path, text: str) -> Any:
    """Returns the value of the only assignment in a Python file that holds literals alone."""
    try:
        statements = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
        if len(statements) != 1:
            raise InputError(f"{path}: expected one assignment of a list of data sets, got {len(statements)}")
        return ast.literal_eval(statements[0].value)
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: expected plain literals: {error}") from None
