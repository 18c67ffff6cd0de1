"""COCO's and LVIS's detection by proposals: which of given boxes show a thing of each category.

Source    instances_val2017.json or lvis_v1_val.json, and beside it proposals.json: boxes of any detector in COCO's form
          of results (`image_id`, `bbox`, `score` where there is one). Without that file the ground-truth boxes are the
          proposals, which the notes then say: the figure measures names alone.
Split     val2017; v1 val.
Prompt    "What is <region1>?", about every proposal by itself.
Metric    COCO's mAP (IoU 0.50 to 0.95), AP50, AP75 and AR100, by pycocotools.
Protocol  a proposal has a score for every category: the probability of its name as the answer, times the proposal's
          own score; the best 300 of an image count. A model without likelihoods gets 1 for the name that it answers.
          No boxes are moved and none suppressed: that is the detector's part.
Pitfalls  mAP is bounded by the proposals' recall, so it compares models on the same file alone. LVIS annotates a part
          of the things in an image, and its own rule for the others is not COCO's: figures of lvis-detection are not
          those of LVIS's tool. Intervals are of a jackknife over ten parts of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks.categories import COCO_FILES, FOLDERS, LVIS_FILES, names_of
from gpt4roi.evaluation.detection import average_precision
from gpt4roi.evaluation.files import by_id, fields, find_annotations, find_images, usable_boxes
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.metrics import Measure, exact_match
from gpt4roi.evaluation.predictor import Query
from gpt4roi.io.coco import annotation_xywh, as_id, image_file_name, is_crowd, read_tables
from gpt4roi.io.json_files import read_json

QUESTION = "What is <region1>?"
PROPOSALS = "proposals.json"
KEPT = 300
"""Scores of an image that count, as LVIS's tool takes them."""
PARTS = 10
TRUE_BOXES = "the proposals are the ground-truth boxes: the figures measure names alone"


def load(source: Source, names: Sequence[str]) -> list[Item]:
    """Returns one item for each proposal on the chosen images; its choices are all categories."""
    path = find_annotations(source, names)
    content = read_json(path)
    listed = fields(content, ["categories"], str(path))[0]
    categories = {as_id(key): names_of(one)[0] for key, one in by_id(listed, f"{path}, categories").items()}
    given = path.with_name(PROPOSALS)
    annotations = fields(content, ["annotations"], str(path))[0]
    if given.is_file():
        proposals = [{**one, "id": row} for row, one in enumerate(read_json(given))]
    else:
        proposals = [one for one in annotations if not is_crowd(one)]
    tables = read_tables({**content, "annotations": proposals}, given if given.is_file() else path)
    roots = (path.parent, path.parent.parent)
    find = find_images(source, [root / name for root in roots for name in FOLDERS], several=True)
    truth = {"categories": categories, "true_boxes": not given.is_file()}
    truth["annotations"] = _true_boxes(annotations, f"{path}, annotations", source)
    of_image: dict[Any, list[Item]] = {}
    for _, image, proposal, box, clues in usable_boxes(source, tables, path):
        query = Query(find(image_file_name(image)), source.question or QUESTION, box[None], id=str(proposal["id"]))
        label = None if given.is_file() else list(categories).index(as_id(proposal["category_id"]))
        options = tuple(categories.values())
        metadata = {"image_id": image["id"], "bbox": annotation_xywh(proposal), "truth": truth}
        metadata["score"] = float(proposal.get("score", 1.0))
        asked = Query(query.image, query.question, query.boxes_px, choices=options, id=query.id)
        references = () if label is None else (options[label],)
        item = Item(query.id, asked, references, options=options, label=label, metadata=metadata, clues=clues)
        of_image.setdefault(image["id"], []).append(item)
    return [item for items in source.choose(list(of_image.values())) for item in items]


