"""Region mentions: `<region1>` by number or bare `<bbox>` in order, checked and rewritten as `region1 <bbox>`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gpt4roi.constants import ADDED_TOKENS, IMAGE_TOKEN, REGION_TOKEN
from gpt4roi.errors import InputError

MENTION = re.compile(r"<region(\d+)>")
MAX_DIGITS = 9
"""Digits of a region's number at most; no image has more boxes, and Python reads no more than 4300 of them."""
_NAMED = re.compile(rf"<region(\d{{1,{MAX_DIGITS}}})>|\bregion ?(\d{{1,{MAX_DIGITS}}})\b", re.IGNORECASE)
_PLACEHOLDER = re.compile("|".join(re.escape(token) for token in (IMAGE_TOKEN, *ADDED_TOKENS)))


def region_numbers(text: str) -> list[int]:
    """Returns the numbers of the regions that a text mentions, in order and as often as it does.

    Raises InputError for a number of more than MAX_DIGITS digits.
    """
    found = MENTION.findall(text)
    long = next((digits for digits in found if len(digits) > MAX_DIGITS), None)
    if long is not None:
        raise InputError(
            f"<region{long[:MAX_DIGITS]}…> has a number of {len(long)} digits; regions are numbered from 1, "
            f"with at most {MAX_DIGITS} digits"
        )
    return [int(digits) for digits in found]


def number_boxes(texts: Sequence[str], num_boxes: int, where: str = "") -> list[list[int]]:
    """Checks the mentions of a complete sample and returns, per text, the 0-based box of each bare `<bbox>`.

    Raises InputError for a region without a box, for another number of bare `<bbox>` than boxes, and for a mixture.
    """
    try:
        mentioned = sorted({number for text in texts for number in region_numbers(text)})
    except InputError as error:
        raise InputError(f"{error}{where}") from None
    bare = [text.count(REGION_TOKEN) for text in texts]
    if mentioned and any(bare):
        raise InputError(
            f"a sample refers to boxes by <regionN> or by bare <bbox>, got both{where}; write one way throughout"
        )
    if mentioned and (mentioned[0] < 1 or mentioned[-1] > num_boxes):
        wrong = mentioned[0] if mentioned[0] < 1 else mentioned[-1]
        raise InputError(f"<region{wrong}> but {_boxes(num_boxes)}{where}; regions are numbered from 1")
    if any(bare) and sum(bare) != num_boxes:
        raise InputError(f"{sum(bare)} <bbox> in the text but {_boxes(num_boxes)}{where}; each box needs one <bbox>")
    ends = [sum(bare[: index + 1]) for index in range(len(bare))]
    return [list(range(end - count, end)) for end, count in zip(ends, bare, strict=True)]


def _boxes(number: int) -> str:
    return f"{number} box" if number == 1 else f"{number} boxes"


def write_mentions(texts: Sequence[str], bare_boxes: Sequence[Sequence[int]]) -> tuple[list[str], list[int]]:
    """Writes the references of one conversation as the model reads them.

    The first mention of a region becomes `region1 <bbox>`, later ones `region1`. bare_boxes: as of number_boxes.
    Returns the texts and, for each `<bbox>` in them in order, its 0-based box.
    """
    boxes: list[int] = []
    introduced: set[int] = set()
    written = []
    for text, bare in zip(texts, bare_boxes, strict=True):
        boxes.extend(bare)
        parts = MENTION.split(text)  # text, number, text, number, ..., text
        for place in range(1, len(parts), 2):
            number = int(parts[place])
            parts[place] = f"region{number}" if number in introduced else f"region{number} {REGION_TOKEN}"
            boxes.extend([] if number in introduced else [number - 1])
            introduced.add(number)
        written.append("".join(parts))
    return written, boxes


def as_plain_text(answer: str) -> str:
    """Returns an answer of a model as it may stand in a later prompt: with no mention of a box and no placeholder.

    A model may write `<region7>` or `<image>` of its own accord; neither brings a box or an image with it.
    """
    return _PLACEHOLDER.sub(lambda found: found.group()[1:-1], MENTION.sub(r"region\1", answer))


def name_regions(numbers: Sequence[int]) -> str:
    """Returns the answer that names regions, `region2, region5`; `none` without any. named_regions reads it."""
    return ", ".join(f"region{number}" for number in sorted(set(numbers))) or "none"


def named_regions(answer: str, num_boxes: int) -> tuple[int, ...]:
    """Returns the numbers of the regions that an answer names, each once, in order: `region2, region5` is (2, 5).

    Numbers beyond the num_boxes that there are do not count.
    """
    found = (int(first or second) for first, second in _NAMED.findall(answer))
    return tuple(dict.fromkeys(number for number in found if 1 <= number <= num_boxes))
