"""Osprey's lists of objects: images with the category and the mask of some of their objects."""

from __future__ import annotations

from functools import partial

from gpt4roi.errors import InputError
from gpt4roi.evaluation.files import fields, find_annotations, find_images
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_names
from gpt4roi.evaluation.similarity import clean_category
from gpt4roi.geometry.masks import to_box
from gpt4roi.io.images_on_disk import find_image
from gpt4roi.io.json_files import read_json

QUESTION = "What is the category of <region1>? Using only one word or phrase."
FOLDERS = ("images", "coco_all", "coco_imgs", "coco/train2017", "coco/val2017", "train2017", "val2017")


def object_names(title: str, file_name: str) -> Benchmark:
    """Returns the benchmark of one list."""
    return Benchmark(title, ("val_1k",), partial(load_objects, file_name=file_name), score_names)


def load_objects(source: Source, file_name: str) -> list[Item]:
    """Returns one item for each object; a mask becomes the box around it, because this is a model of boxes."""
    path = find_annotations(source, (file_name,))
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path}: expected a list of images, got {type(records).__name__}")
    roots = (path.parent, path.parent.parent)
    usual = [root / name for root in roots for name in FOLDERS]
    first = find_images(source, usual)
    folders = [first] if source.images else [folder for folder in usual if folder.is_dir()]
    items = []
    for row, record in source.choose(list(enumerate(records))):
        where = f"{path}#{row}"
        name, categories, annotations = fields(record, ("file_name", "categories", "annotations"), where)
        if len(categories) != len(annotations):
            raise InputError(f"{where}: {len(categories)} categories for {len(annotations)} annotations")
        image = find_image(folders, name)
        for place, (category, annotation) in enumerate(zip(categories, annotations, strict=True)):
            (mask,) = fields(annotation, ["segmentation"], f"{where}, annotation {place}")
            box = to_box(mask, f" in {where}, annotation {place}")
            query = Query(image, source.question or QUESTION, box[None], id=f"{name}#{row}.{place}")
            items.append(Item(query.id, query, (clean_category(str(category)),)))
    return items
