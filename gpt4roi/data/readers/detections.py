"""Detected boxes of many images: EVA's pickle, opened without running anything, or a converted file."""

from __future__ import annotations

import io
import pickle
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
    entries = _plain(path, data)
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
    if not isinstance(boxes, _Array) or not isinstance(labels, _Array):
        raise InvalidAnnotationError("detections whose pred_bboxes or labels are not arrays")
    boxes, labels = boxes.array(), labels.array()
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
        whole = len(made.first) == len(made.names) + 1 and boxes.shape == (made.first[-1], 5) == (len(labels), 5)
        if not whole or boxes.dtype != np.float32 or not (np.diff(made.first) >= 0).all():
            raise ValueError("its arrays do not fit together")
        if labels.dtype.kind not in "iu" or ((labels < 0) | (labels >= NUM_LABELS)).any():
            raise ValueError(f"it has labels that are not in 0 to {NUM_LABELS - 1}")
        if made.first[0] != 0 or not np.isfinite(boxes).all():
            raise ValueError("its numbers are no boxes")
        return made
    except Exception as error:  # zipfile and numpy raise many kinds for damaged files
        raise InputError(f"{path}: not a file of converted detections: {error}; convert it again") from None


class _DType:
    """Stands for numpy.dtype: remembers what an array of numbers is made of."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def dtype(self) -> np.dtype:
        dtype = np.dtype(self.code)
        if dtype.kind not in "iufb":
            raise InvalidAnnotationError("array of something else than numbers")
        return dtype if self.order == "|" else dtype.newbyteorder(self.order)


class _Array:
    """Stands for numpy.ndarray: takes shape, kind and bytes, and makes the array itself."""

    def __init__(self, *_: Any) -> None:
        self.state: tuple = ((0,), _DType("f4"), False, b"")

    def __setstate__(self, state: tuple) -> None:
        self.state = tuple(state)[-4:]

    def array(self) -> np.ndarray:
        """Returns the numbers; raises InvalidAnnotationError where bytes, kind and shape do not fit together."""
        try:
            shape, dtype, fortran, data = self.state
            return np.frombuffer(data, dtype.dtype()).reshape(shape, order="F" if fortran else "C")
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise InvalidAnnotationError("array that is not whole") from None


def _from_buffer(data: bytes, dtype: _DType, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.__setstate__((shape, dtype, order == "F", data))
    return array


def _encode(characters: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}")
    return characters.encode("latin1")


def _no_bytes(*content: Any) -> bytes:
    if content:
        raise pickle.UnpicklingError("it makes bytes of something else")
    return b""


_ADMITTED = {
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}
"""Names a pickle of arrays holds, and what of ours stands for them: no function of a library is called."""


class _PlainUnpickler(pickle._Unpickler):
    """Opens lists, dictionaries, numbers, texts and arrays of numbers.

    The one written in Python: the other sets memory aside for any number that a damaged file names.
    """

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module.replace("numpy._core", "numpy.core"), name))
        if admitted is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and only arrays of numbers are admitted")
        return admitted


def _plain(path: Path, data: bytes) -> Any:
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # damaged pickles raise every kind of error
        told = str(error) or type(error).__name__
        raise InputError(f"{path}: not a pickle of detections that can be opened safely: {told}") from None
