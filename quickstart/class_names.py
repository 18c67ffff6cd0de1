"""Everyday names of the 1000 ImageNet classes: the first word that WordNet has for each, or a better one of our own."""

from __future__ import annotations

import json
from pathlib import Path

from timm.data import ImageNetInfo

BETTER_NAMES = Path(__file__).with_name("class_names.json")
"""Class number -> name, where WordNet's first word is a rare one, a plural or no countable thing."""


def class_names() -> list[str]:
    """Returns a name with its article for each class, in the order of the classifier: "a lighthouse", "a cat"."""
    better = {int(number): name for number, name in json.loads(BETTER_NAMES.read_text(encoding="utf-8")).items()}
    descriptions = ImageNetInfo().label_descriptions()
    return [better.get(number) or _with_article(text.split(",")[0]) for number, text in enumerate(descriptions)]


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
