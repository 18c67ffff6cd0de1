"""The questions of the benchmark and their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt4roi.data.unified import read_objects
from gpt4roi.errors import InputError
from gpt4roi.evaluation.items import Source
from gpt4roi.evaluation.metrics import exact_match
from gpt4roi.evaluation.predictor import Query
from gpt4roi.geometry.masks import to_boxes, to_raster
from gpt4roi.processing.mentions import MENTION
from quickstart.accepted import category_of_stamp, is_accepted, names_of_category

RELATIONS = ("larger", "left", "above")
PHOTOGRAPHS = "test_photographs"
OVERLAPPING = "test_overlapping"
SEED = 0
_OPPOSITE = {"yes": "no", "no": "yes"}


@dataclass(frozen=True)
class Item:
    """One question of the benchmark with its truth, and how it was changed if it is a control.

    given: for `permuted`, the caption of the box that was really shown; of overlapping pairs, what the other is called.
    pair: measures of the two regions compared. asked_as: id of the unchanged question. accepted: names of which an
    answer must hold one, of photographs and of things never shown. head: what the vision tower's own classifier says.
    confidence: of the answer.
    """

    id: str
    split: str
    scene: str
    task: str
    truth: str
    query: Query
    control: str = ""
    given: str | None = None
    pair: dict | None = None
    asked_as: str | None = None
    kind: str | None = None
    accepted: tuple[str, ...] = ()
    head: str = ""
    answer: str = ""
    confidence: float | None = None

    @property
    def regions(self) -> list[int]:
        """Indices of the regions that the question mentions, in order."""
        return [int(number) - 1 for number in MENTION.findall(self.query.question)]

    @property
    def right(self) -> bool:
        """Whether the answer has the words of the truth; of a photograph, whether it holds an accepted name."""
        return self.is_accepted if self.split == PHOTOGRAPHS else exact_match(self.answer, self.truth)

    @property
    def is_accepted(self) -> bool:
        """Whether the answer holds an accepted name."""
        return is_accepted(self.answer, self.accepted)


def load_items(source: Source) -> list[Item]:
    """Reads the splits, as many images of each as are wanted, and adds the controls."""
    if not source.data.is_dir():
        raise InputError(f"--data {source.data}: is a file; give the folder that `gpt4roi data make-stamps` wrote")
    items = [
        item
        for split in ("test", "test_unseen")
        for where, record in source.choose(list(read_objects(source.data / f"{split}.jsonl")))
        for item in _items_of(split, where, record, source.data)
    ]
    names = accepted_names(source.data)
    items = [replace(one, accepted=names[one.truth]) if one.split == "test_unseen" else one for one in items]
    photographs = source.data / f"{PHOTOGRAPHS}.jsonl"
    shown = source.choose(list(read_objects(photographs))) if photographs.exists() else []
    items += [item for where, record in shown for item in _of_photograph(where, record, source.data)]
    overlapping = source.data / f"{OVERLAPPING}.jsonl"
    pairs = source.choose(list(read_objects(overlapping))) if overlapping.exists() else []
    return items + [item for where, record in pairs for item in _of_overlapping(where, record, source.data)]


def _of_overlapping(where: str, record: dict, data_dir: Path) -> list[Item]:
    """Returns the questions of a scene whose regions are masks of pairs of things on each other."""
    items: list[Item] = []
    try:
        boxes, captions = to_boxes(record["masks"]), [thing["caption"] for thing in record["objects"]]
        masks = tuple(map(to_raster, record["masks"], boxes))
        for number, question in enumerate(record["conversations"][::2]):
            name = f"{OVERLAPPING}/{record['id']}/{number}"
            query = Query(data_dir / record["image"], question["value"], boxes, id=name, masks=masks)
            base = Item(name, OVERLAPPING, record["id"], "caption", captions[number], query, asked_as=name)
            items.append(replace(base, given=captions[number ^ 1]))  # the two of a pair follow each other
    except KeyError as missing:
        raise InputError(f"{where}: no {missing}; expected what python -m quickstart.overlapping wrote") from None
    return items


def _of_photograph(where: str, record: dict, data_dir: Path) -> list[Item]:
    """Returns a photograph's questions."""
    try:
        boxes = np.asarray(record["boxes"], dtype=np.float64).reshape(-1, 4)
        items: list[Item] = []
        for thing, question in zip(record["objects"], record["conversations"][::2], strict=True):
            name = f"{PHOTOGRAPHS}/{record['id']}/{len(items)}"
            query = Query(data_dir / record["image"], question["value"], boxes, id=name)
            base = Item(name, PHOTOGRAPHS, record["id"], "caption", thing["caption"], query, asked_as=name)
            items.append(replace(base, accepted=tuple(thing["accepted"]), head=thing["head"]))
        return items
    except KeyError as missing:
        raise InputError(f"{where}: no {missing}; expected an object that `gpt4roi data make-stamps` wrote") from None