def _true_boxes(annotations: Sequence[Any], where: str, source: Source) -> dict[Any, list[dict[str, Any]]]:
    """Returns the ground truth of each image as COCO's tool needs it; boxes of crowds are neither right nor wrong."""
    of_image: dict[Any, list[dict[str, Any]]] = {}
    for row, one in enumerate(annotations):
        try:
            image, category = fields(one, ("image_id", "category_id"), f"{where}#{row}")
            box = annotation_xywh(one)
        except InputError as error:
            source.leave_out(f"{where}#{row}: {error}")
            continue
        found = {"id": row + 1, "image_id": as_id(image), "category_id": as_id(category), "bbox": box}
        found |= {"area": one.get("area", box[2] * box[3]), "iscrowd": int(is_crowd(one))}
        of_image.setdefault(found["image_id"], []).append(found)
    return of_image


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores by average precision; an item by whether its likeliest category is right, where that is known."""
    truth = items[0].metadata["truth"]
    of_image: dict[Any, list[Item]] = {}
    for item in items:
        of_image.setdefault(item.metadata["image_id"], []).append(item)
    results = {image: _results(members, list(truth["categories"])) for image, members in of_image.items()}

    def of(images: Sequence[Any]) -> dict[str, float]:
        tables = {
            "images": [{"id": image} for image in images],
            "annotations": [one for image in images for one in truth["annotations"].get(image, ())],
            "categories": [{"id": key, "name": name} for key, name in truth["categories"].items()],
        }
        return average_precision(tables, [one for image in images for one in results[image]])

    measures = {name: jackknifed(values) for name, values in _leaving_out(of, list(of_image)).items()}
    right = [None if item.label is None else _best(item) == item.label for item in items]
    per_item = [{"right": float(bool(one))} for one in right]
    notes = [TRUE_BOXES] if truth["true_boxes"] else []
    return Scores(measures, per_item, right, {}, notes, {"proposals": len(items)}, ("mAP", "AP50", "AP75"))


def _scores(item: Item) -> np.ndarray:
    """Returns a score for each category, float64[C]."""
    if item.likelihoods is None:
        return np.asarray([float(exact_match(item.answer, name)) for name in item.options])
    return np.exp(np.asarray(item.likelihoods))


def _best(item: Item) -> int | None:
    scores = _scores(item)
    return int(scores.argmax()) if scores.any() else None


def _results(items: Sequence[Item], categories: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the best of all scores of an image as COCO's results."""
    scores = np.stack([_scores(item) * item.metadata["score"] for item in items])
    best = np.argsort(-scores, axis=None, kind="stable")[:KEPT]
    return [
        {"image_id": items[row].metadata["image_id"], "category_id": categories[column]}
        | {"bbox": items[row].metadata["bbox"], "score": float(scores[row, column])}
        for row, column in zip(*np.unravel_index(best, scores.shape), strict=True)
        if scores[row, column] > 0
    ]


def _leaving_out(of: Any, images: Sequence[Any]) -> dict[str, tuple[float, list[float]]]:
    """Returns of each figure its value over all images, and its values without each of up to ten parts of them."""
    parts = min(PARTS, len(images))
    without = [of([one for row, one in enumerate(images) if row % parts != part]) for part in range(parts)] * (
        parts > 1
    )
    return {name: (value, [one[name] for one in without]) for name, value in of(images).items()}


def jackknifed(values: tuple[float, list[float]]) -> Measure:
    """Returns a figure that is no formula of sums, with the interval of its jackknife.

    Its pseudo-values, moved so that their mean is the figure, are resampled as those of any mean.

    Args:
        values: The figure over everything, and without each of some parts of equal size.
    """
    whole, without = values[0], np.asarray(values[1])
    if not len(without):
        return Measure.mean([whole])
    pseudo = whole - (len(without) - 1) * (without - without.mean())
    return Measure.mean(pseudo)


def _detection(title: str, split: str, names: Sequence[str]) -> Benchmark:
    return Benchmark(title, (split,), partial(load, names=names), score, max_new_tokens=16)


BENCHMARKS = {
    "coco-detection": _detection("COCO detection by proposals", "val2017", COCO_FILES),
    "lvis-detection": _detection("LVIS detection by proposals", "val", LVIS_FILES),
}
