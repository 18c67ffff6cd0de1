"""Data set in the unified format, one line an image: users' own boxes, LLaVA's files as they are, the quickstart's."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np

from gpt4roi.data.annotations import Drops
from gpt4roi.data.base import Item
from gpt4roi.data.columns import Columns, make_offsets
from gpt4roi.data.index import IndexedDataset, make_columns
from gpt4roi.data.unified_object import BadObjectError, check_object
from gpt4roi.errors import InputError
from gpt4roi.geometry.masks import to_raster
from gpt4roi.io.json_files import kind_of, parse_json, parse_jsonl, read_bytes
from gpt4roi.processing.mentions import MENTION
from gpt4roi.structures import ImagePipeline, RegionSample, Turn, accepts_old_names, as_image_pipeline

logger = logging.getLogger(__name__)

_LOGGED = 5
_PIPELINES = (None, *get_args(ImagePipeline))
_MAX_SIDE = np.iinfo(np.int32).max


class UnifiedDataset(IndexedDataset):
    """Reads a JSON-lines file, or a JSON list, of images with boxes and conversations.

    An object that cannot be used is left out, counted in `dropped` and listed by `drops()`.

    Args:
        ann_file: One object an image: `image` (absent for text alone), `boxes` (pixels, xyxy) or `masks` (run lengths
            or polygons; the boxes are then around them), `conversations` (`from`: human or gpt; `value`: text with
            `<region1>` for box 1), `independent` (every question stands alone).
        img_prefix: Where `image` is looked up; the file's own folder by default.
        pairs_per_epoch: How many question-answer pairs of each task one epoch draws, without replacement, where the
            object has a parallel list `tasks`; all pairs by default. Only for `independent` objects.
        image_pipeline: See RegionSample; an object may have its own.

    Attributes:
        n_masks: How many boxes come from masks.

    Raises:
        InputError: The file is not of this form at all, or has no object left.
    """

    version = 4
    what = "object"

    @accepts_old_names(picture_pipeline="image_pipeline", pairs_per_visit="pairs_per_epoch")
    def __init__(
        self,
        ann_file: str | Path,
        img_prefix: str | Path | None = None,
        pairs_per_epoch: Mapping[str, int] | None = None,
        image_pipeline: str = "dialogue",
    ) -> None:
        self.path = Path(ann_file)
        if not isinstance(pairs_per_epoch, Mapping | None):
            raise InputError(f"{ann_file}: pairs_per_epoch must be task -> number, got {pairs_per_epoch!r}")
        self.pairs_per_epoch = dict(pairs_per_epoch or {})
        self.image_pipeline = as_image_pipeline(image_pipeline, f"{ann_file}: ")
        super().__init__([self.path], img_prefix or self.path.parent)
        self.n_masks: int = self.columns.metadata["n_masks"]
        dependent = self.columns["dependent"]
        if self.pairs_per_epoch and len(dependent):
            first = self.location(int(dependent[0]))
            raise InputError(f'{first}: pairs_per_epoch needs independent questions; add "independent": true')
        self._log_drops()

    def build(self, contents: list[bytes]) -> Columns:
        """Makes the index of the file's objects, checked; texts and boxes in columns, with offsets by object."""
        drops, positions, objects = Drops([(0, "")]), [], []
        for position, item in parse_entries(self.path, contents.pop()):
            try:
                objects.append(_checked(item, f"{self.path}#{position}"))
                positions.append(position)
            except BadObjectError as error:
                drops.add(error, position, path=self.path)
        turns = list(chain.from_iterable(one["conversations"] for one in objects))
        dependent = [
            where for where, one in zip(positions, objects, strict=True) if one["tasks"] and not one["independent"]
        ]
        sizes = [[min(side, _MAX_SIDE) for side in one["image_size"] or (0, 0)] for one in objects]
        arrays: dict[str, np.ndarray] = {
            "position": np.asarray(positions, dtype=np.int64),
            "dependent": np.asarray(dependent, dtype=np.int64),
            "size": np.asarray(sizes, dtype=np.int32).reshape(-1, 2),
            "independent": np.asarray([one["independent"] for one in objects], dtype=bool),
            "pipeline": np.asarray([_PIPELINES.index(one["image_pipeline"]) for one in objects], dtype=np.uint8),
            "box": np.concatenate([np.zeros((0, 4)), *(one["boxes"] for one in objects)]),
            "asked": np.asarray([role == "user" for role, _ in turns], dtype=bool),
        }
        parallel = {"box": "boxes", "turn": "conversations", "task": "tasks", "region_text": "texts", "mask": "masks"}
        for column, key in parallel.items():
            arrays[f"first_{column}"] = make_offsets(0 if one[key] is None else len(one[key]) for one in objects)
        texts = {
            "image": [one["image"] or "" for one in objects],
            "turn": [text for _, text in turns],
            "task": list(chain.from_iterable(one["tasks"] or () for one in objects)),
            "region_text": list(chain.from_iterable(one["texts"] or () for one in objects)),
            "mask": [json.dumps(mask) for mask in chain.from_iterable(one["masks"] for one in objects)],
        }
        return make_columns(arrays, texts, drops, n_masks=len(texts["mask"]))

    def _log_drops(self) -> None:
        """Logs what was left out and what became of masks."""
        faults = [drop.detail for drop in self.drops() if drop.detail]
        if faults:
            first = "\n  ".join(faults[:_LOGGED])
            more = f"\n  and {len(faults) - _LOGGED} more" if len(faults) > _LOGGED else ""
            total = len(self) + sum(self.dropped.values())
            logger.warning("%s: %d of %d objects are left out:\n  %s%s", self.path, len(faults), total, first, more)
        if self.n_masks:
            what = "masks became their bounding boxes; models with region_shape 'mask' read the masks too"
            logger.info("%s: %d %s", self.path, self.n_masks, what)

    def faults(self) -> tuple[int, int]:
        """Returns how many objects were dropped because they are wrong in themselves, and how many there were."""
        wrong, _ = super().faults()
        return wrong, len(self) + len(self.columns["drops"])

    def entry(self, index: int) -> dict[str, Any]:
        """Returns object `index` as check_object made it."""
        columns = self.columns
        height, width = columns["size"][index].tolist()
        turns = columns.rows("first_turn", index)
        roles = ["user" if asked else "assistant" for asked in columns["asked"][turns].tolist()]
        return {
            "image": columns.text("image", index) or None,
            "image_size": (height, width) if height else None,
            "boxes": columns["box"][columns.rows("first_box", index)].copy(),
            "conversations": list(zip(roles, columns.texts("turn", turns), strict=True)),
            "independent": bool(columns["independent"][index]),
            "tasks": columns.texts("task", columns.rows("first_task", index)) or None,
            "texts": tuple(columns.texts("region_text", columns.rows("first_region_text", index))) or None,
            "image_pipeline": _PIPELINES[columns["pipeline"][index]],
            "masks": [json.loads(mask) for mask in columns.texts("mask", columns.rows("first_mask", index))],
        }

    def item(self, index: int) -> Item:
        """Returns what the file says about object `index`."""
        entry, source = self.entry(index), self.source(index)
        return Item(
            image=self.image_path(entry["image"]) if entry["image"] else None,
            boxes_px=entry["boxes"],
            image_size=entry["image_size"],
            region_texts=texts_of(entry),
            box_sources=(source,) * len(entry["boxes"]),
            source=source,
        )

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        """Draws item `index`; which pairs are asked, and their order, come from `rng` where pairs_per_epoch is set."""
        entry = self.entry(index)
        turns = [Turn(role, text) for role, text in entry["conversations"]]
        if self.pairs_per_epoch and entry["tasks"]:
            turns = self._draw_pairs(turns, entry["tasks"], rng)
        return RegionSample(
            image=self.image_path(entry["image"]) if entry["image"] else None,
            turns=tuple(turns),
            boxes_px=entry["boxes"],
            masks=tuple(map(to_raster, entry["masks"], entry["boxes"])) if entry["masks"] else (),
            image_pipeline=entry["image_pipeline"] or self.image_pipeline,
            independent_turns=entry["independent"],
            region_texts=texts_of(entry),
            source=self.source(index),
        )

    def region_texts(self, index: int) -> dict[int, str]:
        """Returns what the boxes are called (box number from 0 -> text), as far as the object says so."""
        return {box: text for box, text in enumerate(texts_of(self.entry(index))) if text}

    def _draw_pairs(self, turns: list[Turn], tasks: list[str], rng: np.random.Generator) -> list[Turn]:
        of_task: dict[str, list[int]] = {}
        for pair, task in enumerate(tasks):
            of_task.setdefault(task, []).append(pair)
        drawn: list[int] = []
        for task, wanted in self.pairs_per_epoch.items():
            pairs = of_task.get(task, [])
            drawn.extend(rng.permutation(pairs)[:wanted].tolist() if pairs else [])
        return [turns[2 * pair + step] for pair in rng.permutation(drawn).astype(int) for step in (0, 1)]


