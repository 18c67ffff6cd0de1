"""The one-line-a-picture format: everybody's own boxes, LLaVA's files as they are, and the embedded data set."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.datasets.base import RegionDataset
from gpt4roi.errors import InputError
from gpt4roi.structures import RegionSample, Turn

MENTION = re.compile(r"<region(\d+)>")

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class UnifiedDataset(RegionDataset):
    """Reads a JSON-lines file, or a JSON list, of pictures with boxes and conversations.

    ann_file: one object a picture: `image` (absent for text alone), `boxes` (pixels, xyxy), `conversations`
        (`from`: human or gpt; `value`: text with `<region1>` for box 1), `independent` (every question stands alone).
    img_prefix: where `image` is looked up; the file's own folder by default.
    pairs_per_visit: how many question-answer pairs of each task one visit draws, without replacement, where the
        object has a parallel list `tasks`; all pairs by default. Only for `independent` objects.
    picture_pipeline: see RegionSample.
    Raises InputError naming file and line where an object is not of this form.
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
        self.img_prefix = Path(img_prefix) if img_prefix else self.path.parent
        if not isinstance(pairs_per_visit, Mapping | None):
            raise InputError(f"{ann_file}: pairs_per_visit must be task -> number, got {pairs_per_visit!r}")
        self.pairs_per_visit = dict(pairs_per_visit or {})
        self.picture_pipeline = picture_pipeline
        self.items = []
        for source, item in read_objects(self.path):
            if item.get("conversations"):
                self.items.append(_checked(item, source, self.pairs_per_visit))
            else:
                self.dropped["no conversation"] += 1
        if not self.items:
            raise InputError(f"{self.path}: no object with a conversation; dropped: {dict(self.dropped)}")

    def __len__(self) -> int:
        return len(self.items)

    def sample(self, index: int, rng: np.random.Generator) -> RegionSample:
        """Draws item `index`; which pairs are asked, and their order, come from `rng` where pairs_per_visit is set."""
        item = self.items[index]
        turns = [Turn(_ROLES[turn["from"]], turn["value"]) for turn in item["conversations"]]
        if self.pairs_per_visit and item.get("tasks"):
            turns = self._draw_pairs(turns, item["tasks"], rng)
        return RegionSample(
            image=str(self.img_prefix / item["image"]) if item.get("image") else None,
            turns=tuple(turns),
            boxes_px=np.asarray(item.get("boxes") or [], dtype=np.float64),
            picture_pipeline=self.picture_pipeline,
            independent_turns=bool(item.get("independent", False)),
            source=item["source"],
        )

    def region_texts(self, index: int) -> dict[int, str]:
        """Returns the answers to questions about exactly one region; only `caption` ones where tasks are told."""
        item = self.items[index]
        turns = item["conversations"]
        tasks = item.get("tasks") or ["caption"] * (len(turns) // 2)
        texts = {}
        for pair, task in enumerate(tasks):
            mentioned = set(MENTION.findall(turns[2 * pair]["value"]))
            if task == "caption" and len(mentioned) == 1:
                texts[int(mentioned.pop()) - 1] = turns[2 * pair + 1]["value"]
        return texts

    def _draw_pairs(self, turns: list[Turn], tasks: list[str], rng: np.random.Generator) -> list[Turn]:
        of_task: dict[str, list[int]] = {}
        for pair, task in enumerate(tasks):
            of_task.setdefault(task, []).append(pair)
        drawn: list[int] = []
        for task, wanted in self.pairs_per_visit.items():
            pairs = of_task.get(task, [])
            drawn.extend(rng.permutation(pairs)[:wanted].tolist() if pairs else [])
        return [turns[2 * pair + step] for pair in rng.permutation(drawn).astype(int) for step in (0, 1)]


def read_objects(path: Path):
    """Yields (source, object) for every object of a .jsonl file or of a .json list, in the file's order.

    Raises InputError with file and line where the text is not JSON, and where an entry is not an object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the annotation file of a data set") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give the annotation file inside it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text at byte {error.start}; expected JSON") from None
    as_list = text.lstrip()[:1] == "["
    if as_list:
        try:
            objects = enumerate(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}: not valid JSON: {error}") from None
    else:
        objects = _parsed_lines(path, text)
    for position, item in objects:
        source = f"{path}#{position}"
        if not isinstance(item, dict):
            got = type(item).__name__
            raise InputError(f"{source}: expected an object with image, boxes, conversations; got {got}")
        yield source, item


def _parsed_lines(path: Path, text: str):
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{path}#{number}: not valid JSON: {error}") from None


def _checked(item: dict[str, Any], source: str, pairs_per_visit: Mapping[str, int]) -> dict[str, Any]:
    """Returns the item with its source, after checking whatever would otherwise fail in the middle of a training."""
    turns = item["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InputError(f"{source}: conversations must be a list of {{from, value}}, got {turns!r:.80}")
    for turn in turns:
        if turn.get("from") not in _ROLES:
            raise InputError(f"{source}: a turn is from {sorted(_ROLES)}, got {turn.get('from')!r}")
        if not isinstance(turn.get("value"), str):
            raise InputError(f"{source}: a turn's value must be text, got {turn.get('value')!r:.80}")
    if not isinstance(item.get("image", ""), str | None):
        raise InputError(f"{source}: image must be a path, got {item['image']!r:.80}")
    try:
        boxes = np.asarray(item.get("boxes") or [], dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{source}: boxes must be numbers [x1, y1, x2, y2], got {item['boxes']!r:.80}") from None
    if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all()):
        raise InputError(f"{source}: every box must be four finite numbers, got {item['boxes']!r:.80}")
    if pairs_per_visit and item.get("tasks"):
        if not item.get("independent"):
            raise InputError(f'{source}: pairs_per_visit needs independent questions; add "independent": true')
        if 2 * len(item["tasks"]) != len(turns):
            got = f"{len(item['tasks'])} tasks for {len(turns)} turns"
            raise InputError(f"{source}: {got}; expected one task for each pair of turns")
    return {**item, "source": source}
