"""RefCOCO, RefCOCO+ and RefCOCOg captions; also the reader of all of MDETR's files.

Source    MDETR's finetune_NAME_SPLIT.json; images of COCO train2014, flat.
Split     RefCOCO and RefCOCO+: testA (people, default), testB (other things), val: UNC's. RefCOCOg: val (default),
          test: the UMD split, as MDETR has it.
Prompt    RefCOCO and RefCOCO+: our own wording of the field's [guess]: independent measurements of GPT4RoI do not state
          theirs. RefCOCOg: GLaMM's, since the paper states none for this set [guess that the original used a similar
          one].
Metric    CIDEr, METEOR, BLEU, ROUGE-L (pycocoevalcap).
Protocol  both, and the table says which: "one reference per expression" (GLaMM, Osprey: an entry of the file is an
          item) and "all references of a box". A box is asked about once and its answer counts for each expression.
Pitfalls  RefCOCO's expressions are two or three words ("left man"): a full sentence scores low whatever it says, so
          models that describe at length look worse than they are. On RefCOCOg papers differ by about 5 points of
          METEOR at equal CIDEr, probably because of the protocol [guess]. Images occur in COCO train2017 and in Visual
          Genome, so check what a model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpt4roi.evaluation.files import fields, find_annotations, find_images, usable_boxes
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_texts
from gpt4roi.io.coco import annotation_xywh, read_tables
from gpt4roi.io.json_files import read_json

COCO_FOLDERS = ("coco_all", "coco_imgs", "coco/train2014", "coco/train2017", "train2014", "images")


SHORT_QUESTION = "In a few words, how would you refer to <region1>?"
DETAILED_QUESTION = "Can you provide me with a detailed description of the region in the image marked by <region1>?"
both_protocols = partial(score_texts, both_protocols=True)


def read_boxes(
    source: Source, path: Path, folders: Sequence[str], question: str, text_of: Callable[[dict, dict], str | None]
) -> list[Item]:
    """Returns one item for each box of the chosen images.

    folders: where images usually lie, beside the annotations or one folder up. text_of: the reference that an entry
    and its annotation give, None for none. Boxes are the same where image and corners are.
    """
    tables = read_tables(read_json(path), path)
    roots = (path.parent, path.parent.parent)
    find = find_images(source, (root / name for root in roots for name in folders))
    found: dict[str, dict[str, Item]] = {}
    for where, image, annotation, box, clues in usable_boxes(source, tables, path):
        file_name, _ = fields(image, ("file_name", "caption"), f"{where}, image {image['id']}")
        text = text_of(image, annotation)
        if not text or not text.strip():
            continue
        name = f"{Path(file_name).stem}:{','.join(f'{value:g}' for value in annotation_xywh(annotation))}"
        of_image = found.setdefault(file_name, {})
        if name in of_image:
            of_image[name] = replace(of_image[name], references=(*of_image[name].references, text.strip()))
        else:
            query = Query(find(file_name), question, box[None], id=name)
            of_image[name] = Item(name, query, (text.strip(),), clues=clues)
    return [item for of_image in source.choose(list(found.values())) for item in of_image.values()]


def _captions(title: str, name: str, splits: tuple[str, ...], question: str) -> Benchmark:
    def load(source: Source) -> list[Item]:
        file_name = f"finetune_{name}_{source.split or splits[0]}.json"
        path = find_annotations(source, (file_name, f"mdetr_annotations/{file_name}"))
        question_now = source.question or question
        return read_boxes(source, path, COCO_FOLDERS, question_now, lambda image, _: str(image["caption"]))

    return Benchmark(title, splits, load, both_protocols, judge="optional")


BENCHMARKS = {
    "refcoco": _captions("RefCOCO captions", "refcoco", ("testA", "testB", "val"), SHORT_QUESTION),
    "refcoco+": _captions("RefCOCO+ captions", "refcoco+", ("testA", "testB", "val"), SHORT_QUESTION),
    "refcocog": _captions("RefCOCOg captions", "refcocog", ("val", "test"), DETAILED_QUESTION),
}
