"""Flickr30k Entities: phrases for regions.

Source    MDETR's final_flickr_mergedGT_SPLIT.json; the images of Flickr30k, flat.
Split     test (default), val.
Prompt    our own wording [guess]: who measured GPT4RoI here (DAM) does not state one for box models.
Metric    BLEU, METEOR, ROUGE-L, CIDEr, SPICE where its files are (pycocoevalcap).
Protocol  both: "one reference per expression" (each phrase of each of the up to five sentences) and "all references of
          a box". A phrase is the first span of `tokens_positive`, as the original reads it.
Pitfalls  a sentence of an image is an entry of its own, so an image occurs up to five times; the same box is found
          by its corners. Which protocol published numbers use is not stated [guess: all references].
"""

from __future__ import annotations

from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks.referring_expressions import both_protocols, read_boxes
from gpt4roi.evaluation.files import find_annotations
from gpt4roi.evaluation.items import Benchmark, Item, Source

SPLITS = ("test", "val")
QUESTION = "Please give a short phrase for <region1>."
FOLDERS = ("flickr30k-images", "flickr30k_images", "images")


def load(source: Source) -> list[Item]:
    """Returns one item for each box."""
    file_name = f"final_flickr_mergedGT_{source.split or SPLITS[0]}.json"
    path = find_annotations(source, (file_name, f"mdetr_annotations/{file_name}"))
    return read_boxes(source, path, FOLDERS, source.question or QUESTION, _phrase)


def _phrase(image: dict, annotation: dict) -> str | None:
    spans = annotation.get("tokens_positive") or []
    if not spans:
        return None
    try:
        start, end = spans[0]
        return str(image["caption"])[int(start) : int(end)]
    except (TypeError, ValueError):
        raise InputError(
            f"image {image.get('id')}: expected tokens_positive [[start, end], …], got {spans!r:.60}"
        ) from None


BENCHMARKS = {"flickr30k": Benchmark("Flickr30k Entities", SPLITS, load, both_protocols, judge="optional")}