def _checked(item: Any, source: str) -> dict[str, Any]:
    if isinstance(item, BadObjectError):
        raise item
    return check_object(item, source)


def texts_of(entry: dict[str, Any]) -> tuple[str, ...]:
    """Returns what each box of a checked object is called, "" where it does not say so.

    That is its `region_texts`, or else the first answer to a question about exactly that region; where there are tasks,
    only `caption` ones count.
    """
    if entry["texts"]:
        return tuple(entry["texts"])
    texts: dict[int, str] = {}
    for step, ((asker, question), (_, answer)) in enumerate(pairwise(entry["conversations"])):
        mentioned = set(MENTION.findall(question))
        is_caption = not entry["tasks"] or entry["tasks"][step // 2] == "caption"
        if asker == "user" and len(mentioned) == 1 and is_caption:
            texts.setdefault(int(mentioned.pop()) - 1, answer)
    return tuple(texts.get(box, "") for box in range(len(entry["boxes"])))


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (source, object) for every object of a .jsonl file or of a .json list, in the file's order.

    Raises:
        InputError: At the first one that is none, with its place.
    """
    for position, entry in parse_entries(path, read_bytes(path, "a file in the unified format")):
        if isinstance(entry, BadObjectError):
            raise entry
        if not isinstance(entry, dict):
            raise InputError(f"{path}#{position}: expected an object, got {kind_of(entry)}")
        yield f"{path}#{position}", entry


def parse_entries(path: Path, data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (line from 1, or number in the list from 0; value) as read_objects does, whatever the values are.

    A line that is not JSON is yielded as the BadObjectError that says so, and the next ones follow.

    Raises:
        InputError: A list is not JSON.
    """
    if data.lstrip()[:1] == b"[":
        yield from enumerate(parse_json(data, path))
        return
    for number, value in parse_jsonl(data, path):
        yield number, BadObjectError("broken JSON", str(value)) if isinstance(value, InputError) else value
