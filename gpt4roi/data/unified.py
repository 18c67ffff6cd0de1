"""The one-line-a-image format: everybody's own boxes, LLaVA's files as they are, and the embedded data set."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.annotations import read_bytes
from gpt4roi.data.base import Drop, Item
from gpt4roi.data.columns import Columns, text_column
from gpt4roi.data.indexed import IndexedDataset
from gpt4roi.data.unified_object import BadObjectError, check_object, texts_of
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn, accepts_old_names, as_image_pipeline

logger = logging.getLogger(__name__)

NO_CONVERSATION = "no conversation"
_TOLD = 5
_FILE = "\ue000"
"""Stands for the file's path in what the index keeps, which is the same wherever the file lies."""


class UnifiedDataset(IndexedDataset):
    """Reads a JSON-lines file, or a JSON list, of images with boxes and conversations.

    ann_file: one object an image: `image` (absent for text alone), `boxes` (pixels, xyxy) or `masks` (run lengths or
        polygons, which become their bounding boxes), `conversations` (`from`: human or gpt; `value`: text with
        `<region1>` for box 1), `independent` (every question stands alone).
    img_prefix: where `image` is looked up; the file's own folder by default.
    pairs_per_visit: how many question-answer pairs of each task one visit draws, without replacement, where the
        object has a parallel list `tasks`; all pairs by default. Only for `independent` objects.
    image_pipeline: see RegionSample; an object may have its own.
    An object that cannot be used is left out, counted in `dropped` and listed by `drops()`. n_masks: how many boxes
    come from masks. Raises InputError for a file that is not of this form at all, or has no object left.
    """

    version = 2
    what = "object"

    @accepts_old_names(picture_pipeline="image_pipeline")
    def __init__(
        self,
        ann_file: str | Path,
        img_prefix: str | Path | None = None,
        pairs_per_visit: Mapping[str, int] | None = None,
        image_pipeline: str = "dialogue",
    ) -> None:
        self.path = Path(ann_file)
        if not isinstance(pairs_per_visit, Mapping | None):
            raise InputError(f"{ann_file}: pairs_per_visit must be task -> number, got {pairs_per_visit!r}")
        self.pairs_per_visit = dict(pairs_per_visit or {})
        self.image_pipeline = as_image_pipeline(image_pipeline, f"{ann_file}: ")
        super().__init__([self.path], img_prefix or self.path.parent)
        self.n_masks: int = self.columns.facts["n_masks"]
        dependent = self.columns["dependent"]
        if self.pairs_per_visit and len(dependent):
            first = self.place(int(dependent[0]))
            raise InputError(f'{first}: pairs_per_visit needs independent questions; add "independent": true')
        self._tell()

    def build(self, contents: list[bytes]) -> Columns:
        positions, objects, dependent, drops, n_masks = [], [], [], [], 0
        for position, item in parsed_entries(self.path, contents.pop()):
            try:
                checked = self._checked(item, f"{self.path}#{position}")
            except BadObjectError as error:
                told = str(error).replace(str(self.path), _FILE) if error.kind != NO_CONVERSATION else ""
                drops.append((position, error.kind, told))
                continue
            n_masks += checked["n_masks"]
            if checked["tasks"] and not checked["independent"]:
                dependent.append(position)
            positions.append(position)
            objects.append(json.dumps(checked | {"boxes": checked["boxes"].tolist()}, ensure_ascii=False))
        arrays = {
            "position": np.asarray(positions, dtype=np.int64),
            "dependent": np.asarray(dependent, dtype=np.int64),
            "drop_position": np.asarray([position for position, _, _ in drops], dtype=np.int64),
            **text_column("object", objects),
            **text_column("drop_reason", [reason for _, reason, _ in drops]),
            **text_column("drop_detail", [detail for _, _, detail in drops]),
        }
        return Columns(arrays, {"n_masks": n_masks, "drop_sections": [(0, "")]})

    def _checked(self, item: Any, source: str) -> dict[str, Any]:
        if isinstance(item, BadObjectError):
            raise item
        if isinstance(item, dict) and not item.get("conversations"):
            raise BadObjectError(NO_CONVERSATION, source)
        return check_object(item, source)

    def _tell(self) -> None:
        """Logs what was left out and what became of masks."""
        faults = [drop.detail for drop in self.drops() if drop.detail]
        if faults:
            told = "\n  ".join(faults[:_TOLD])
            more = f"\n  and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
            whole = len(self) + sum(self.dropped.values())
            logger.warning("%s: %d of %d objects are left out:\n  %s%s", self.path, len(faults), whole, told, more)
        if self.n_masks:
            logger.info("%s: %d masks became their bounding boxes", self.path, self.n_masks)

    def count_drops(self) -> Counter[str]:
        """Counts the objects that were left out, by the kind of their fault."""
        return Counter(self.columns.texts("drop_reason", 0, len(self.columns["drop_position"])))

    def faults(self) -> tuple[int, int]:
        """Returns how many objects were left out because they are wrong in themselves, and how many there are."""
        lengths = np.diff(self.columns["drop_detail.limits"])
        return int(np.count_nonzero(lengths)), len(self) + len(lengths)

    def drops(self) -> Iterator[Drop]:
        """Lists the objects that were left out, in the order of the file."""
        for number, position in enumerate(self.columns["drop_position"].tolist()):
            detail = self.columns.text("drop_detail", number).replace(_FILE, str(self.path))
            yield Drop(self.columns.text("drop_reason", number), self.place(position), detail)

    def entry(self, index: int) -> dict[str, Any]:
        """Returns object `index` as check_object made it, with its source."""
        entry = json.loads(self.columns.text("object", index))
        boxes = np.asarray(entry["boxes"], dtype=np.float64).reshape(-1, 4)
        size = entry["image_size"] and tuple(entry["image_size"])
        return entry | {"boxes": boxes, "image_size": size, "source": self.place(int(self.columns["position"][index]))}

    def item(self, index: int) -> Item:
        """Returns what the file says about object `index`."""
        entry = self.entry(index)
        return Item(
            image=self._path(entry),
            boxes_px=entry["boxes"],
            image_size=entry["image_size"],
            region_texts=_one_a_box(entry),
            box_sources=(entry["source"],) * len(entry["boxes"]),
            source=entry["source"],
        )

    def _path(self, entry: Mapping[str, Any]) -> str | None:
        return str(Path(self.img_prefix, entry["image"])) if entry["image"] else None

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        """Draws item `index`; which pairs are asked, and their order, come from `rng` where pairs_per_visit is set."""
        entry = self.entry(index)
        turns = [Turn(role, text) for role, text in entry["conversations"]]
        if self.pairs_per_visit and entry["tasks"]:
            turns = self._draw_pairs(turns, entry["tasks"], rng)
        return RegionSample(
            image=self._path(entry),
            turns=tuple(turns),
            boxes_px=entry["boxes"],
            image_pipeline=entry["image_pipeline"] or self.image_pipeline,
            independent_turns=entry["independent"],
            region_texts=_one_a_box(entry),
            source=entry["source"],
        )

    def region_texts(self, index: int) -> dict[int, str]:
        """Returns what the boxes are called (box number from 0 -> text), as far as the object says so."""
        return texts_of(self.entry(index))

    def _draw_pairs(self, turns: list[Turn], tasks: list[str], rng: np.random.Generator) -> list[Turn]:
        of_task: dict[str, list[int]] = {}
        for pair, task in enumerate(tasks):
            of_task.setdefault(task, []).append(pair)
        drawn: list[int] = []
        for task, wanted in self.pairs_per_visit.items():
            pairs = of_task.get(task, [])
            drawn.extend(rng.permutation(pairs)[:wanted].tolist() if pairs else [])
        return [turns[2 * pair + step] for pair in rng.permutation(drawn).astype(int) for step in (0, 1)]


