"""Asks all questions of a benchmark: in chunks, kept as they come, shared among processes.

A chunk is some whole images with their questions; a model of ours answers it in batches. Which questions stand
together depends on the questions alone, so neither a kill nor the number of processes changes an answer. Every process
appends its batches to a file of its own; what lies there when a run starts again is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt4roi.distributed import DistributedContext
from gpt4roi.errors import InputError
from gpt4roi.evaluation.predictor import ModelPredictor, Predictor, Query
from gpt4roi.io.atomic import append_lines, readable_write_errors
from gpt4roi.io.json_files import as_json

logger = logging.getLogger(__name__)

IMAGE_BATCH_SIZE = 32
QUESTIONS_AT_ONCE = 8192
KEPT = "the answers so far are kept"
_SECONDS_BETWEEN_WORDS = 10


@dataclass(frozen=True)
class Prediction:
    """What came back for one question; error: why nothing did."""

    answer: str
    likelihoods: tuple[float, ...] | None = None
    error: str = ""


def predict_all(
    queries: Sequence[Query],
    answer: Predictor,
    folder: Path,
    settings: dict[str, Any],
    world: DistributedContext | None = None,
    fresh: bool = False,
    image_batch_size: int = IMAGE_BATCH_SIZE,
) -> list[Prediction]:
    """Returns a prediction to every question, in order, to every process.

    folder: gets `answers-<key>/<rank>.jsonl`; the key stands for questions and settings, so that answers to other
    questions or of another model are never taken for these. fresh: forgets what is kept there.
    image_batch_size: how many make a chunk. Raises InputError where ids are not unique, and where the disk is full:
    what was answered before stays.
    """
    world = world or DistributedContext()
    numbers = {query.id: number for number, query in enumerate(queries)}
    if len(numbers) != len(queries):
        raise InputError(f"{len(queries) - len(numbers)} of {len(queries)} questions have the id of another")
    kept = folder / f"answers-{run_key(queries, {**settings, 'image_batch_size': image_batch_size})}"
    if fresh and world.local_rank == 0:
        shutil.rmtree(kept, ignore_errors=True)
    world.all_gather(None)
    with readable_write_errors(kept, KEPT):
        kept.mkdir(parents=True, exist_ok=True)
    known: dict[str, Prediction] = {}
    for found in world.all_gather(read_predictions(kept)):
        known |= found
    chunks = [
        chunk
        for chunk in chunk_by_image(queries, image_batch_size)
        if not all(queries[number].id in known for number in chunk)
    ]
    if known and chunks:
        logger.info("going on: %d of %d answers are there", len(known), len(queries))
    # Few chunks are shared batch by batch, many chunk by chunk, which spares looking at images twice.
    together = len(chunks) < world.size
    own = chunks if together else chunks[world.rank :: world.size]
    share = BatchShard(frozenset(known), world.rank if together else 0, world.size if together else 1)
    new: dict[str, Prediction] = {}
    progress = Progress(sum(queries[number].id not in known for chunk in own for number in chunk), world)
    for chunk in own:
        for predictions in predict_chunk([queries[number] for number in chunk], answer, share):
            new |= predictions
            lines = "".join(_line(name, prediction) for name, prediction in predictions.items())
            append_lines(kept / f"{world.rank}.jsonl", lines, KEPT)
            progress.done(len(predictions))
    for found in world.all_gather(new):
        known |= found
    return [known[query.id] for query in queries]


class BatchShard:
    """Which batches of questions are this process's: of those not wholly known, every so many-th."""

    def __init__(self, known: Collection[str] = (), rank: int = 0, size: int = 1) -> None:
        self.known, self.rank, self.size = known, rank, size
        self.open = 0

    def wants(self, names: Sequence[str]) -> bool:
        """Tells whether a batch with these ids is to be answered here; asked about all batches, in order."""
        if all(name in self.known for name in names):
            return False
        self.open += 1
        return (self.open - 1) % self.size == self.rank


