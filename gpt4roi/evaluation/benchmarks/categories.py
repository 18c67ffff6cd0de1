"""COCO's and LVIS's instance files: classification of boxes, and Ferret's two-way question.

Source    instances_val2017.json and val2017/; lvis_v1_val.json and the images of COCO 2017 (its validation images lie
          in train2017 and val2017).
Split     val2017, v1 val; ground-truth boxes, crowds left out.

Classification of every box by itself; over boxes, not the mean over categories.

Prompt    coco: ours for detection data, all 80 names, then the bare box, as in the first stage of training.
          lvis-classes: open, because 1203 names do not fit into a prompt; Osprey's question for names.
Metric    top-1: the answer is the category's name (in LVIS or one of its synonyms) word for word; and the category's
          name is the nearest of all to the answer by all-MiniLM-L6-v2.
Pitfalls  COCO's names are in the prompt, so this is a closed set; numbers without them are another task. Frequent
          things (person, 30 % of the boxes) carry the figure. What stands in brackets in a name of LVIS
          (`bus_(vehicle)`) is left out, so a few categories share a name; LVIS annotates only some of the things in
          an image.

Two-way question: is the region a … or a …?

Prompt    Ferret's.
Metric    accuracy, chance 50 %: by likelihood of the two names; and by Ferret's rule: an answer is right that holds the
          category's name or a synonym once "not …" and "no …" are deleted.
Protocol  the wrong name is drawn with a fixed seed from the categories that are not in the image (LVIS: the file's
          `neg_category_ids`, which were looked for in vain), and so is the order of the two [guess: Ferret's own draws
          are not published with its code].
Pitfalls  Ferret's rule lets an answer that repeats both names pass; likelihood does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from gpt4roi.constants import REGION_TOKEN
from gpt4roi.evaluation.benchmarks.object_names import QUESTION
from gpt4roi.evaluation.files import by_id, fields, find_annotations, find_images, usable_boxes
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.metrics import Measure, exact_match, words
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_choices
from gpt4roi.evaluation.similarity import MISSING, SentenceModel, find_sentence_model
from gpt4roi.geometry.frames import FrameClues
from gpt4roi.io.coco import FilteredOutError, Id, as_id, image_file_name, is_id, read_tables, refuse_ignored
from gpt4roi.io.json_files import read_json
from gpt4roi.processing.prompts import DETECTION_INSTRUCTION

COCO_FILES = ("instances_val2017.json", "annotations/instances_val2017.json", "coco/annotations/instances_val2017.json")
LVIS_FILES = ("lvis_v1_val.json", "annotations/lvis_v1_val.json", "lvis/lvis_v1_val.json")
Prompt = Callable[[dict[int, tuple[str, ...]]], str]
"""From the names of each category to the question."""
FOLDERS = ("val2017", "train2017", "coco_all", "images")


@dataclass(frozen=True)
class Instance:
    """One object: its image, box float64[4] xyxy in pixels, category id, and what is known of the box's frame.

    absent: ids of categories that are not in the image.
    """

    id: str
    image: Path
    box: np.ndarray
    category: int
    clues: FrameClues
    absent: tuple[int, ...] = ()


def read_instances(source: Source, names: Sequence[str]) -> tuple[dict[int, tuple[str, ...]], list[list[Instance]]]:
    """Returns the names of each category, its own first and then synonyms, and the objects of each chosen image.

    Crowds are left out.
    """
    path = find_annotations(source, names)
    content = read_json(path)
    tables = read_tables(content, path)
    roots = (path.parent, path.parent.parent)
    find = find_images(source, [root / name for root in roots for name in FOLDERS], several=True)
    listed = fields(content, ["categories"], str(path))[0]
    named = {as_id(key): names_of(category) for key, category in by_id(listed, f"{path}, categories").items()}
    entries: dict[Id, dict] = {}
    of_image: dict[Id, list[tuple[dict, np.ndarray, FrameClues]]] = {}
    for where, image, annotation, box, clues in usable_boxes(source, tables, path):
        try:
            refuse_ignored(annotation)
        except FilteredOutError as error:
            source.filtered[error.reason] += 1
            continue
        category = annotation.get("category_id")
        if not is_id(category) or category not in named:
            source.leave_out(f"{where}: category_id {category!r} is not among the categories")
            continue
        entries[image["id"]] = image
        of_image.setdefault(image["id"], []).append((annotation, box, clues))
    found = []
    for image_id, members in source.choose(list(of_image.items())):
        absent = _absent(entries[image_id], [one for one, *_ in members], named)
        file = find(image_file_name(entries[image_id]))
        found.append(
            [Instance(str(one["id"]), file, box, one["category_id"], clues, absent) for one, box, clues in members]
        )
    return named, found


def names_of(category: dict) -> tuple[str, ...]:
    """Returns the names of a category, its own first and then synonyms, in plain words."""
    names = (category["name"], *category.get("synonyms", ()))  # such as `bus_(vehicle)`
    return tuple(dict.fromkeys(name.split("_(")[0].replace("_", " ").strip() for name in names))


def _absent(image: dict, members: Sequence[dict], named: dict) -> tuple[int, ...]:
    """LVIS states which categories were looked for and not found; in COCO all others are absent."""
    stated = image.get("neg_category_ids")
    return tuple(stated) if stated else tuple(sorted(set(named) - {one["category_id"] for one in members}))


def load_classes(source: Source, names: Sequence[str], prompt: Prompt) -> list[Item]:
    """Returns one item for each object; its references are all names of its category."""
    named, images = read_instances(source, names)
    question = source.question or prompt(named)
    main = [names[0] for names in named.values()]
    return [
        Item(
            one.id,
            Query(one.image, question, one.box[None], id=one.id),
            named[one.category],
            metadata={"categories": main},
            clues=one.clues,
        )
        for instances in images
        for one in instances
    ]


def score_classes(items: Sequence[Item], source: Source) -> Scores:
    """Scores top-1: the answer is a name of the category; the category's name is the nearest of all to the answer."""
    groups = [item.group for item in items]
    named = [any(exact_match(item.answer, name) for name in item.references) for item in items]
    measures, notes = {"top-1 (its name)": Measure.mean(named, groups)}, []
    per_item = [{"top-1 (its name)": float(one)} for one in named]
    folder = find_sentence_model(source.sentence_model)
    if folder is None:
        notes.append(MISSING)
    elif items:
        nearest = _nearest(items, SentenceModel(folder))
        measures["top-1 (nearest name)"] = Measure.mean(nearest, groups)
        per_item = [one | {"top-1 (nearest name)": float(near)} for one, near in zip(per_item, nearest, strict=True)]
    chance = 1 / max(len(items[0].metadata["categories"]), 1) if items else 0.0
    return Scores(measures, per_item, list(named), {}, notes, {"chance": round(chance, 4)}, tuple(measures))


