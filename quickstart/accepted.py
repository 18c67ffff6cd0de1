"""Accepted names: whether an answer names a thing, or at least one of its category (any bird for a bird)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from quickstart.class_names import class_names

CATEGORIES = Path(__file__).with_name("categories.json")
"""Category -> words; numbers, or first and last numbers, of ImageNet classes; folders and captions of stamps."""

_ARTICLES = ("a", "an", "the")


@cache
def _categories() -> dict[str, dict]:
    return json.loads(CATEGORIES.read_text(encoding="utf-8"))


def names_of_category(category: str) -> frozenset[str]:
    """Returns the words of a category, the names of its classes and the captions that it lists."""
    entry, names = _categories()[category], class_names()
    spans = [(one, one) if isinstance(one, int) else one for one in entry.get("classes", ())]
    classes = {names[number] for first, last in spans for number in range(first, last + 1)}
    return frozenset({*entry["words"], *entry.get("captions", ()), *classes})


def category_of_stamp(name: str, caption: str) -> str | None:
    """Returns the category of a stamp by its caption or else by its folder; None where it has none."""
    by_caption = [category for category, entry in _categories().items() if caption in entry.get("captions", ())]
    folder = name.rsplit("/", 1)[0]
    by_folder = [category for category, entry in _categories().items() if folder in entry.get("folders", ())]
    return next(iter([*by_caption, *by_folder]), None)


def is_accepted(answer: str, names: Iterable[str]) -> bool:
    """Tells whether an answer contains one of the names, word by word; case, punctuation and articles do not count."""
    said = f" {_plain(answer)} "
    return any(f" {_plain(name)} " in said for name in names)


def _plain(text: str) -> str:
    return " ".join(word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in _ARTICLES)