def known_things(data_dir: Path) -> dict[str, dict]:
    """Returns what the data set says of every caption that occurs in one of its splits: its stamp and kind."""
    things: dict[str, dict] = {}
    for split in ("train", "test", "test_unseen"):
        path = data_dir / f"{split}.jsonl"
        for _, record in read_objects(path) if path.exists() else ():
            things |= {thing["caption"]: thing for thing in record["objects"]}
    return things


def known_kinds(data_dir: Path) -> dict[str, str]:
    """Returns the kind (animals, food, …) of every caption that occurs in a split of the data set."""
    return {caption: thing["kind"] for caption, thing in known_things(data_dir).items()}


def accepted_names(data_dir: Path) -> dict[str, tuple[str, ...]]:
    """Returns for every caption the names that are of its category (any bird for a bird), itself among them."""
    category = {
        caption: category_of_stamp(thing["stamp"], caption) for caption, thing in known_things(data_dir).items()
    }
    alike: dict[str, set[str]] = {}
    for caption, name in category.items():
        alike.setdefault(name or caption, set(names_of_category(name)) if name else set()).add(caption)
    return {caption: tuple(sorted(alike[name or caption])) for caption, name in category.items()}


def _items_of(split: str, source: str, record: dict, data_dir: Path) -> list[Item]:
    """Returns a scene's questions and their controls."""
    try:
        boxes = np.asarray(record["boxes"], dtype=np.float64).reshape(-1, 4)
        captions = [thing["caption"] for thing in record["objects"]]
        kinds = [thing["kind"] for thing in record["objects"]]
        turns = [turn["value"] for turn in record["conversations"]]
        tasks, pairs = record["tasks"], record["pairs"]
        image = data_dir / record["image"]
    except KeyError as missing:
        raise InputError(f"{source}: no {missing}; expected an object that `gpt4roi data make-stamps` wrote") from None
    plain: list[Item] = []
    controls: list[Item] = []
    half = _random_half(len(tasks), record["id"])
    spoken = zip(turns[::2], turns[1::2], tasks, pairs, half, strict=True)
    for question, truth, task, pair, in_half in spoken:
        if split == "test_unseen" and task != "caption":
            continue
        regions = [int(number) - 1 for number in MENTION.findall(question)]
        kind = kinds[regions[0]] if task == "caption" else None
        name = f"{split}/{record['id']}/{len(plain)}"
        query = Query(image, question, boxes, id=name)
        base = Item(name, split, record["id"], task, truth, query, pair=pair, kind=kind, asked_as=name)
        plain.append(base)
        if split == "test" and task in ("caption", *RELATIONS):
            controls += _controls(base, regions, captions, in_half)
    return plain + controls


def _controls(base: Item, regions: Sequence[int], captions: Sequence[str], in_half: bool) -> list[Item]:
    """Returns the controls of one question; to save time, `blank` and `swapped` only where it is in the half."""
    boxes = base.query.boxes_px
    controls = []
    if base.task != "caption" and in_half:
        first, second = regions
        swapped = boxes.copy()
        swapped[[first, second]] = boxes[[second, first]]
        other = second if base.truth == f"region{first + 1}" else first
        truth = _OPPOSITE.get(base.truth) or f"region{other + 1}"
        controls.append(replace(base, truth=truth, control="swapped", query=replace(base.query, boxes_px=swapped)))
    if base.task == "caption" and in_half:
        controls.append(replace(base, control="blank", query=replace(base.query, blank=True)))
    if base.task == "caption":
        order = _derangement(len(captions), base.scene)
        given = captions[order[regions[0]]]
        if given != base.truth:
            controls.append(
                replace(base, control="permuted", query=replace(base.query, boxes_px=boxes[order]), given=given)
            )
    return [_named(control) for control in controls]


def _named(control: Item) -> Item:
    name = f"{control.asked_as}:{control.control}"
    return replace(control, id=name, query=replace(control.query, id=name))


def _random_half(length: int, scene: str) -> np.ndarray:
    """Returns bool[length], true for every second place of a random order that is the same for a scene every time."""
    half = np.zeros(length, dtype=bool)
    half[np.random.default_rng([SEED + 1, *scene.encode()]).permutation(length)[::2]] = True
    return half


def _derangement(length: int, scene: str) -> np.ndarray:
    """Returns an order in which nothing keeps its place, the same for a scene every time."""
    circle = np.random.default_rng([SEED, *scene.encode()]).permutation(length)
    order = np.empty(length, dtype=int)
    order[circle] = np.roll(circle, -1)
    return order
