"""Visual Genome region captions.

Source    GRiT's test.json (COCO-like, a `caption` in every annotation); images of VG_100K and VG_100K_2 together in
          one flat folder, vg_all. The download that papers name is unreliable.
Split     test.
Prompt    the original's, as its author gave it.
Metric    CIDEr and METEOR are what papers report; BLEU and ROUGE-L beside them (pycocoevalcap).
Protocol  ground-truth boxes, every box asked about by itself, one reference an item.
Pitfalls  CIDEr is of the whole set: never average it over shards. `--limit` changes it too.
"""

from __future__ import annotations

from gpt4roi.evaluation.files import fields, find_annotations, find_images, usable_boxes
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_texts
from gpt4roi.io.coco import read_tables
from gpt4roi.io.json_files import read_json

QUESTION = "Can you give a description of the region mentioned by <region1>"


def load(source: Source) -> list[Item]:
    """Returns one item for each annotation with a caption."""
    path = find_annotations(source, ("test.json", "visual_genome/test.json"))
    tables = read_tables(read_json(path), path)
    find = find_images(source, (path.parent / name for name in ("vg_all", "images")))
    of_image: dict[str, list[Item]] = {}
    for where, image, annotation, box, clues in usable_boxes(source, tables, path):
        (file_name,), (caption,) = fields(image, ["file_name"], where), fields(annotation, ["caption"], where)
        name = str(annotation["id"])
        query = Query(find(file_name), source.question or QUESTION, box[None], id=name)
        of_image.setdefault(file_name, []).append(Item(name, query, (str(caption),), clues=clues))
    return [item for items in source.choose(list(of_image.values())) for item in items]


BENCHMARKS = {"vg": Benchmark("Visual Genome region captions", ("test",), load, score_texts, judge="optional")}
