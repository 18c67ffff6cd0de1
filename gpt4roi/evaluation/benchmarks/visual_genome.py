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

from gpt4roi.evaluation.benchmarks.referring_expressions import unknown_image
from gpt4roi.evaluation.files import box_of_xywh, by_id, fields, find_annotations, find_images
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_texts
from gpt4roi.io.images_on_disk import find_image
from gpt4roi.io.json_files import read_json

QUESTION = "Can you give a description of the region mentioned by <region1>"


def load(source: Source) -> list[Item]:
    """Returns one item for each annotation with a caption."""
    path = find_annotations(source, ("test.json", "visual_genome/test.json"))
    images, annotations = fields(read_json(path), ("images", "annotations"), str(path))
    file_names = {key: fields(image, ["file_name"], str(path))[0] for key, image in by_id(images, str(path)).items()}
    folder = find_images(source, (path.parent / name for name in ("vg_all", "images")))
    of_image: dict[str, list[Item]] = {}
    for row, annotation in enumerate(annotations):
        where = f"{path}, annotations#{row}"
        image_id, corners, caption = fields(annotation, ("image_id", "bbox", "caption"), where)
        if image_id not in file_names:
            raise unknown_image(where, image_id)
        name = str(annotation.get("id", row))
        box, image_file = box_of_xywh(corners, where), find_image(folder, file_names[image_id])
        query = Query(image_file, source.question or QUESTION, box[None], id=name)
        of_image.setdefault(file_names[image_id], []).append(Item(name, query, (str(caption),)))
    return [item for items in source.choose(list(of_image.values())) for item in items]


BENCHMARKS = {"vg": Benchmark("Visual Genome region captions", ("test",), load, score_texts)}
