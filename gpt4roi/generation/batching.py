"""Continuous batching: one worker answers everybody's questions in batches that change with every token.

A question joins the batch as soon as there is room and leaves it with its last token; nobody waits for the longest
answer. What prompts about one image have in common goes through the language model once.
"""

from __future__ import annotations

import bisect
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch

from gpt4roi.errors import InputError
from gpt4roi.generation.encoded_image import Prompt
from gpt4roi.generation.engine import max_answer_tokens
from gpt4roi.generation.packed import KeyValues, PackedDecoder, PrefixCache, SingleDecoder, packed_decoder
from gpt4roi.generation.sampling import SamplingParams, stopping_criterion

logger = logging.getLogger(__name__)

STEP_TOKENS = 1024
"""Tokens computed together at most: a long prompt is read in parts, between which the others' answers go on."""
CACHED_SHARE = 4
"""The part of the tokens, one in so many, that prompts which may come again can occupy."""

Result = TypeVar("Result")
FinishReason = Literal["stop", "length", "cancelled", "error"]


class Answer:
    """An answer while it is written, and afterwards; iterating yields its tokens as they come.

    Attributes:
        tokens: So far.
        log_probs: Of each token, where asked for; the model's own, before temperature and top_p.
        top_log_probs: Of each token the most likely ones, (token, log-probability).
        prompt_tokens: Length of the prompt; 0 until it is read.
        cached_tokens: How many of these had been computed before.
        finish_reason: `stop` where the model or a stop string ended it, `length` where it was cut; None until then.
        error: What was raised, with the reason `error`.
    """

    def __init__(self, notify: Callable[[], object] | None = None) -> None:
        """notify: Called by the worker's thread after each change; must be quick."""
        self.tokens: list[int] = []
        self.log_probs: list[float] = []
        self.top_log_probs: list[list[tuple[int, float]]] = []
        self.prompt_tokens = self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self._news = threading.Event()
        self._notify = notify or (lambda: None)

    def cancel(self) -> None:
        """Lets the answer leave the batch before its next token."""
        self.cancelled = True

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """Ends the answer."""
        self.error, self.finish_reason = error, reason
        self.tell()

    def tell(self) -> None:
        """Wakes who waits for news."""
        self._news.set()
        self._notify()

    def __iter__(self) -> Iterator[int]:
        """Yields every token; raises `error`, or InputError (code `cancelled`) once another thread has cancelled it.

        Closing the iterator earlier cancels the answer.
        """
        seen = 0
        try:
            while True:
                self._news.wait()
                self._news.clear()
                ended = self.finish_reason is not None  # read before the tokens, so that the last is not missed
                while seen < len(self.tokens):
                    seen += 1
                    yield self.tokens[seen - 1]
                if ended:
                    break
        finally:
            self.cancel()
        if self.error is not None:
            raise self.error
        if self.finish_reason == "cancelled":
            raise InputError("the answer was cancelled", code="cancelled")


@dataclass(eq=False)
class _Sequence:
    """A question and its answer on their way: waiting until `cache` is there, then in the batch.

    pending: rows float[T, R] of what the language model reads next, as of Prompt.embed; last: the one it read last.
    """

    make_prompt: Callable[[], Prompt]
    params: SamplingParams
    stopping: Callable[[list[int]], bool]
    answer: Answer
    number: int = 0
    num_top: int | None = None
    priority: int = 0
    prompt: Prompt | None = None
    limit: int = 0
    cache: Any = None
    pending: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    last: torch.Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        self.sampler = self.params.sampler() if self.params.temperature else None

    @property
    def reserved(self) -> int:
        """Tokens of memory, once the prompt is made: its own, and those of the longest answer."""
        assert self.prompt is not None
        return len(self.prompt.input_ids) + self.limit


