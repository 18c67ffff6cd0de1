"""Visual7W's files: images with their questions, each with one right answer and three wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.evaluation.files import fields, find_annotations, find_images
from gpt4roi.evaluation.items import Source
from gpt4roi.io.json_files import read_json

FOLDERS = ("visual7w_images", "images")
_SEED = 0


def read_questions(
    source: Source, names: tuple[str, ...], split: str
) -> tuple[dict, Path, Iterator[tuple[Path, dict]]]:
    """Returns the file's content, its folder, and every question of the chosen images with its image."""
    path = find_annotations(source, names)
    content = read_json(path)
    (images,) = fields(content, ["images"], str(path))
    folder = find_images(source, (path.parent / name for name in FOLDERS))
    of_split = [image for image in images if fields(image, ("split", "filename"), str(path))[0] == split]

    def questions() -> Iterator[tuple[Path, dict]]:
        for image in source.choose(of_split):
            for pair in fields(image, ["qa_pairs"], f"{path}, {image['filename']}")[0]:
                fields(pair, ("qa_id", "question", "answer", "multiple_choices"), f"{path}, {image['filename']}")
                yield folder / image["filename"], pair

    return content, path.parent, questions()


def mix(pair: dict) -> tuple[list[Any], int]:
    """Returns the candidates in an order that is drawn for the question, and the place of the right one."""
    candidates = [pair["answer"], *pair["multiple_choices"]]
    order = np.random.default_rng([_SEED, int(pair["qa_id"])]).permutation(len(candidates)).tolist()
    return [candidates[place] for place in order], order.index(0)
