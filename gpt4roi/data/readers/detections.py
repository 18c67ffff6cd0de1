"""Reader of detections of many images: EVA's pickle, opened without running anything, or a converted .npz."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.annotations import Drops, require_text
from gpt4roi.data.columns import make_offsets
from gpt4roi.errors import InputError
from gpt4roi.io.coco import InvalidAnnotationError
from gpt4roi.io.json_files import kind_of
from gpt4roi.io.unpickling import PickledArray, load_arrays

NUM_LABELS = 1203


@dataclass
class Detections:
    """Boxes of many images.

    Attributes:
        names: File names.
        first: int64[N + 1]; the boxes of image i are first[i] to first[i + 1] - 1.
        boxes: float32[M, 5]: x1, y1, x2, y2 in fractions of the image, and the score.
        labels: int64[M], LVIS id - 1.
    """

    names: list[str]
    first: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    def save(self, path: Path) -> None:
        """Writes a .npz file, which opens without any pickle."""
        with path.open("wb") as file:
            np.savez_compressed(
                file, names=np.asarray(self.names), first=self.first, boxes=self.boxes, labels=self.labels
            )


def read_detections(path: Path, data: bytes, drops: Drops | None = None, section: int = 0) -> Detections:
    """Reads the content of a .npz file that Detections.save wrote, or else of a pickle.

    The pickle holds a list of {filename, pred_bboxes: float[N, 5], labels: int[N]}; arrays of numbers and plain
    containers are admitted, and nothing else is ever called or imported. What cannot be used of it goes to `drops`.
    Raises InputError where it holds anything else.
    """
    if data[:2] == b"PK":
        return _read_npz(path, data)
    try:
        entries = load_arrays(data)
    except Exception as error:  # damaged pickles raise every kind of error
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: not a pickle of detections that can be opened safely: {reason}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path}: expected a list of detections, one entry an image, got {kind_of(entries)}")
    made: list[tuple[str, np.ndarray, np.ndarray]] = []
    for position, entry in enumerate(entries):
        try:
            made.append(_entry(entry))
        except InvalidAnnotationError as error:
            if drops is None:
                raise InputError(f"{path}#entries[{position}]: {error}") from None
            drops.add(error, position, section)
    return _joined(made)


def _joined(made: Sequence[tuple[str, np.ndarray, np.ndarray]]) -> Detections:
    return Detections(
        names=[name for name, _, _ in made],
        first=make_offsets(len(labels) for _, _, labels in made),
        boxes=np.concatenate([np.zeros((0, 5), dtype=np.float32), *(boxes for _, boxes, _ in made)]),
        labels=np.concatenate([np.zeros(0, dtype=np.int64), *(labels for _, _, labels in made)]),
    )


def _entry(entry: Any) -> tuple[str, np.ndarray, np.ndarray]:
    if not isinstance(entry, dict):
        raise InvalidAnnotationError("entry of detections that is not an object")
    name = require_text(entry.get("filename"), "filename of an entry of detections")
    boxes, labels = entry.get("pred_bboxes"), entry.get("labels")
    if not isinstance(boxes, PickledArray) or not isinstance(labels, PickledArray):
        raise InvalidAnnotationError("detections whose pred_bboxes or labels are not arrays")
    try:
        boxes, labels = boxes.array(), labels.array()
    except InputError as error:
        raise InvalidAnnotationError(str(error)) from None
    if boxes.size == 0:
        boxes, labels = boxes.reshape(0, 5), labels.reshape(-1)[:0].astype(np.int64)
    if boxes.ndim != 2 or boxes.shape[1] != 5 or labels.shape != boxes.shape[:1] or labels.dtype.kind not in "iu":
        raise InvalidAnnotationError("detections that are not float[N, 5] with int[N] labels")
    with np.errstate(over="ignore"):
        boxes = boxes.astype(np.float32)
    if not np.isfinite(boxes).all() or (np.abs(boxes) > 100).any():
        raise InvalidAnnotationError("detections with numbers that are no fractions of an image")
    if ((labels < 0) | (labels >= NUM_LABELS)).any():
        raise InvalidAnnotationError(f"detections with a label that is not in 0 to {NUM_LABELS - 1}")
    return name, boxes, labels.astype(np.int64)


def _read_npz(path: Path, data: bytes) -> Detections:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            names, first, boxes, labels = (arrays[key] for key in ("names", "first", "boxes", "labels"))
        made = Detections([str(name) for name in names], first.astype(np.int64), boxes, labels)
        fits = len(made.first) == len(made.names) + 1 and boxes.shape == (made.first[-1], 5) == (len(labels), 5)
        if not fits or boxes.dtype != np.float32 or not (np.diff(made.first) >= 0).all():
            raise ValueError("its arrays do not fit together")
        if labels.dtype.kind not in "iu" or ((labels < 0) | (labels >= NUM_LABELS)).any():
            raise ValueError(f"it has labels that are not in 0 to {NUM_LABELS - 1}")
        if made.first[0] != 0 or not np.isfinite(boxes).all():
            raise ValueError("its numbers are no boxes")
        return made
    except Exception as error:  # zipfile and numpy raise many kinds for damaged files
        raise InputError(f"{path}: not a file of converted detections: {error}; convert it again") from None
