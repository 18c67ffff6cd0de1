"""The one-line-a-picture format: everybody's own boxes, LLaVA's files as they are, and the embedded data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.datasets.base import Drop, Item, RegionDataset
from gpt4roi.datasets.unified_object import BadObjectError, check_object, texts_of
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn

logger = logging.getLogger(__name__)

NO_CONVERSATION = "no conversation"
_TOLD = 5


class UnifiedDataset(RegionDataset):
    """Reads a JSON-lines file, or a JSON list, of pictures with boxes and conversations.

    ann_file: one object a picture: `image` (absent for text alone), `boxes` (pixels, xyxy) or `masks` (run lengths or
        polygons, which become their bounding boxes), `conversations` (`from`: human or gpt; `value`: text with
        `<region1>` for box 1), `independent` (every question stands alone).
    img_prefix: where `image` is looked up; the file's own folder by default.
    pairs_per_visit: how many question-answer pairs of each task one visit draws, without replacement, where the
        object has a parallel list `tasks`; all pairs by default. Only for `independent` objects.
    picture_pipeline: see RegionSample; an object may have its own.
    An object that cannot be used is left out, counted in `dropped` and listed by `drops()`. n_masks: how many boxes
    come from masks. Raises InputError for a file that is not of this form at all, or has no object left.
    """

    def __init__(
        self,
        ann_file: str | Path,
        img_prefix: str | Path | None = None,
        pairs_per_visit: Mapping[str, int] | None = None,
        picture_pipeline: str = "bicubic",
    ) -> None:
        super().__init__()
        self.path = Path(ann_file)
        self.name = str(ann_file)
        self.files = (self.path,)
        self.img_prefix = Path(img_prefix) if img_prefix else self.path.parent
        if not isinstance(pairs_per_visit, Mapping | None):
            raise InputError(f"{ann_file}: pairs_per_visit must be task -> number, got {pairs_per_visit!r}")
        self.pairs_per_visit = dict(pairs_per_visit or {})
        self.picture_pipeline = picture_pipeline
        self.items: list[dict[str, Any]] = []
        self._drops: list[Drop] = []
        for source, item in read_entries(self.path):
            self._add(source, item)
        self.n_masks = sum(item["n_masks"] for item in self.items)
        self.dropped.update(drop.reason for drop in self._drops)
        self._tell()

    def _add(self, source: str, item: Any) -> None:
        if isinstance(item, BadObjectError):
            self._drops.append(Drop(item.kind, source, str(item)))
        elif isinstance(item, dict) and not item.get("conversations"):
            self._drops.append(Drop(NO_CONVERSATION, source))
        else:
            try:
                checked = check_object(item, source)
            except BadObjectError as error:
                self._drops.append(Drop(error.kind, source, str(error)))
            else:
                if self.pairs_per_visit and checked["tasks"] and not checked["independent"]:
                    raise InputError(f'{source}: pairs_per_visit needs independent questions; add "independent": true')
                self.items.append(checked | {"source": source})

    def _tell(self) -> None:
        """Logs what was left out and what became of masks; raises InputError where no object is left."""
        faults = [drop.detail for drop in self._drops if drop.detail]
        if not self.items:
            first = f"; the first: {faults[0]}" if faults else ""
            raise InputError(f"{self.path}: no object can be used; left out: {dict(self.dropped)}{first}")
        if faults:
            told = "\n  ".join(faults[:_TOLD])
            more = f"\n  and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
            whole = len(self.items) + len(self._drops)
            logger.warning("%s: %d of %d objects are left out:\n  %s%s", self.path, len(faults), whole, told, more)
        if self.n_masks:
            logger.info("%s: %d masks became their bounding boxes", self.path, self.n_masks)

    def __len__(self) -> int:
        return len(self.items)

    def drops(self) -> Iterator[Drop]:
        """Lists the objects that were left out, in the order of the file."""
        return iter(self._drops)

    def item(self, index: int) -> Item:
        """Returns what the file says about object `index`."""
        entry = self.items[index]
        texts = self.region_texts(index)
        return Item(
            image=self._path(entry),
            boxes_px=entry["boxes"],
            image_size=entry["image_size"],
            region_texts=tuple(texts.get(box, "") for box in range(len(entry["boxes"]))),
            box_sources=(entry["source"],) * len(entry["boxes"]),
            source=entry["source"],
        )

    def _path(self, entry: Mapping[str, Any]) -> str | None:
        return str(self.img_prefix / entry["image"]) if entry["image"] else None

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        """Draws item `index`; which pairs are asked, and their order, come from `rng` where pairs_per_visit is set."""
        entry = self.items[index]
        turns = [Turn(role, text) for role, text in entry["conversations"]]
        if self.pairs_per_visit and entry["tasks"]:
            turns = self._draw_pairs(turns, entry["tasks"], rng)
        texts = self.region_texts(index)
        return RegionSample(
            image=self._path(entry),
            turns=tuple(turns),
            boxes_px=entry["boxes"],
            picture_pipeline=entry["picture_pipeline"] or self.picture_pipeline,
            independent_turns=entry["independent"],
            region_texts=tuple(texts.get(box, "") for box in range(len(entry["boxes"]))),
            source=entry["source"],
        )

    def region_texts(self, index: int) -> dict[int, str]:
        """Returns what the boxes are called (box number from 0 -> text), as far as the object says so."""
        return texts_of(self.items[index])

    def _draw_pairs(self, turns: list[Turn], tasks: list[str], rng: np.random.Generator) -> list[Turn]:
        of_task: dict[str, list[int]] = {}
        for pair, task in enumerate(tasks):
            of_task.setdefault(task, []).append(pair)
        drawn: list[int] = []
        for task, wanted in self.pairs_per_visit.items():
            pairs = of_task.get(task, [])
            drawn.extend(rng.permutation(pairs)[:wanted].tolist() if pairs else [])
        return [turns[2 * pair + step] for pair in rng.permutation(drawn).astype(int) for step in (0, 1)]


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (source, object) for every object of a .jsonl file or of a .json list, in the file's order.

    Raises InputError, with the place, at the first one that is none.
    """
    for source, entry in read_entries(path):
        if isinstance(entry, BadObjectError):
            raise entry
        if not isinstance(entry, dict):
            raise InputError(f"{source}: expected an object, got {type(entry).__name__}")
        yield source, entry


def read_entries(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields (source, value) as read_objects does, whatever the values are.

    A line that is not JSON is yielded as the BadObjectError that says so, and the next ones follow.
    Raises InputError where the file can't be read, and where a list is not JSON.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the annotation file of a data set") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the annotation file inside it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if data.lstrip()[:1] == b"[":
        entries = enumerate(_parsed(data, str(path)))
    else:
        entries = ((number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip())
    for position, entry in entries:
        source = f"{path}#{position}"
        if isinstance(entry, bytes):
            try:
                entry = _parsed(entry, source)
            except BadObjectError as error:
                entry = error
        yield source, entry


def _parsed(data: bytes, where: str) -> Any:
    """Reads JSON; raises BadObjectError beginning with where."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadObjectError("broken JSON", f"{where}: not UTF-8 text at byte {error.start}; expected JSON") from None
    except (ValueError, RecursionError) as error:
        raise BadObjectError("broken JSON", f"{where}: not valid JSON: {error}") from None
