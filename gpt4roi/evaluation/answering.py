"""Asks all questions of a benchmark: in pieces, kept as they come, shared among processes.

A piece is some whole pictures with their questions. Which questions stand together depends on the questions alone, so
neither a kill nor the number of processes changes an answer. Every process appends its pieces to a file of its own;
what lies there when a run starts again is not asked again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.evaluation.asking import Answerer, Ask
from gpt4roi.ranks import World

logger = logging.getLogger(__name__)

PICTURES_AT_ONCE = 32
QUESTIONS_AT_ONCE = 4096
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
    world: World | None = None,
    fresh: bool = False,
    pictures_at_once: int = PICTURES_AT_ONCE,
) -> list[Reply]:
    """Returns a reply to every question, in order, to every process.

    folder: gets `answers-<key>/<rank>.jsonl`; the key stands for questions and settings, so that answers to other
    questions or of another model are never taken for these. fresh: forgets what is kept there.
    pictures_at_once: how many make a piece. Raises InputError where ids are not unique.
    """
    world = world or World()
    numbers = {ask.id: number for number, ask in enumerate(asks)}
    if len(numbers) != len(asks):
        raise InputError(f"{len(asks) - len(numbers)} of {len(asks)} questions have the id of another")
    kept = folder / f"answers-{run_key(asks, {**settings, 'pictures_at_once': pictures_at_once})}"
    if fresh and world.local_rank == 0:
        shutil.rmtree(kept, ignore_errors=True)
    world.all_gather(None)
    kept.mkdir(parents=True, exist_ok=True)
    known: dict[str, Reply] = {}
    for found in world.all_gather(read_replies(kept)):
        known |= found
    pieces = [piece for piece in cut(asks, pictures_at_once) if not all(asks[number].id in known for number in piece)]
    if known and pieces:
        logger.info("going on: %d of %d answers are there", len(known), len(asks))
    own = pieces[world.rank :: world.size]
    new: dict[str, Reply] = {}
    with (kept / f"{world.rank}.jsonl").open("a", encoding="utf-8") as file:
        for piece in _with_progress(own, world):
            replies = ask_piece([asks[number] for number in piece], answer)
            new |= replies
            file.write("".join(_line(name, reply) for name, reply in replies.items()))
            file.flush()
    for found in world.all_gather(new):
        known |= found
    return [known[ask.id] for ask in asks]


def run_key(asks: Sequence[Ask], settings: dict[str, Any]) -> str:
    """Returns a name for these questions under these settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for ask in asks:
        asked = [ask.id, str(ask.picture), ask.question, ask.boxes_px.tolist(), ask.blank, ask.choices]
        digest.update(json.dumps(asked).encode())
    return digest.hexdigest()[:12]


def cut(asks: Sequence[Ask], pictures_at_once: int = PICTURES_AT_ONCE) -> list[list[int]]:
    """Returns the indices of the questions in pieces: whole pictures, in the order of their first question."""
    of_picture: dict[Path, list[int]] = {}
    for number, ask in enumerate(asks):
        of_picture.setdefault(ask.picture, []).append(number)
    pieces: list[list[int]] = []
    pictures = 0
    for members in of_picture.values():
        if not pieces or pictures == pictures_at_once or len(pieces[-1]) + len(members) > QUESTIONS_AT_ONCE:
            pieces.append([])
            pictures = 0
        pieces[-1] += members
        pictures += 1
    return pieces


def ask_piece(asks: Sequence[Ask], answer: Answerer) -> dict[str, Reply]:
    """Returns the replies by id. Where something cannot be used, its picture's questions carry the reason."""
    try:
        return _replies(asks, answer)
    except InputError as error:
        pictures = list(dict.fromkeys(ask.picture for ask in asks))
        if len(pictures) == 1:
            logger.warning("not answered: %s", error)
            return {ask.id: Reply("", error=str(error)) for ask in asks}
    replies: dict[str, Reply] = {}
    for picture in pictures:
        replies |= ask_piece([ask for ask in asks if ask.picture == picture], answer)
    return replies


def _replies(asks: Sequence[Ask], answer: Answerer) -> dict[str, Reply]:
    texts = answer(asks)
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


def _with_progress(pieces: Sequence[list[int]], world: World) -> Iterable[list[int]]:
    """Yields the pieces; the first process says every few seconds how far it is and how long it will take."""
    total, done, started, said = sum(map(len, pieces)), 0, time.monotonic(), 0.0
    for piece in pieces:
        yield piece
        done += len(piece)
        passed = time.monotonic() - started
        if world.rank == 0 and (passed - said > _SECONDS_BETWEEN_WORDS or done == total):
            said = passed
            left = (total - done) / max(done / passed, 1e-9)
            logger.info("answered %d of %d, %.1f a second, %.0f s left", done, total, done / passed, left)


def _line(name: str, reply: Reply) -> str:
    fields: dict[str, Any] = {"id": name, "answer": reply.answer}
    if reply.likelihoods is not None:
        fields["likelihoods"] = list(reply.likelihoods)
    if reply.error:
        fields["error"] = reply.error
    return json.dumps(fields, ensure_ascii=False) + "\n"


def read_replies(folder: Path) -> dict[str, Reply]:
    """Reads what was kept; a line that a kill tore is passed over, and what could not be answered is asked again."""
    replies: dict[str, Reply] = {}
    for path in sorted(folder.glob("*.jsonl")):
        whole = path.read_bytes()
        if whole and not whole.endswith(b"\n"):  # so that the next line does not begin in the middle of this one
            with path.open("ab") as file:
                file.write(b"\n")
        for line in whole.decode("utf-8", errors="replace").split("\n"):
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
