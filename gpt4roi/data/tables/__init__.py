"""Class names of COCO and LVIS, from data files that say where they come from."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent


@lru_cache
def _names(file: str) -> dict[int, str]:
    categories = json.loads((_FOLDER / file).read_text(encoding="utf-8"))["categories"]
    return {category["id"]: category["name"] for category in categories}


def coco_names() -> dict[int, str]:
    """Returns the 80 object categories of COCO 2017, id -> name, in the order of the ids."""
    return _names("coco_categories.json")


def lvis_names() -> tuple[str, ...]:
    """Returns the 1203 category names of LVIS v1 in the order of their ids, so that label i is category i + 1."""
    names = _names("lvis_v1_categories.json")
    return tuple(names[identity] for identity in sorted(names))


def lvis_names_as_released() -> tuple[str, ...]:
    """Returns the names the released weights were shown: two ran together at label 938, and all later ones moved up."""
    names, joined = lvis_names(), 938
    return (*names[:joined], names[joined] + names[joined + 1], *names[joined + 2 :], "background")
