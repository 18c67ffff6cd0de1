"""Annotation files as they come from outside: read without trust, every fault told with its place."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
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
from gpt4roi.data.base import Drop
from gpt4roi.errors import InputError
from gpt4roi.processing.mentions import MENTION

LARGEST = 1e7
"""No pixel of an image lies further out; larger numbers are faults, and would overflow later."""

LONGEST_NAME = 255
"""Characters of a file's name with its folders, which are few in annotation files."""

_RESERVED = (IMAGE_TOKEN, REGION_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN, IMAGE_END_TOKEN)


class UnusableError(Exception):
    """One image or region cannot be used; the text is the reason it is counted under.

    fault: whether it is wrong in itself; else a rule of the data set leaves it out.
    """

    fault = True


class LeftOutError(UnusableError):
    """A rule of the data set leaves out one image or region."""

    fault = False


def read_bytes(path: Path) -> bytes:
    """Reads a whole annotation file; raises InputError where there is none or it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the annotation file of a data set") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the annotation file inside it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def parse_json(path: Path, data: bytes) -> Any:
    """Parses JSON; raises InputError with line and column, or the byte, where it is not valid."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; expected JSON") from None
    except RecursionError:
        raise InputError(f"{path}: not usable JSON: nested too deeply, from the first byte on") from None
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        raise InputError(f"{path}: not valid JSON: {error}; is the file whole?") from None


def parse_lines(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (line from 1, value) of a file with one JSON value a line; for a line that is none, its UnusableError."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(path, line)
            except InputError:
                yield number, UnusableError("line that is not valid JSON")


def listed(path: Path, value: Any, key: str, what: str) -> list:
    """Returns the list under a key of an object; raises InputError where there is none. what: the kind of file."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object with {key!r} ({what}), got {kind_of(value)}")
    if not isinstance(value.get(key), list):
        raise InputError(f"{path}: expected a list under {key!r} ({what}), got {kind_of(value.get(key))}")
    return value[key]


def kind_of(value: Any) -> str:
    """Names a JSON value's kind for messages, with its beginning where it is short."""
    if value is None:
        return "nothing"
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), type(value).__name__)


def numbers(value: Any, count: int) -> list[float]:
    """Returns `count` finite numbers; raises UnusableError."""
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise UnusableError(f"box that is not {count} numbers")
    return [number(one, "box with a value that is not a number of an image's size") for one in value]


def number(value: Any, reason: str) -> float:
    """Returns a finite number of at most LARGEST; raises UnusableError for the reason."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise UnusableError(reason)
    return float(value)


def length(value: Any) -> int:
    """Returns an image's width or height, which some files write as text; raises UnusableError."""
    reason = "image whose width or height is not a number above 0"
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UnusableError(reason) from None
    pixels = int(number(value, reason))
    if pixels < 1:
        raise UnusableError(reason)
    return pixels


def text(value: Any, what: str) -> str:
    """Returns a text that a prompt can hold and that says something; raises UnusableError. what: its name there."""
    if not isinstance(value, str) or not value.strip():
        raise UnusableError(f"{what} is missing or empty")
    return harmless(value, what)


def file_name(value: Any, what: str) -> str:
    """Returns a text that can be a file's name; raises UnusableError. what: its name there."""
    name = text(value, what)
    if len(name) > LONGEST_NAME or "\x00" in name:
        raise UnusableError(f"{what} cannot be a file's name")
    return name


def harmless(value: str, what: str) -> str:
    """Returns the text; raises UnusableError where it holds a token that only we may write, or is not Unicode."""
    if "<" in value and (any(token in value for token in _RESERVED) or MENTION.search(value)):
        raise UnusableError(f"{what} holds a reserved token such as {REGION_TOKEN}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UnusableError(f"{what} is not valid Unicode") from None
    return value


class Drops:
    """Collects what is left out while an index is made, and keeps it in the index's columns.

    sections: (number of the file, its section) that positions count in; a section of "" counts lines.
    """

    def __init__(self, sections: Sequence[tuple[int, str]]) -> None:
        self.sections = list(sections)
        self._reasons: dict[str, int] = {}
        self._faults: list[bool] = []
        self._rows: list[tuple[int, int, int]] = []

    def add(self, error: UnusableError, position: int, section: int = 0) -> None:
        """Notes one drop; section: its number in `sections`."""
        reason = str(error)
        if reason not in self._reasons:
            self._reasons[reason] = len(self._reasons)
            self._faults.append(error.fault)
        self._rows.append((section, position, self._reasons[reason]))

    def columns(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the arrays and facts that `counted` and `listed_drops` read."""
        rows = np.asarray(sorted(self._rows), dtype=np.int64).reshape(-1, 3)
        facts = {"drop_reasons": list(self._reasons), "drop_faults": self._faults, "drop_sections": self.sections}
        return {"drops": rows}, facts


def counted(rows: np.ndarray, facts: dict[str, Any]) -> Counter[str]:
    """Returns reason -> number of drops."""
    reasons = facts["drop_reasons"]
    counts = np.bincount(rows[:, 2], minlength=len(reasons)).tolist() if len(rows) else []
    return Counter(dict(zip(reasons, counts, strict=False)))


def listed_drops(rows: np.ndarray, facts: dict[str, Any], files: Sequence[Path]) -> Iterator[Drop]:
    """Yields every drop with its place."""
    for section, position, number in rows:
        reason, where = facts["drop_reasons"][number], place(files, facts["drop_sections"][section], int(position))
        yield Drop(reason, where, f"{where}: {reason}" if facts["drop_faults"][number] else "")


def place(files: Sequence[Path], section: Sequence, position: int) -> str:
    """Writes a place in a file: `file#section[position]`, or `file#position` in files of lines."""
    file, name = section
    return f"{files[file]}#{name}[{position}]" if name else f"{files[file]}#{position}"


def summary(dropped: Counter[str]) -> str:
    """Says in one line what was dropped."""
    return "; ".join(f"{reason}: {count}" for reason, count in dropped.most_common()) or "nothing was dropped"
