"""Predictions: the answers to all queries of a benchmark, in journaled chunks, sharded over processes.

A chunk is some complete images with their queries; a GPT4RoI model answers it in batches. Which queries form a batch
depends on the queries alone, so neither a kill nor the number of processes changes an answer. Every process appends its
batches to a journal of its own; what is in there when a run starts again is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt4roi.distributed import DistributedContext
from gpt4roi.errors import InputError
from gpt4roi.evaluation.predictor import ModelPredictor, Predictor, Query
from gpt4roi.io.journal import Journal
from gpt4roi.io.progress import Progress

logger = logging.getLogger(__name__)

CHUNK_IMAGES, CHUNK_QUERIES = 32, 8192
"""How many images and queries make a chunk at most."""
KEPT = "the answers so far are kept"


@dataclass(frozen=True)
class Prediction:
    """The answer to one query, and the likelihoods of its choices; error: why there is no answer.

    confidence: the mean probability of the answer's tokens, where the predictor gives it.
    """

    answer: str
    likelihoods: tuple[float, ...] | None = None
    error: str = ""
    confidence: float | None = None


def predict_all(
    queries: Sequence[Query],
    predictor: Predictor,
    folder: Path,
    settings: dict[str, Any],
    context: DistributedContext | None = None,
    fresh: bool = False,
    image_batch_size: int = CHUNK_IMAGES,
) -> list[Prediction]:
    """Returns a prediction for every query, in order, to every process.

    Args:
        queries: What is asked.
        predictor: What answers.
        folder: Gets `answers-<key>/<rank>.jsonl`; the key stands for queries and settings, so that answers to other
            queries or of another model are never taken for these.
        settings: What answers depend on beside the queries.
        context: The processes that share the work.
        fresh: Forgets the journal.
        image_batch_size: Images in a chunk.

    Raises:
        InputError: Ids are not unique, or the disk is full; what was answered before stays.
    """
    context = context or DistributedContext()
    distinct = len({query.id for query in queries})
    if distinct != len(queries):
        raise InputError(f"{len(queries) - distinct} of {len(queries)} questions have the id of another")
    journal_folder = folder / f"answers-{run_key(queries, {**settings, 'image_batch_size': image_batch_size})}"
    if fresh and context.local_rank == 0:
        shutil.rmtree(journal_folder, ignore_errors=True)
    context.all_gather(None)
    journal = Journal(journal_folder, context.rank, kept=KEPT)
    known: dict[str, Prediction] = {}
    for found in context.all_gather(read_predictions(journal)):
        known |= found
    chunks = [
        [queries[number] for number in chunk]
        for chunk in chunk_by_image(queries, image_batch_size)
        if not all(queries[number].id in known for number in chunk)
    ]
    if known and chunks:
        logger.info("resuming: %d of %d answers are there", len(known), len(queries))
    # Few chunks are shared batch by batch, many chunk by chunk, which spares encoding images twice.
    together = len(chunks) < context.size
    own = chunks if together else chunks[context.rank :: context.size]
    shard = BatchShard(frozenset(known), context.rank if together else 0, context.size if together else 1)
    new: dict[str, Prediction] = {}
    unanswered = sum(query.id not in known for chunk in own for query in chunk)
    progress = Progress(unanswered, "questions", context.rank, context.size)
    for chunk in own:
        for predictions in predict_chunk(chunk, predictor, shard):
            new |= predictions
            journal.append(_record(name, prediction) for name, prediction in predictions.items())
            progress.update(len(predictions))
    for found in context.all_gather(new):
        known |= found
    return [known[query.id] for query in queries]


class BatchShard:
    """Which batches of queries are this process's: of those not completely known, every so many-th."""

    def __init__(self, known: Collection[str] = (), rank: int = 0, size: int = 1) -> None:
        self.known, self.rank, self.size = known, rank, size
        self.open = 0

    def selects(self, names: Sequence[str]) -> bool:
        """Tells whether a batch with these ids is to be answered here; asked about all batches, in order."""
        if all(name in self.known for name in names):
            return False
        self.open += 1
        return (self.open - 1) % self.size == self.rank


