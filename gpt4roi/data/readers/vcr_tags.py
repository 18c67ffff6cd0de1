"""Numbers in VCR's texts: which of them mean objects, and how those are written.

VCR writes objects as numbers from 1 (`question_orig`), and tells in a list of words (`question`) which they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from gpt4roi.data.annotations import UnusableError

_TAG = re.compile("\ue000(\\d+)\ue001")
_DIGITS = re.compile(r"\d+")
_UNIT = re.compile(
    r"\s*(?:%|percent|o'?clock|[ap]\.?m\b|(?:second|minute|hour|day|week|month|year|dollar|cent|mile|meter|pound|degree|time)s?\b"
    r"|feet|foot|inch|inches)",
    re.IGNORECASE,
)
"""What follows a number that counts something."""


def mark(text: str, words: Any, num_objects: int) -> str:
    """Returns a text in which each number that means an object stands between two private characters.

    words: VCR's list for the text, objects as lists of numbers from 0; where it is missing or says something else than
    the text, a whole number of an object (1 to num_objects) is taken for one, unless a unit follows it.
    Raises UnusableError where the words name an object that is not there.
    """
    if "\ue000" in text:
        raise UnusableError("text with a character that is reserved here (U+E000)")
    kinds = _told(words)
    runs = [match.group() for match in _DIGITS.finditer(text)]
    by_words = kinds is not None and [run for run, _ in kinds] == runs
    if by_words and any(meant and not 1 <= int(run) <= num_objects for run, meant in kinds):
        raise UnusableError("text that means an object which is not listed")
    pieces, end = [], 0
    for place, match in enumerate(_DIGITS.finditer(text)):
        meant = kinds[place][1] if by_words else _means_object(text, match, num_objects)
        if meant:
            pieces += [text[end : match.start()], f"\ue000{int(match.group())}\ue001"]
            end = match.end()
    return "".join(pieces) + text[end:]


def mark_as_released(text: str) -> str:
    """Marks every whole number, as the original's replacement did."""
    return re.sub(r"\b\d{1,4}\b", lambda match: f"\ue000{int(match.group())}\ue001", text)


def tags(marked: str) -> list[int]:
    """Returns the objects that a marked text means, in order, as often as it does."""
    return [int(number) for number in _TAG.findall(marked)]


def write(marked: str, name: Callable[[int], str]) -> str:
    """Returns a marked text with each object written by `name`."""
    return _TAG.sub(lambda match: name(int(match.group(1))), marked)


def digits(marked: str) -> list[str]:
    """Returns every run of digits of a text, whether it means an object or not."""
    return _DIGITS.findall(marked)


def unmarked(marked: str) -> str:
    """Returns the text as VCR has it."""
    return write(marked, str)


def _told(words: Any) -> list[tuple[str, bool]] | None:
    """Returns each run of digits of a list of words, and whether it means an object; None where it is no such list."""
    if not isinstance(words, list):
        return None
    runs: list[tuple[str, bool]] = []
    for word in words:
        if isinstance(word, str):
            runs += [(run, False) for run in _DIGITS.findall(word)]
        elif isinstance(word, list) and all(type(number) is int for number in word):
            runs += [(str(number + 1), True) for number in word]
        else:
            return None
    return runs


def _means_object(text: str, match: re.Match[str], num_objects: int) -> bool:
    start, end = match.span()
    beside = text[start - 1 : start] + text[end : end + 1]
    whole = not any(character.isalnum() or character in "_$" for character in beside)
    short = len(match.group()) <= 4  # no image has more objects, and int() has its limits
    return whole and short and 1 <= int(match.group()) <= num_objects and not _UNIT.match(text, end)