class BatchingWorker:
    """Decodes the answers to questions of any number of threads, in a thread of its own.

    Questions may be about different images and have their own lengths, sampling parameters and random sequences. In
    float32 an answer is, token by token, the one that RegionChat gives to the question alone. In bfloat16 or float16
    the neighbours decide how a sum is rounded, so that two tokens of almost equal probability may be exchanged;
    `deterministic` decodes one sequence after the other, bit for bit as RegionChat does.

    Attributes:
        counts: What was done since the start, by name: answers, cancelled, prompt_tokens, cached_tokens,
            generated_tokens.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        max_tokens: int = 16384,
        max_sequences: int = 64,
        max_waiting: int = 256,
        deterministic: bool = False,
    ) -> None:
        """Starts the thread.

        Args:
            model: A GPT4RoI model.
            processor: Its processor.
            max_tokens: Tokens whose keys and values are in memory at most, of all prompts and answers.
            max_sequences: Answers written at once.
            max_waiting: Questions that may wait; one more is refused.
            deterministic: See above.
        """
        self.model, self.processor = model.eval(), processor
        self.max_tokens, self.max_sequences, self.max_waiting = max_tokens, max_sequences, max_waiting
        packed = None if deterministic else packed_decoder(model)
        if packed is None and not deterministic:
            logger.warning("this language model cannot be batched across questions; they are decoded one by one")
        self._decoder: PackedDecoder | SingleDecoder = packed or SingleDecoder(model)
        self._cache = PrefixCache(model.region_token_id)
        self.counts = dict.fromkeys(("answers", "cancelled", "prompt_tokens", "cached_tokens", "generated_tokens"), 0)
        self._changed = threading.Condition()
        self._waiting: list[_Sequence] = []
        self._jobs: deque[tuple[Callable[[], Any], Future]] = deque()
        self._running: list[_Sequence] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="gpt4roi-batching", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def num_running(self) -> int:
        """Answers being written."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Questions that wait for room."""
        return len(self._waiting)

    @property
    def num_tokens(self) -> int:
        """Tokens in memory, reserved or cached."""
        return sum(one.reserved for one in list(self._running)) + self._cache.num_tokens

    def submit(
        self,
        make_prompt: Callable[[], Prompt],
        params: SamplingParams,
        number: int = 0,
        num_top: int | None = None,
        notify: Callable[[], object] | None = None,
        priority: int = 0,
    ) -> Answer:
        """Queues a question and returns its answer, which is written from now on.

        Args:
            make_prompt: Returns the prompt, in the worker's thread, so that it may encode an image there. What it
                raises becomes the answer's error.
            params: How tokens are chosen.
            number: Tells apart several answers to one question with one seed; the first is 0.
            num_top: How many of the most likely tokens to note with each; None notes no log-probability at all.
            notify: As of Answer.
            priority: Of a question that may wait, above 0: its answer is begun, and goes on, only while none of a
                smaller number is being written.

        Raises:
            InputError: Too many questions wait (code `overloaded`), or the worker is closing.
        """
        stopping = stopping_criterion(self.processor, params.stop)
        sequence = _Sequence(make_prompt, params, stopping, Answer(notify), number, num_top, priority)
        with self._changed:
            if self._closing or len(self._waiting) >= self.max_waiting:
                what = "the server is closing" if self._closing else f"{len(self._waiting)} questions wait already"
                raise InputError(f"{what}; ask again in a moment", code="overloaded")
            bisect.insort(self._waiting, sequence, key=_priority)
            self._changed.notify()
        return sequence.answer

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Runs a function of the model between two tokens, in the worker's thread; returns its future."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closing or len(self._jobs) >= self.max_waiting:
                raise InputError("too many questions wait; ask again in a moment", code="overloaded")
            self._jobs.append((function, future))
            self._changed.notify()
        return future

    def close(self, finish: bool = True) -> None:
        """Takes no more questions, ends the answers being written (or cancels them), and waits for the thread."""
        with self._changed:
            self._closing = True
            if not finish:
                for sequence in [*self._waiting, *self._running]:
                    sequence.answer.cancel()
            self._changed.notify()
        self._thread.join()

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._jobs or self._running):
                    if self._closing:
                        return
                    self._changed.wait()
            try:
                self._run_jobs()
                self._drop_cancelled()
                self._admit()
                if self._running:
                    self._step()
            except Exception as error:  # out of memory, or a defect: it must not end everybody else's answers for good
                logger.exception("a batch of %d answers failed", len(self._running))
                failed, self._running = self._running, []
                for sequence in failed:
                    sequence.answer.finish("error", error)

    def _run_jobs(self) -> None:
        for _ in range(len(self._jobs)):
            function, future = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

    def _drop_cancelled(self) -> None:
        with self._changed:
            everything = [*self._running, *self._waiting]
            self._running = [one for one in self._running if not one.answer.cancelled]
            self._waiting = [one for one in self._waiting if not one.answer.cancelled]
        for sequence in everything:
            if sequence.answer.cancelled:
                self.counts["cancelled"] += 1
                sequence.answer.finish("cancelled")

    def _admit(self) -> None:
        """Lets questions into the batch, in their order, while there is room for the longest answer to each."""
        joined: list[_Sequence] = []
        while self._waiting and self._may_join(sequence := self._waiting[0], [*self._running, *joined]):
            try:
                self._make_prompt(sequence)
            except Exception as error:
                self._leave_queue(sequence)
                if not isinstance(error, InputError):
                    logger.exception("a prompt could not be made")
                sequence.answer.finish("error", error)
                continue
            used = sum(one.reserved for one in [*self._running, *joined])
            if used + sequence.reserved > self.max_tokens:
                break
            self._leave_queue(sequence)
            joined.append(sequence)
            self._trim_cache(used + sequence.reserved)
        self._running += joined  # what fails from here on ends their answers too
        if isinstance(self._decoder, PackedDecoder):
            self._share_prefixes(self._decoder, [one.prompt for one in joined if one.prompt is not None])
        for sequence in joined:
            self._start(sequence)
        self._trim_cache(sum(one.reserved for one in self._running))

    def _may_join(self, sequence: _Sequence, others: list[_Sequence]) -> bool:
        before = [one.priority for one in others if one.priority <= sequence.priority]
        return len(before) < self.max_sequences and all(one == sequence.priority for one in before)

    def _leave_queue(self, sequence: _Sequence) -> None:
        with self._changed:
            self._waiting.remove(sequence)

    def _trim_cache(self, reserved: int) -> None:
        self._cache.shrink(min(self.max_tokens // CACHED_SHARE, self.max_tokens - reserved))

    def _make_prompt(self, sequence: _Sequence) -> None:
        if sequence.prompt is not None:
            return
        prompt = sequence.make_prompt()
        length = len(prompt.input_ids)
        limit = max_answer_tokens(self.model, length, sequence.params.max_new_tokens)
        if length + limit > self.max_tokens:
            raise InputError(
                f"the question has {length} tokens and its answer may have {limit}, more than the {self.max_tokens} "
                "that fit into memory; allow a shorter answer"
            )
        sequence.prompt, sequence.limit = prompt, limit

    def _share_prefixes(self, decoder: PackedDecoder, prompts: Sequence[Prompt]) -> None:
        """Computes what prompts about one image have in common once, where it is not cached yet."""
        of_image: dict[int, list[Prompt]] = {}
        for prompt in prompts:
            of_image.setdefault(id(prompt.image_features), []).append(prompt)
        new = []
        for first, *others in of_image.values():
            common = min((self._cache.common_length(first, other) for other in others), default=0)
            cache, cached = self._cache.longest(first, common)
            if common > cached:
                kept = cache.copy(cached, common) if cache is not None else decoder.new(common)
                new.append((first, common, kept, first.embed(self.model)[cached:common]))
        pending = [(kept, embeddings) for _, _, kept, embeddings in new]
        while pending:
            decoder.logits([(kept, part) for kept, part, _ in _take(pending)])
            pending = [(kept, rest) for kept, _, rest in _take(pending) if len(rest)]
        for first, common, kept, _ in new:
            self._cache.add(replace(first, input_ids=first.input_ids[:common]), kept)

    def _start(self, sequence: _Sequence) -> None:
        prompt = sequence.prompt
        assert prompt is not None
        cache, cached = self._cache.longest(prompt, len(prompt.input_ids) - 1)
        capacity = sequence.reserved
        sequence.cache = self._decoder.new(capacity) if cache is None else cache.copy(cached, capacity)
        sequence.pending = prompt.embed(self.model)[cached:]
        sequence.answer.prompt_tokens, sequence.answer.cached_tokens = len(prompt.input_ids), cached
        self.counts["prompt_tokens"] += len(prompt.input_ids)
        self.counts["cached_tokens"] += cached

    def _step(self) -> None:
        """Computes the next tokens of the batch, or of those in it that the others wait for."""
        chunked = isinstance(self._decoder, PackedDecoder)
        first = min(map(_priority, self._running))
        now = [(one, one.pending) for one in self._running if one.priority == first]
        parts = _take(now, STEP_TOKENS if chunked else None)
        logits = self._decoder.logits([(one.cache, part) for one, part, _ in parts])
        for one, part, rest in parts:
            one.pending, one.last = rest, part[-1]
        ready = [row for row, (_, _, rest) in enumerate(parts) if not len(rest)]
        if ready:
            self._choose([parts[row][0] for row in ready], logits[ready])

    def _choose(self, sequences: list[_Sequence], logits: torch.Tensor) -> None:
        """Adds a token to each answer; logits: float[R, V]."""
        tokens = logits.argmax(dim=-1)
        for row, one in enumerate(sequences):
            if one.sampler is not None:
                tokens[row] = one.sampler(logits[row : row + 1], [one.number])[0]
            if one.num_top is not None:
                _note_log_probs(one.answer, logits[row], int(tokens[row]), one.num_top)
        following = self.model.next_rows(tokens, torch.stack([one.last for one in sequences]))
        for one, token, rows in zip(sequences, tokens.tolist(), following, strict=True):
            one.pending = rows
            one.answer.tokens.append(token)
            self.counts["generated_tokens"] += 1
            reason: FinishReason | None = "length" if len(one.answer.tokens) >= one.limit else None
            if one.stopping(one.answer.tokens):
                reason = "stop"
            if reason is None:
                one.answer.tell()
            else:
                self._finish(one, reason)

    def _finish(self, sequence: _Sequence, reason: FinishReason) -> None:
        self._running.remove(sequence)
        self.counts["answers"] += 1
        prompt, cache, answer = sequence.prompt, sequence.cache, sequence.answer
        if isinstance(cache, KeyValues) and prompt is not None:
            ids = torch.cat([prompt.input_ids, torch.tensor(answer.tokens[:-1], dtype=torch.int64)])
            self._cache.add(replace(prompt, input_ids=ids), cache.copy(cache.length, cache.length))
            self._trim_cache(sum(one.reserved for one in self._running))
        answer.finish(reason)


def _priority(sequence: _Sequence) -> int:
    return sequence.priority


def _take(pending: Sequence[tuple[Any, torch.Tensor]], room: int | None = STEP_TOKENS) -> list[tuple]:
    """Returns (owner, what is read now, what is left) of the first that fit; room: tokens, None for all."""
    parts = []
    left = sum(len(embeddings) for _, embeddings in pending) if room is None else room
    for owner, embeddings in pending:
        if left:
            parts.append((owner, embeddings[:left], embeddings[left:]))
            left -= len(parts[-1][1])
    return parts


def _note_log_probs(answer: Answer, logits: torch.Tensor, token: int, num_top: int) -> None:
    log_probs = logits.float().log_softmax(dim=-1)
    answer.log_probs.append(float(log_probs[token]))
    values, tokens = log_probs.topk(num_top)
    answer.top_log_probs.append(list(zip(tokens.tolist(), values.tolist(), strict=True)))