def _nearest(items: Sequence[Item], model: SentenceModel) -> list[bool]:
    categories = items[0].metadata["categories"]
    rows = model.embed([item.answer for item in items]) @ model.embed(categories).T
    return [categories[place] == item.references[0] for item, place in zip(items, rows.argmax(axis=1), strict=True)]


def load_two_way(source: Source, names: Sequence[str]) -> list[Item]:
    """Returns one item for each object: its category or another that is not in the image."""
    named, images = read_instances(source, names)
    return [_two_way(one, named) for instances in images for one in instances if one.absent]


TWO_WAY = "Is the object <region1> of the image a {first} or a {second}?"


def _two_way(one: Instance, named: dict[int, tuple[str, ...]]) -> Item:
    draw = np.random.default_rng([0, *one.id.encode()])
    wrong = named[int(draw.choice(np.asarray(one.absent)))][0]
    label = int(draw.integers(2))
    options = (named[one.category][0], wrong) if label == 0 else (wrong, named[one.category][0])
    question = TWO_WAY.format(first=options[0], second=options[1])
    query = Query(one.image, question, one.box[None], choices=options, id=one.id)
    return Item(one.id, query, named[one.category], "", options, label, clues=one.clues)


def names_right(item: Item) -> int | None:
    """Returns the label where the answer, without its `not …` and `no …`, holds a name of the category; else None."""
    answer = " ".join(_without_denials(words(item.answer)))
    contained = any(f" {' '.join(words(name))} " in f" {answer} " for name in item.references)
    return item.label if contained else None


def _without_denials(spoken: Sequence[str]) -> Iterator[str]:
    """Yields the words but those from `not` or `no` on, up to a word that begins something new."""
    denied = False
    for word in spoken:
        denied = word in ("not", "no") or (denied and word not in ("but", "it", "is", "and", "rather"))
        if not denied:
            yield word


def _listing(named: dict[int, tuple[str, ...]]) -> str:
    return DETECTION_INSTRUCTION.format(names=", ".join(names[0] for names in named.values())) + REGION_TOKEN


def _classification(title: str, split: str, files: Sequence[str], prompt: Prompt) -> Benchmark:
    return Benchmark(title, (split,), partial(load_classes, names=files, prompt=prompt), score_classes)


def _two_ways(title: str, files: Sequence[str]) -> Benchmark:
    return Benchmark(title, ("val",), partial(load_two_way, names=files), partial(score_choices, parse=names_right))


BENCHMARKS = {
    "coco": _classification("COCO classification from boxes", "val2017", COCO_FILES, _listing),
    "coco-two-way": _two_ways("COCO two-way question", COCO_FILES),
    "lvis-classes": _classification("LVIS classification from boxes", "val", LVIS_FILES, lambda named: QUESTION),
    "lvis-two-way": _two_ways("LVIS two-way question", LVIS_FILES),
}
