"""The embedded data set as a benchmark.

Source    `gpt4roi data make-stamps`.
Split     test (scenes on photographs never used in training), test_unseen (things never shown in training) and
          test_photographs (regions of photographs that carry no training region), all; and where
          `python -m quickstart.overlapping` made it, test_overlapping (masks of things that lie on each other).
Prompt    the data set's own questions, each asked by itself, greedily.
Metric    right means the same words (case and punctuation do not count); of photographs, and of things never shown,
          an answer is accepted where it holds one of the names listed; CIDEr and word overlap of captions.
Protocol  controls, each of which a model that looks elsewhere would fail (the last two for half of the questions):
          permuted  the regions of a scene exchange their boxes: the answer must follow the box, not the number
          blank     every region has the same embedding, the mean over the regions that are asked about together: the
                    image and the words alone must not suffice
          swapped   the two regions of a relation exchange their boxes: the answer must flip
Ceiling   of photographs: the vision tower's own classifier on the same boxes, recorded as the data were made.
Pitfalls  seen things are the very drawings of the training scenes; only place, size, order and background are new.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source
from quickstart.benchmark import items as stamps
from quickstart.benchmark.html_report import LEAD, galleries, key_figures, tables
from quickstart.benchmark.scores import figures, measures_of


def load(source: Source) -> list[Item]:
    """Returns the questions of all splits and their controls."""
    return [_as_item(stamp) for stamp in stamps.load_items(source)]


def _as_item(stamp: stamps.Item) -> Item:
    metadata: dict[str, Any] = {
        "split": stamp.split,
        "scene": stamp.scene,
        "control": stamp.control,
        "truth": stamp.truth,
    }
    metadata |= {"stamp": stamp} | ({"given": stamp.given} if stamp.given is not None else {})
    shown = stamp.regions[0] if stamp.task == "caption" else None
    references = stamp.accepted if stamp.split == stamps.PHOTOGRAPHS else (stamp.truth,)
    return Item(stamp.id, stamp.query, references, stamp.task, shown=shown, metadata=metadata)


def score(items: Sequence[Item], source: Source) -> Scores:
    """Scores captions, relations, controls, things never shown and photographs."""
    answered = [replace(item.metadata["stamp"], answer=item.answer, confidence=item.confidence) for item in items]
    found, notes = measures_of(answered)
    right = [stamp.right for stamp in answered]
    per_item = [{"right" if one.split == stamps.PHOTOGRAPHS else "exact": float(one.right)} for one in answered]
    details = figures(answered, stamps.known_kinds(source.data)) | _of_data(source.data)
    return Scores(found, per_item, list(right), {}, notes, details, tuple(found)[:4])


def _of_data(data_dir: Path) -> dict:
    """Returns what the data set says of itself and a reader of the numbers must know."""
    path = data_dir / "manifest.json"
    if not path.exists():
        return {}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return {"data_notes": manifest.get("notes", []), "data_arguments": manifest.get("arguments", {})}


BENCHMARK = Benchmark(
    "Regions on held-out scenes and photographs",
    ("test, test_unseen and test_photographs",),
    load,
    score,
    max_new_tokens=24,
    # Scenes are small: all are encoded together, and the mean region of `blank` is the mean over all of them.
    image_batch_size=1024,
    lead=LEAD,
    key_figures=key_figures,
    tables=tables,
    galleries=galleries,
)
