"""Benchmarks: each is a short module that states its source, split, prompt, metric, protocol and pitfalls at the top.

A module has TITLE, SPLITS (the first is the default), `load(source) -> list[Item]` and
`score(items, source) -> Scores`. `[guess]` marks what no source states. A benchmark that another model judges would be
such a module too, whose `score` asks the judge; there is none yet.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

BENCHMARKS = {
    "coco": "coco_classes",
    "coco-two-way": "coco_two_way",
    "flickr30k": "flickr30k",
    "lvis": "lvis",
    "lvis-classes": "lvis_classes",
    "lvis-two-way": "lvis_two_way",
    "paco": "paco",
    "ref-l4": "ref_l4",
    "refcoco": "refcoco",
    "refcoco+": "refcoco_plus",
    "refcocog": "refcocog",
    "stamps": "stamps",
    "v7w-pointing": "v7w_pointing",
    "v7w-telling": "v7w_telling",
    "vcr": "vcr",
    "vg": "visual_genome",
}
"""What a benchmark is called on the command line, and its module here."""


def open_benchmark(name: str) -> ModuleType:
    """Imports the module of one benchmark."""
    return import_module(f"{__name__}.{BENCHMARKS[name]}")
