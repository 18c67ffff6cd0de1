"""Validated texts of annotation files, and the record of annotations that are left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.constants import (
    IMAGE_END_TOKEN,
    IMAGE_PATCH_TOKEN,
    IMAGE_START_TOKEN,
    IMAGE_TOKEN,
    REGION_TOKEN,
)
from gpt4roi.data.columns import text_column
from gpt4roi.io.coco import InvalidAnnotationError
from gpt4roi.processing.mentions import MENTION

MAX_NAME_LENGTH = 255
"""Characters of a file's name with its folders, which are few in annotation files."""

_RESERVED = (IMAGE_TOKEN, REGION_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN)
PATH_MARK = "\ue000"
"""Stands for the file's path in what an index keeps, which is the same wherever the file lies."""


def require_text(value: Any, what: str) -> str:
    """Returns a text that a prompt can hold and that says something; raises InvalidAnnotationError naming `what`."""
    if not isinstance(value, str) or not value.strip():
        raise InvalidAnnotationError(f"{what} is missing or empty")
    return check_reserved_tokens(value, what)


def require_file_name(value: Any, what: str) -> str:
    """Returns a text that can be a file's name; raises InvalidAnnotationError naming `what`."""
    name = require_text(value, what)
    if len(name) > MAX_NAME_LENGTH or "\x00" in name:
        raise InvalidAnnotationError(f"{what} cannot be a file's name")
    return name


def check_reserved_tokens(value: str, what: str) -> str:
    """Returns the text; raises InvalidAnnotationError where it holds a token of the prompt, or is not Unicode."""
    if "<" in value and (any(token in value for token in _RESERVED) or MENTION.search(value)):
        raise InvalidAnnotationError(f"{what} holds a reserved token such as {REGION_TOKEN}")
    if not is_unicode(value):
        raise InvalidAnnotationError(f"{what} is not valid Unicode")
    return value


def alternating_texts(turns: Any, what: str) -> list[Any]:
    """Returns the values of LLaVA's turns, in complete pairs of human and gpt; raises InvalidAnnotationError."""
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        raise InvalidAnnotationError(f"{what} without question and answer")
    pairs = turns[: len(turns) // 2 * 2]
    if any(turn.get("from") != ("human", "gpt")[step % 2] for step, turn in enumerate(pairs)):
        raise InvalidAnnotationError(f"{what} in which human and gpt do not take turns")
    return [turn.get("value") for turn in pairs]


def is_unicode(text: str) -> bool:
    """False for halves of surrogate pairs, which JSON can hold and nothing can write."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


class Drops:
    """Collects what is left out while an index is made, and keeps it in the index's columns.

    Args:
        sections: (number of the file, its section) that positions count in; a section of "" counts lines.
    """

    def __init__(self, sections: Sequence[tuple[int, str]]) -> None:
        self.sections = list(sections)
        self._reasons: dict[str, int] = {}
        self._faults: list[bool] = []
        self._rows: list[tuple[int, int, int, str]] = []

    def add(self, error: InvalidAnnotationError, position: int, section: int = 0, path: Path | None = None) -> None:
        """Notes one drop at a position of a section; path: the file, where the error's message begins with it."""
        reason = error.reason
        if reason not in self._reasons:
            self._reasons[reason] = len(self._reasons)
            self._faults.append(error.fault)
        detail = str(error) if error.fault and str(error) != reason else ""
        if path is not None:
            detail = detail.replace(str(path), PATH_MARK)
        self._rows.append((section, position, self._reasons[reason], detail))

    def columns(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the arrays and metadata that IndexedDataset reads."""
        rows = sorted(self._rows)
        arrays = {"drops": np.asarray([row[:3] for row in rows], dtype=np.int64).reshape(-1, 3)}
        if any(row[3] for row in rows):
            arrays |= text_column("drop_detail", [row[3] for row in rows])
        metadata = {"drop_reasons": list(self._reasons), "drop_faults": self._faults, "drop_sections": self.sections}
        return arrays, metadata