def _one_a_box(entry: dict[str, Any]) -> tuple[str, ...]:
    texts = texts_of(entry)
    return tuple(texts.get(box, "") for box in range(len(entry["boxes"])))


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (source, object) for every object of a .jsonl file or of a .json list, in the file's order.

    Raises InputError, with the place, at the first one that is none.
    """
    for position, entry in parsed_entries(path, read_bytes(path)):
        if isinstance(entry, BadObjectError):
            raise entry
        if not isinstance(entry, dict):
            raise InputError(f"{path}#{position}: expected an object, got {type(entry).__name__}")
        yield f"{path}#{position}", entry


def parsed_entries(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (line from 1, or number in the list from 0; value) as read_objects does, whatever the values are.

    A line that is not JSON is yielded as the BadObjectError that says so, and the next ones follow.
    Raises InputError where a list is not JSON.
    """
    if data.lstrip()[:1] == b"[":
        yield from enumerate(_parsed(data, str(path)))
        return
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, _parsed(line, f"{path}#{number}")
            except BadObjectError as error:
                yield number, error


def _parsed(data: bytes, where: str) -> Any:
    """Reads JSON; raises BadObjectError beginning with where."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadObjectError("broken JSON", f"{where}: not UTF-8 text at byte {error.start}; expected JSON") from None
    except (ValueError, RecursionError) as error:
        raise BadObjectError("broken JSON", f"{where}: not valid JSON: {error}") from None
