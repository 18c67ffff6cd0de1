"""The embedded data set as a benchmark.

Source: `gpt4roi data make-stamps`. Splits: test (scenes on photographs never used in training) and test_unseen (things
never shown in training). Every question is asked by itself, greedily. Right means the same words (case and punctuation
do not count). Controls, each of which a model that looks elsewhere would fail (the last two for half of the questions):
    permuted  the regions of a scene exchange their boxes: the answer must follow the box, not the number
    blank     every region has the same embedding, the mean: the picture and the words alone must not suffice
    swapped   the two regions of a relation exchange their boxes: the answer must flip
Pitfall: seen things are the very drawings of the training scenes; only place, size, order and background are new.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt4roi.evaluation.asking import Answerer, ModelAnswerer
from gpt4roi.evaluation.stamps.items import Item, known_kinds, load_items
from gpt4roi.evaluation.stamps.page import write_page
from gpt4roi.evaluation.stamps.scores import score

logger = logging.getLogger(__name__)


def evaluate_stamps(
    model: Any,
    processor: Any,
    data_dir: str | Path,
    out_dir: str | Path,
    batch_size: int = 64,
    limit: int | None = None,
    facts: dict | None = None,
) -> dict:
    """Asks everything, writes metrics.json, predictions.jsonl and report.html into out_dir, and returns the metrics.

    limit: only the first scenes of each split. facts: what else belongs into metrics.json and the report, such as the
    command, or `phases`, minutes by phase. Raises InputError where data_dir holds no such data set.
    """
    return evaluate_answerer(ModelAnswerer(model, processor, batch_size), data_dir, out_dir, limit, facts)


def evaluate_answerer(
    answer: Answerer, data_dir: str | Path, out_dir: str | Path, limit: int | None = None, facts: dict | None = None
) -> dict:
    """Does the same for anything that answers."""
    started = time.monotonic()
    data_dir, out_dir = Path(data_dir), Path(out_dir)
    items = load_items(data_dir, limit)
    answers = answer([item.ask for item in items])
    items = [replace(item, answer=text) for item, text in zip(items, answers, strict=True)]
    metrics = score(items, known_kinds(data_dir))
    metrics |= {"benchmark": "stamps", "data": str(data_dir), "seconds": round(time.monotonic() - started, 1)}
    metrics |= {"limit": limit, **(facts or {})} | _notes(data_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    with (out_dir / "predictions.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(_record(item), ensure_ascii=False) + "\n" for item in items)
    write_page(out_dir / "report.html", metrics, items)
    logger.info("%d questions in %.0f s; see %s", len(items), metrics["seconds"], out_dir / "report.html")
    return metrics


def _notes(data_dir: Path) -> dict:
    """Returns what the data set says of itself and a reader of the numbers must know."""
    path = data_dir / "manifest.json"
    if not path.exists():
        return {}
    manifest = json.loads(path.read_text(encoding="utf-8"))
    return {"data_notes": manifest.get("notes", []), "data_arguments": manifest.get("arguments", {})}


def _record(item: Item) -> dict:
    fields = {"split": item.split, "scene": item.scene, "task": item.task, "control": item.control}
    fields |= {"picture": str(item.ask.picture), "boxes": item.ask.boxes_px.tolist()}
    fields |= {"question": item.ask.question, "answer": item.answer, "truth": item.truth, "right": item.right}
    return fields | ({"given": item.given} if item.given is not None else {})
