"""LVIS and PACO, open-vocabulary names of regions: Osprey's lists of images with some objects' categories and masks.

Source    Osprey's lvis_val_1k_category.json (1,000 images, 4,004 objects) and paco_val_1k_category.json (1,000 images,
          4,263 objects and parts); COCO 2017 images.
Split     those lists.
Prompt    Osprey's.
Metric    SS: cosine of all-MiniLM-L6-v2 embeddings of answer and category. S-IoU: shared words over all words. Beside
          them a lexical mapping, because SS rewards wrong names of the same field (OPAL's objection), in two readings:
          the same name but for articles and plurals; or also a kind, part or whole by its words.
Protocol  `_` and `:` in a category become blanks; of an answer what follows the first colon counts, without `.`, `:`
          and `,`; means over objects. Models of boxes get the box around the mask.
Pitfalls  the reference run draws answers at temperature 0.2 without a seed, so published numbers move a little; greedy
          here. Bare crops, masks and boxes are three tasks under one name. Exact match and
          the lexical mapping, which has no dictionary as OPAL's has, are ours.
"""

from __future__ import annotations

from functools import partial

from gpt4roi.errors import InputError
from gpt4roi.evaluation.files import fields, find_annotations, find_images
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_names
from gpt4roi.evaluation.similarity import clean_category
from gpt4roi.geometry.masks import to_box, to_raster
from gpt4roi.io.coco import frame_clues
from gpt4roi.io.json_files import read_json

QUESTION = "What is the category of <region1>? Using only one word or phrase."
FOLDERS = ("images", "coco_all", "coco_imgs", "coco/train2017", "coco/val2017", "train2017", "val2017")


def load_objects(source: Source, file_name: str) -> list[Item]:
    """Returns one item for each object; a model of boxes gets the box around its mask."""
    path = find_annotations(source, (file_name,))
    records = read_json(path)
    if not isinstance(records, list):
        raise InputError(f"{path}: expected a list of images, got {type(records).__name__}")
    roots = (path.parent, path.parent.parent)
    usual = [root / name for root in roots for name in FOLDERS]
    find = find_images(source, usual, several=True)
    items = []
    for row, record in source.choose(list(enumerate(records))):
        where = f"{path}#{row}"
        name, categories, annotations = fields(record, ("file_name", "categories", "annotations"), where)
        if len(categories) != len(annotations):
            raise InputError(f"{where}: {len(categories)} categories for {len(annotations)} annotations")
        image, clues = find(name), frame_clues(record)
        for place, (category, annotation) in enumerate(zip(categories, annotations, strict=True)):
            try:
                (mask,) = fields(annotation, ["segmentation"], f"{where}, annotation {place}")
                box = to_box(mask, f" in {where}, annotation {place}")
                raster = to_raster(mask, box, f" in {where}, annotation {place}")
            except InputError as error:
                source.leave_out(str(error))
                continue
            query = Query(image, source.question or QUESTION, box[None], id=f"{name}#{row}.{place}", masks=(raster,))
            items.append(Item(query.id, query, (clean_category(str(category)),), clues=clues))
    return items


BENCHMARKS = {
    name: Benchmark(title, ("val_1k",), partial(load_objects, file_name=f"{name}_val_1k_category.json"), score_names)
    for name, title in (("lvis", "LVIS open-vocabulary names"), ("paco", "PACO open-vocabulary names"))
}
