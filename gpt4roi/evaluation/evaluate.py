"""Evaluation of a model on a benchmark, from data to predictions.jsonl, metrics.json and report.html."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from gpt4roi.distributed import DistributedContext
from gpt4roi.errors import InputError
from gpt4roi.evaluation.benchmarks import benchmark_name, open_benchmark
from gpt4roi.evaluation.compare import compare_runs, read_run
from gpt4roi.evaluation.html_report import worst_heatmaps, write_page
from gpt4roi.evaluation.items import Benchmark, Item, Scores, Source, count_references
from gpt4roi.evaluation.metrics import BOOTSTRAP_DRAWS, BOOTSTRAP_SEED
from gpt4roi.evaluation.predictions import KEPT, predict_all
from gpt4roi.evaluation.predictor import Predictor
from gpt4roi.geometry.frames import ImageHeader
from gpt4roi.geometry.masks import cut_raster
from gpt4roi.io.atomic import atomic_write_text, written_together
from gpt4roi.io.coco import cut_box
from gpt4roi.io.json_files import as_json, write_json
from gpt4roi.processing.images import read_header
from gpt4roi.structures import accepts_old_names

logger = logging.getLogger(__name__)

NAMED = 5
"""How many of what is left out are named."""


@accepts_old_names(facts="metadata", world="context")
def evaluate(
    name: str,
    predictor: Predictor,
    source: Source,
    out_dir: str | Path,
    *,
    metadata: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    compare: str | Path | None = None,
    context: DistributedContext | None = None,
    fresh: bool = False,
    items: list[Item] | None = None,
    explain: int = 0,
) -> dict[str, Any] | None:
    """Asks everything, writes the files into out_dir and returns the metrics; None in all processes but the first.

    Args:
        name: Of the benchmark, as in BENCHMARKS, or its file.
        predictor: A ModelPredictor or anything else that answers queries.
        source: Where the data lie.
        out_dir: Gets predictions.jsonl, metrics.json and report.html.
        metadata: What else belongs into metrics.json and the report, such as the command, or `phases`, minutes by
            phase.
        settings: What answers depend on beside the questions, such as the model's fingerprint; answers journaled under
            other settings are not used.
        compare: metrics.json of another run, or its folder.
        context: The processes that share the work.
        fresh: Asks again what was answered before.
        items: What read_items returned, where it was called before.
        explain: The report shows where so many of the worst answers looked; the predictor then has `explain`.

    Raises:
        InputError: The data cannot be used.
    """
    started = time.monotonic()
    out_dir, context = Path(out_dir), context or DistributedContext()
    benchmark, file = open_benchmark(name), {"benchmark_file": name} if name.endswith(".py") else {}
    other = None if compare is None else read_run(compare, benchmark_name(name))
    items = read_items(name, source) if items is None else items
    make_folder(out_dir)
    name = benchmark_name(name)
    settings = {"benchmark": name, **(settings or {})}
    queries = [item.query for item in items]
    predictions = predict_all(queries, predictor, out_dir, settings, context, fresh, benchmark.image_batch_size)
    if context.rank != 0:
        return None
    items = [
        replace(
            item,
            answer=found.answer,
            likelihoods=found.likelihoods,
            error=found.error,
            confidence=found.confidence,
        )
        for item, found in zip(items, predictions, strict=True)
    ]
    scores = benchmark.score(items, source)
    metrics = assemble(name, benchmark, source, items, scores)
    metrics |= file | {"seconds": round(time.monotonic() - started, 1), "processes": context.size, **(metadata or {})}
    if other is not None:
        metrics["compared"] = compare_runs(benchmark, source, items, other)
    heatmaps, failed = worst_heatmaps(items, scores, predictor, explain)
    if failed:
        metrics["notes"].append(f"{len(failed)} answers could not be explained: {failed[0]}")
    with written_together():
        write_predictions(out_dir / "predictions.jsonl", items, scores)
        write_json(out_dir / "metrics.json", metrics, 1, KEPT)
        write_page(out_dir / "report.html", benchmark, metrics, items, scores, other, heatmaps)
    for note in metrics["notes"]:
        logger.warning("%s", note)
    logger.info("%d questions in %.0f s; see %s", len(items), metrics["seconds"], out_dir / "report.html")
    return metrics


def read_items(name: str, source: Source) -> list[Item]:
    """Reads what a benchmark asks. Raises InputError where the data cannot be used, before any model is opened."""
    benchmark = open_benchmark(name)
    if source.split is not None and source.split not in benchmark.splits:
        raise InputError(f"--split {source.split}: {name} has {', '.join(benchmark.splits)}")
    if benchmark.judge == "required" and source.judge is None:
        raise InputError(f"--benchmark {name} asks a judge: give --judge URL and --judge-model NAME")
    if benchmark.judge == "never" and source.judge is not None:
        raise InputError(f"--judge: {name} asks no judge; leave it out")
    source.restart()
    items = with_usable_boxes(benchmark.load(source), source)
    for reason in source.left_out[:NAMED]:
        logger.warning("left out: %s", reason)
    if len(source.left_out) > NAMED:
        logger.warning("left out: %d more", len(source.left_out) - NAMED)
    check_images(items, source)
    return items


def with_usable_boxes(items: Sequence[Item], source: Source) -> list[Item]:
    """Returns the items whose boxes have area inside their image, cut at its border; leaves out the others.

    Boxes are then of the image as it is seen upright.
    """
    headers: dict[Path, ImageHeader | None] = {}
    counted: set[Path] = set()
    usable = []
    for item in items:
        image, boxes_px, masks = item.query.image, item.query.boxes_px, item.query.masks
        if image not in headers:
            headers[image] = _header(image)
        header = headers[image]
        try:
            placed = None if header is None or not len(boxes_px) else source.rule.place(header, item.clues, image.name)
            cuts = [cut_box(box, placed.box_size if placed else None) for box in boxes_px.tolist()]
            placements = zip(masks, boxes_px, cuts, strict=False)  # without a mask there are none
            masks = tuple(None if mask is None else cut_raster(mask, box, cut) for mask, box, (cut, _) in placements)
        except InputError as error:
            source.leave_out(f"{item.id} ({image}): {error}")
            continue
        boxes_px = np.asarray([box for box, _ in cuts], dtype=np.float64).reshape(-1, 4)
        source.clipped.extend(f"{item.id} ({image})" for _, is_cut in cuts if is_cut)
        if placed is not None:
            boxes_px, masks = placed.upright(boxes_px), tuple(map(placed.upright_mask, masks))
            source.frames.add(() if image in counted else placed.remarks(), image.name)
            counted.add(image)
        usable.append(replace(item, query=replace(item.query, boxes_px=boxes_px, masks=masks)))
    return usable


def _header(image: Path) -> ImageHeader | None:
    """Returns the header of an image; None where it does not open, which is told later."""
    try:
        return read_header(str(image))
    except InputError:
        return None


def box_notes(source: Source) -> list[str]:
    """Returns what was done to boxes before they were asked about: the frames of their images, cuts at the border."""
    notes = [source.frames.text()] * bool(source.frames.text())
    notes += [f"left out by the benchmark's rules: {what}: {count}" for what, count in source.filtered.items()]
    if source.clipped:
        what = "boxes reached out of their image and were cut at its border"
        notes.append(f"{len(source.clipped)} {what}, such as {source.clipped[0]}")
    return notes


def check_images(items: Sequence[Item], source: Source) -> None:
    """Raises InputError where nothing is asked, or where most images are not there; a few missing ones are logged."""
    if not items:
        first = f"; {len(source.left_out)} left out, the first: {source.left_out[0]}" if source.left_out else ""
        raise InputError(f"there is nothing to ask: the data hold no question (or --limit leaves none){first}")
    images = list(dict.fromkeys(item.query.image for item in items))
    missing = [image for image in images if not image.is_file()]
    if len(missing) * 2 > len(images):
        raise InputError(
            f"{len(missing)} of {len(images)} images are not there, {missing[0]} among them; give --images DIR"
        )
    if missing:
        logger.warning("%d of %d images are not there, such as %s", len(missing), len(images), missing[0])


def assemble(name: str, benchmark: Benchmark, source: Source, items: Sequence[Item], scores: Scores) -> dict[str, Any]:
    """Returns what goes into metrics.json: figures with intervals, and all that is needed to repeat them."""
    unanswered = [item for item in items if item.error]
    notes = list(scores.notes)
    if unanswered:
        notes.insert(0, f"{len(unanswered)} questions were not answered and count as wrong: {unanswered[0].error}")
    if source.left_out:
        notes.insert(0, f"{len(source.left_out)} left out, such as {source.left_out[0]}")
    notes += box_notes(source)
    given = {key: getattr(source, key) for key in ("data", "images", "question", "sentence_model")}
    estimates = {key: measure.estimate().to_dict() for key, measure in scores.measures.items()}
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    return {
        "benchmark": name,
        "title": benchmark.title,
        "split": source.split or benchmark.splits[0],
        "summary": {key: estimate["value"] for key, estimate in estimates.items()},
        "estimates": estimates,
        "by_task": {
            task: {key: measure.estimate().to_dict() for key, measure in measures.items()}
            for task, measures in scores.by_task.items()
        },
        "items": len(items),
        "pictures": len({item.group for item in items}),
        "references_per_item": count_references(items),
        "unanswered": len(unanswered),
        "left_out": len(source.left_out),
        "cut": len(source.clipped),
        "frames": source.frames.as_dict(),
        **scores.details,
        "notes": notes,
        "main": list(scores.main),
        **{key: value if value is None else str(value) for key, value in given.items()},
        **asdict(source.rule),
        "limit": source.limit,
        "shuffle": source.shuffle,
        "bootstrap": {"draws": BOOTSTRAP_DRAWS, "seed": BOOTSTRAP_SEED, "unit": "picture", "interval": 0.95},
        "decoding": "greedy",
        "versions": versions | {"numpy": np.__version__},
    }


def write_predictions(path: Path, items: Sequence[Item], scores: Scores) -> None:
    """Writes one line for each item: question, references, answer, scores."""
    lines = []
    for item, row, right in zip(items, scores.per_item, scores.right, strict=True):
        fields: dict[str, Any] = {
            "id": item.id,
            "picture": str(item.query.image),
            "boxes": item.query.boxes_px.tolist(),
        }
        fields |= {"question": item.query.question, "references": list(item.references), "answer": item.answer}
        fields |= {"scores": row} | ({"right": right} if right is not None else {})
        optional: dict[str, Any] = {"task": item.task, "options": list(item.options), "label": item.label}
        optional |= {"error": item.error, "likelihoods": item.likelihoods, "confidence": item.confidence}
        fields |= {key: value for key, value in optional.items() if value not in (None, "", [])}
        fields |= {key: value for key, value in item.metadata.items() if isinstance(value, str | int | float)}
        lines.append(as_json(fields) + "\n")
    atomic_write_text(path, "".join(lines), KEPT)


def make_folder(folder: Path) -> None:
    """Makes a folder where there is none. Raises InputError where that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made: {error.strerror or error}; give another folder") from None
