"""What the readers of the original's data sets share: an index of their files, and the images' places."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.annotations import Drops, counted, listed_drops, place, summary
from gpt4roi.data.base import Drop, RegionDataset
from gpt4roi.data.columns import Columns, text_column
from gpt4roi.data.index import Recipe, open_index
from gpt4roi.errors import InputError


class IndexedDataset(RegionDataset):
    """A reader whose annotations lie in a memory-mapped index.

    A subclass says in `version` when its index changes its meaning, and makes the index in `build`; `columns` then
    holds it. Column `position` is each item's place in section 0.
    """

    version = 1
    what = "image"
    """What an item is called in messages."""

    def __init__(self, files: Sequence[str | Path], img_prefix: str | Path, options: str = "") -> None:
        self.files = tuple(Path(file) for file in files)
        self.img_prefix = str(img_prefix)
        self.name = str(files[0])
        self.columns = open_index(self.files, Recipe(type(self).__name__, self.version, options), self.build)
        self.dropped = self.count_drops()
        if not len(self):
            first = next(self.drops(), None)
            at = f"; the first: {first.detail or first.where}" if first else ""
            raise InputError(f"{self.name}: no {self.what} can be used; left out: {summary(self.dropped)}{at}")

    def build(self, contents: list[bytes]) -> Columns:
        """Makes the index of what the files hold."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.columns["position"])

    def count_drops(self) -> Counter[str]:
        """Counts what was dropped, by its reason."""
        return counted(self.columns["drops"], self.columns.facts)

    def drops(self) -> Iterator[Drop]:
        return listed_drops(self.columns["drops"], self.columns.facts, self.files)

    def faults(self) -> tuple[int, int]:
        rows, is_fault = self.columns["drops"], np.asarray(self.columns.facts["drop_faults"], dtype=bool)
        wrong = int(is_fault[rows[:, 2]].sum()) if len(rows) else 0
        return wrong, len(self) + len(self.columns.get("boxes", ())) + len(rows)

    def place(self, position: int, section: int = 0) -> str:
        """Returns the place of something in the files, as `Drop.where`."""
        return place(self.files, self.columns.facts["drop_sections"][section], position)

    def image(self, index: int, column: str = "image") -> str:
        """Returns the path of an item's image."""
        return os.path.join(self.img_prefix, self.columns.text(column, index))


def make_columns(arrays: dict[str, np.ndarray], texts: dict[str, Sequence[str]], drops: Drops, **facts: Any) -> Columns:
    """Joins arrays, columns of texts and the drops to an index."""
    dropped, drop_facts = drops.columns()
    for name, column in texts.items():
        arrays = arrays | text_column(name, column)
    return Columns(arrays | dropped, facts | drop_facts)