def run_key(queries: Sequence[Query], settings: dict[str, Any]) -> str:
    """Returns a name for these queries under these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for one in queries:
        fields = [one.id, str(one.image), one.question, one.boxes_px.tolist(), one.blank, one.choices]
        digest.update(json.dumps(fields).encode())
        for mask in one.masks:
            digest.update(b"" if mask is None else mask.tobytes())
    return digest.hexdigest()[:12]


def chunk_by_image(queries: Sequence[Query], image_batch_size: int = CHUNK_IMAGES) -> list[list[int]]:
    """Returns the indices of the queries in chunks: complete images, in the order of their first query."""
    of_image: dict[Path, list[int]] = {}
    for number, query in enumerate(queries):
        of_image.setdefault(query.image, []).append(number)
    chunks: list[list[int]] = []
    images = 0
    for members in of_image.values():
        if not chunks or images == image_batch_size or len(chunks[-1]) + len(members) > CHUNK_QUERIES:
            chunks.append([])
            images = 0
        chunks[-1] += members
        images += 1
    return chunks


def predict_chunk(queries: Sequence[Query], predictor: Predictor, shard: BatchShard) -> Iterator[dict[str, Prediction]]:
    """Yields predictions by id; where something cannot be used, the queries about its image carry the reason."""
    try:
        yield from _predict_batches(queries, predictor, shard)
        return
    except InputError as error:
        images = list(dict.fromkeys(query.image for query in queries))
        if len(images) == 1:
            logger.warning("not answered: %s", error)
            yield {query.id: Prediction("", error=str(error)) for query in queries}
            return
    for image in images:  # by every process alike: then none waits for what another could not use
        yield from predict_chunk([query for query in queries if query.image == image], predictor, BatchShard())


def _predict_batches(
    queries: Sequence[Query], predictor: Predictor, shard: BatchShard
) -> Iterator[dict[str, Prediction]]:
    if not isinstance(predictor, ModelPredictor):
        if shard.selects([query.id for query in queries]):
            yield _with_likelihoods(queries, predictor(queries), predictor)
        return
    selected = predictor.in_batches(queries, lambda rows: shard.selects([queries[row].id for row in rows]))
    for batch, texts, confidences in selected:
        answered = _with_likelihoods([queries[row] for row in batch], texts, predictor)
        yield {
            name: replace(prediction, confidence=round(confidence, 6))
            for (name, prediction), confidence in zip(answered.items(), confidences, strict=True)
        }


def _with_likelihoods(queries: Sequence[Query], texts: Sequence[str], predictor: Predictor) -> dict[str, Prediction]:
    if len(texts) != len(queries):
        raise ValueError(f"{len(texts)} answers to {len(queries)} questions; expected one for each, in order")
    of_choices = [query for query in queries if query.choices]
    likely: dict[str, Sequence[float]] = {}
    if of_choices and hasattr(predictor, "likelihoods"):
        likely = dict(zip((query.id for query in of_choices), predictor.likelihoods(of_choices), strict=True))
    return {
        query.id: Prediction(str(text), tuple(map(float, likely[query.id])) if query.id in likely else None)
        for query, text in zip(queries, texts, strict=True)
    }


def _record(name: str, prediction: Prediction) -> dict[str, Any]:
    record: dict[str, Any] = {"id": name, "answer": prediction.answer}
    if prediction.likelihoods is not None:
        record["likelihoods"] = list(prediction.likelihoods)
    if prediction.confidence is not None:
        record["confidence"] = prediction.confidence
    return record | ({"error": prediction.error} if prediction.error else {})


def read_predictions(journal: Journal) -> dict[str, Prediction]:
    """Returns the predictions of a journal by id; what could not be answered is left out, and so asked again."""
    found: dict[str, Prediction] = {}
    for record in journal.records():
        if "id" in record and "answer" in record and not record.get("error"):
            likelihoods, confidence = record.get("likelihoods"), record.get("confidence")
            found[record["id"]] = Prediction(
                record["answer"],
                None if likelihoods is None else tuple(map(float, likelihoods)),
                confidence=None if confidence is None else float(confidence),
            )
    return found
