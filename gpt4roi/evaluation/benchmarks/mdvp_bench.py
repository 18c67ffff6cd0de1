"""MDVP-Bench: descriptions and questions about regions of photographs, documents, panels and screenshots.

Source    MDVP-Bench of SPHINX-V: one JSON list a part, PART.json, of `image`, `bbox` (boxes in pixels) and
          `conversations`, a question and the answer of GPT-4V [guess: the fields' names, after its training data].
Split     all (default), or one file by its name: natural, ocr_doc, ocr_spotting, multi_panel, android, web.
Prompt    the question of the file; `<region>` in it stands for a region, otherwise regions are introduced before it.
Metric    100 · sum of the judge's ratings of the answers / sum of those of the references; by part, and their mean.
Protocol  the judge, GPT-4o in the papers, sees the image with the regions drawn into it (`--judge-model` must take
          images). The judge's prompt is in our own words [guess].
Pitfalls  a ratio to a model's own answers: above 100 where the judge prefers the candidate. Points of the original are
          not asked, as this is a model of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpt4roi.errors import InputError
from gpt4roi.evaluation.files import fields, find_images, mention_regions, read_regions
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from gpt4roi.evaluation.predictor import Query
from gpt4roi.evaluation.scoring import score_pairs
from gpt4roi.io.json_files import read_json
from gpt4roi.processing.user_input import open_image
from gpt4roi.report.drawing import draw_boxes, jpeg_data_url

PARTS = ("natural", "ocr_doc", "ocr_spotting", "multi_panel", "android", "web")
SIDE = 768
"""Pixels of the longer side of what the judge sees."""


def load(source: Source) -> list[Item]:
    """Returns one item for each question."""
    wanted = PARTS if source.split in (None, "all") else (str(source.split),)
    paths = {part: source.data / f"{part}.json" for part in wanted if (source.data / f"{part}.json").is_file()}
    if not paths:
        raise InputError(f"--data {source.data}: the folder has no {' or '.join(f'{part}.json' for part in wanted)}")
    find = find_images(source, (source.data / "images", source.data))
    items = []
    for part, path in paths.items():
        for row, record in source.choose(list(enumerate(read_json(path)))):
            where = f"{path}#{row}"
            file_name, turns = fields(record, ("image", "conversations"), where)
            question, answer = (str(fields(turn, ["value"], where)[0]) for turn in turns[:2])
            boxes = read_regions(record, where)
            text = mention_regions(question.replace("<image>", "").strip(), len(boxes), where)
            query = Query(find(str(file_name)), text, boxes, id=f"{part}:{row}")
            items.append(Item(query.id, query, (answer,), part, shown=0 if len(boxes) == 1 else None))
    return items


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores by a judge that sees the regions drawn."""
    images = [
        jpeg_data_url(draw_boxes(open_image(item.query.image), item.query.boxes_px.tolist()), SIDE) for item in items
    ]
    return score_pairs(items, source, images)


BENCHMARKS = {"mdvp-bench": Benchmark("MDVP-Bench", ("all", *PARTS), load, score, max_new_tokens=512, judge="required")}