def run_key(queries: Sequence[Query], settings: dict[str, Any]) -> str:
    """Returns a name for these questions under these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for query in queries:
        asked = [query.id, str(query.image), query.question, query.boxes_px.tolist(), query.blank, query.choices]
        digest.update(json.dumps(asked).encode())
    return digest.hexdigest()[:12]


def chunk_by_image(queries: Sequence[Query], image_batch_size: int = IMAGE_BATCH_SIZE) -> list[list[int]]:
    """Returns the indices of the questions in chunks: whole images, in the order of their first question."""
    of_image: dict[Path, list[int]] = {}
    for number, query in enumerate(queries):
        of_image.setdefault(query.image, []).append(number)
    chunks: list[list[int]] = []
    images = 0
    for members in of_image.values():
        if not chunks or images == image_batch_size or len(chunks[-1]) + len(members) > QUESTIONS_AT_ONCE:
            chunks.append([])
            images = 0
        chunks[-1] += members
        images += 1
    return chunks


def predict_chunk(queries: Sequence[Query], answer: Predictor, share: BatchShard) -> Iterator[dict[str, Prediction]]:
    """Yields predictions by id; where something cannot be used, the questions about its image carry the reason."""
    try:
        yield from _predictions(queries, answer, share)
        return
    except InputError as error:
        images = list(dict.fromkeys(query.image for query in queries))
        if len(images) == 1:
            logger.warning("not answered: %s", error)
            yield {query.id: Prediction("", error=str(error)) for query in queries}
            return
    for image in images:  # by every process alike: then nobody waits for what another could not use
        yield from predict_chunk([query for query in queries if query.image == image], answer, BatchShard())


def _predictions(queries: Sequence[Query], answer: Predictor, share: BatchShard) -> Iterator[dict[str, Prediction]]:
    if not isinstance(answer, ModelPredictor):
        if share.wants([query.id for query in queries]):
            yield _joined(queries, answer(queries), answer)
        return
    for batch, texts in answer.in_batches(queries, lambda batch: share.wants([queries[number].id for number in batch])):
        yield _joined([queries[number] for number in batch], texts, answer)


def _joined(queries: Sequence[Query], texts: Sequence[str], answer: Predictor) -> dict[str, Prediction]:
    if len(texts) != len(queries):
        raise ValueError(f"{len(texts)} answers to {len(queries)} questions; expected one for each, in order")
    of_choices = [query for query in queries if query.choices]
    likely: dict[str, Sequence[float]] = {}
    if of_choices and hasattr(answer, "likelihoods"):
        likely = dict(zip((query.id for query in of_choices), answer.likelihoods(of_choices), strict=True))
    return {
        query.id: Prediction(str(text), tuple(map(float, likely[query.id])) if query.id in likely else None)
        for query, text in zip(queries, texts, strict=True)
    }


class Progress:
    """Says every few seconds how far this process is and how long it will take; only the first process speaks."""

    def __init__(self, total: int, world: DistributedContext) -> None:
        self.total, self.world = total, world
        self.count, self.started, self.said = 0, time.monotonic(), 0.0

    def done(self, number: int) -> None:
        """Counts answers."""
        self.count += number
        passed = time.monotonic() - self.started
        if self.world.rank == 0 and (passed - self.said > _SECONDS_BETWEEN_WORDS or self.count == self.total):
            self.said, rate = passed, self.count / max(passed, 1e-9)
            left = max(self.total - self.count, 0) / rate
            logger.info("answered %d of %d, %.1f a second, %.0f s left", self.count, self.total, rate, left)


def _line(name: str, prediction: Prediction) -> str:
    fields: dict[str, Any] = {"id": name, "answer": prediction.answer}
    if prediction.likelihoods is not None:
        fields["likelihoods"] = list(prediction.likelihoods)
    if prediction.error:
        fields["error"] = prediction.error
    return as_json(fields) + "\n"


def read_predictions(folder: Path) -> dict[str, Prediction]:
    """Reads what was kept; a line that a kill tore is passed over, and what could not be answered is asked again."""
    predictions: dict[str, Prediction] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
            try:
                fields = json.loads(line)
                prediction = Prediction(fields["answer"], _floats(fields.get("likelihoods")), fields.get("error", ""))
            except (ValueError, KeyError, TypeError):
                continue
            if not prediction.error:
                predictions[fields["id"]] = prediction
    return predictions


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))
