"""Ref-L4: long descriptions of regions.

Source    JierunChen/Ref-L4 on the hub: ref-l4-{val,test}.parquet (id, caption, bbox, image_id, file_name, …; bbox is
          x, y, width, height); its images.tar.gz unpacked.
Split     test (default), val, all.
Prompt    our own wording [guess]: those who reuse its texts as captions do not state one.
Metric    CIDEr, METEOR, ROUGE-L, BLEU, SPICE where its files are; CLAIR with a judge, against all captions of a box.
Protocol  both: "one reference per expression" and "all references of a box" (same image and corners). The data
          set itself is made for finding boxes; captions are how DAM and PixelRefer use it.
Pitfalls  texts are long (24 words on average): short answers lose on CIDEr's length penalty. Two sources of images
          (COCO, Objects365) lie in one archive; `file_name` is the path inside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks.referring_expressions import both_protocols
from gpt4roi.evaluation.files import fields, find_annotations, find_images
from gpt4roi.evaluation.items import Benchmark, Item, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.io.coco import InvalidAnnotationError, annotation_box, annotation_xywh, frame_clues

SPLITS = ("test", "val", "all")
QUESTION = "Describe <region1> in detail, so that it cannot be taken for anything else."


def load(source: Source) -> list[Item]:
    """Returns one item for each box, its references all captions of the box."""
    split = source.split or SPLITS[0]
    names = ("val", "test") if split == "all" else (split,)
    paths = [find_annotations(source, (f"ref-l4-{name}.parquet",)) for name in names]
    find = find_images(source, (paths[0].parent / "images", paths[0].parent))
    of_image: dict[str, dict[str, Item]] = {}
    for path in dict.fromkeys(paths):
        for where, record in _rows(path):
            file_name, _, caption = fields(record, ("file_name", "bbox", "caption"), where)
            try:
                box = np.asarray(annotation_box(record))
            except InvalidAnnotationError as error:
                source.leave_out(f"{where}: {error}")
                continue
            name = f"{file_name}:{','.join(f'{value:g}' for value in annotation_xywh(record))}"
            found = of_image.setdefault(file_name, {})
            if name in found:
                found[name] = replace(found[name], references=(*found[name].references, str(caption)))
            else:
                image = find(file_name)
                query = Query(image, source.question or QUESTION, box[None], id=name)
                found[name] = Item(name, query, (str(caption),), clues=frame_clues(record))
    return [item for found in source.choose(list(of_image.values())) for item in found.values()]


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: reading parquet needs pyarrow; pip install 'gpt4roi[eval]'") from None
    try:
        records = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise InputError(f"{path}: no parquet file: {str(error).splitlines()[0]}") from None
    yield from ((f"{path}#{row}", record) for row, record in enumerate(records))


BENCHMARKS = {"ref-l4": Benchmark("Ref-L4 descriptions", SPLITS, load, both_protocols, judge="optional")}
