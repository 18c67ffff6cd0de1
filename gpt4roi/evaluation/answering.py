"""Asks all questions of a benchmark: in pieces, kept as they come, shared among processes.

A piece is some whole images with their questions; a model of ours answers it in batches. Which questions stand
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
from gpt4roi.evaluation.asking import Answerer, Ask, ModelAnswerer
from gpt4roi.io.atomic import append_lines, readable_write_errors
from gpt4roi.io.json_files import as_json

logger = logging.getLogger(__name__)

IMAGE_BATCH_SIZE = 32
QUESTIONS_AT_ONCE = 8192
KEPT = "the answers so far are kept"
_SECONDS_BETWEEN_WORDS = 10


@dataclass(frozen=True)
class Reply:
    """What came back for one question; error: why nothing did."""

    answer: str
    likelihoods: tuple[float, ...] | None = None
    error: str = ""


def answer_all(
    asks: Sequence[Ask],
    answer: Answerer,
    folder: Path,
    settings: dict[str, Any],
    world: DistributedContext | None = None,
    fresh: bool = False,
    image_batch_size: int = IMAGE_BATCH_SIZE,
) -> list[Reply]:
    """Returns a reply to every question, in order, to every process.

    folder: gets `answers-<key>/<rank>.jsonl`; the key stands for questions and settings, so that answers to other
    questions or of another model are never taken for these. fresh: forgets what is kept there.
    image_batch_size: how many make a piece. Raises InputError where ids are not unique, and where the disk is full:
    what was answered before stays.
    """
    world = world or DistributedContext()
    numbers = {ask.id: number for number, ask in enumerate(asks)}
    if len(numbers) != len(asks):
        raise InputError(f"{len(asks) - len(numbers)} of {len(asks)} questions have the id of another")
    kept = folder / f"answers-{run_key(asks, {**settings, 'image_batch_size': image_batch_size})}"
    if fresh and world.local_rank == 0:
        shutil.rmtree(kept, ignore_errors=True)
    world.all_gather(None)
    with readable_write_errors(kept, KEPT):
        kept.mkdir(parents=True, exist_ok=True)
    known: dict[str, Reply] = {}
    for found in world.all_gather(read_replies(kept)):
        known |= found
    pieces = [piece for piece in cut(asks, image_batch_size) if not all(asks[number].id in known for number in piece)]
    if known and pieces:
        logger.info("going on: %d of %d answers are there", len(known), len(asks))
    # Few pieces are shared batch by batch, many piece by piece, which spares looking at images twice.
    together = len(pieces) < world.size
    own = pieces if together else pieces[world.rank :: world.size]
    share = Share(frozenset(known), world.rank if together else 0, world.size if together else 1)
    new: dict[str, Reply] = {}
    progress = Progress(sum(asks[number].id not in known for piece in own for number in piece), world)
    for piece in own:
        for replies in ask_piece([asks[number] for number in piece], answer, share):
            new |= replies
            lines = "".join(_line(name, reply) for name, reply in replies.items())
            append_lines(kept / f"{world.rank}.jsonl", lines, KEPT)
            progress.done(len(replies))
    for found in world.all_gather(new):
        known |= found
    return [known[ask.id] for ask in asks]


class Share:
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


def run_key(asks: Sequence[Ask], settings: dict[str, Any]) -> str:
    """Returns a name for these questions under these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for ask in asks:
        asked = [ask.id, str(ask.image), ask.question, ask.boxes_px.tolist(), ask.blank, ask.choices]
        digest.update(json.dumps(asked).encode())
    return digest.hexdigest()[:12]


def cut(asks: Sequence[Ask], image_batch_size: int = IMAGE_BATCH_SIZE) -> list[list[int]]:
    """Returns the indices of the questions in pieces: whole images, in the order of their first question."""
    of_image: dict[Path, list[int]] = {}
    for number, ask in enumerate(asks):
        of_image.setdefault(ask.image, []).append(number)
    pieces: list[list[int]] = []
    images = 0
    for members in of_image.values():
        if not pieces or images == image_batch_size or len(pieces[-1]) + len(members) > QUESTIONS_AT_ONCE:
            pieces.append([])
            images = 0
        pieces[-1] += members
        images += 1
    return pieces


def ask_piece(asks: Sequence[Ask], answer: Answerer, share: Share) -> Iterator[dict[str, Reply]]:
    """Yields replies by id, as they come. Where something cannot be used, its image's questions carry the reason."""
    try:
        yield from _replies(asks, answer, share)
        return
    except InputError as error:
        images = list(dict.fromkeys(ask.image for ask in asks))
        if len(images) == 1:
            logger.warning("not answered: %s", error)
            yield {ask.id: Reply("", error=str(error)) for ask in asks}
            return
    for image in images:  # by every process alike: then nobody waits for what another could not use
        yield from ask_piece([ask for ask in asks if ask.image == image], answer, Share())


def _replies(asks: Sequence[Ask], answer: Answerer, share: Share) -> Iterator[dict[str, Reply]]:
    if not isinstance(answer, ModelAnswerer):
        if share.wants([ask.id for ask in asks]):
            yield _joined(asks, answer(asks), answer)
        return
    for batch, texts in answer.in_batches(asks, lambda batch: share.wants([asks[number].id for number in batch])):
        yield _joined([asks[number] for number in batch], texts, answer)


def _joined(asks: Sequence[Ask], texts: Sequence[str], answer: Answerer) -> dict[str, Reply]:
    if len(texts) != len(asks):
        raise ValueError(f"{len(texts)} answers to {len(asks)} questions; expected one for each, in order")
    of_choices = [ask for ask in asks if ask.choices]
    likely: dict[str, Sequence[float]] = {}
    if of_choices and hasattr(answer, "likelihoods"):
        likely = dict(zip((ask.id for ask in of_choices), answer.likelihoods(of_choices), strict=True))
    return {
        ask.id: Reply(str(text), tuple(map(float, likely[ask.id])) if ask.id in likely else None)
        for ask, text in zip(asks, texts, strict=True)
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


def _line(name: str, reply: Reply) -> str:
    fields: dict[str, Any] = {"id": name, "answer": reply.answer}
    if reply.likelihoods is not None:
        fields["likelihoods"] = list(reply.likelihoods)
    if reply.error:
        fields["error"] = reply.error
    return as_json(fields) + "\n"


def read_replies(folder: Path) -> dict[str, Reply]:
    """Reads what was kept; a line that a kill tore is passed over, and what could not be answered is asked again."""
    replies: dict[str, Reply] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().decode("utf-8", errors="replace").split("\n"):
            try:
                fields = json.loads(line)
                reply = Reply(fields["answer"], _floats(fields.get("likelihoods")), fields.get("error", ""))
            except (ValueError, KeyError, TypeError):
                continue
            if not reply.error:
                replies[fields["id"]] = reply
    return replies


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))
