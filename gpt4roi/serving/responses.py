"""Responses of the API: OpenAI's completions, whole or as server-sent events, and errors in its form."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from gpt4roi.generation.batching import Answer
from gpt4roi.generation.sampling import SamplingParams, answer_text, stable_text

logger = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2


class RefusedError(Exception):
    """A request that is answered with a status and one line, in OpenAI's form."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class News:
    """Wakes a coroutine from the worker's thread."""

    def __init__(self) -> None:
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def __call__(self) -> None:
        """Wakes it."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait_for(self, condition: Callable[[], bool], request: Request | None = None) -> None:
        """Waits until a condition holds; raises ClientDisconnect where the client of a request has gone."""
        while True:
            self._event.clear()
            if condition():
                return
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._event.wait(), timeout=1)
            if request is not None and await request.is_disconnected():
                raise ClientDisconnect


@dataclass
class Completion:
    """The answers to one chat request, as OpenAI writes them."""

    processor: Any
    model_name: str
    answers: list[Answer]
    params: SamplingParams
    with_log_probs: bool

    def __post_init__(self) -> None:
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self) -> dict[str, Any]:
        """Returns the body of a response that is not streamed."""
        choices = []
        for index, answer in enumerate(self.answers):
            text = answer_text(self.processor, answer.tokens, self.params.stop)
            message = {"role": "assistant", "content": text, "refusal": None}
            log_probs = self.log_probs(answer, 0) if self.with_log_probs else None
            choice = {"index": index, "message": message, "finish_reason": answer.finish_reason, "logprobs": log_probs}
            choices.append(choice)
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    async def events(self, news: News, with_usage: bool) -> AsyncIterator[str]:
        """Yields server-sent events: what each answer adds to its text, and at last `[DONE]`."""
        streams = [_StreamedChoice(self, index, answer) for index, answer in enumerate(self.answers)]
        for one in streams:
            yield self.event(one.index, {"role": "assistant", "content": ""})
        try:
            while streams:
                await news.wait_for(partial(_any_news, streams))
                for one in streams:
                    for event in one.events():
                        yield event
                streams = [one for one in streams if not one.ended]
        finally:
            for answer in self.answers:
                answer.cancel()
        if with_usage:
            yield data_event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def event(self, index: int, delta: dict, reason: str | None = None, log_probs: dict | None = None) -> str:
        """Returns the event that adds to an answer, or ends it."""
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": log_probs}
        return data_event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model_name}

    def _usage(self) -> dict[str, Any]:
        prompt, cached = self.answers[0].prompt_tokens, self.answers[0].cached_tokens
        completion = sum(len(answer.tokens) for answer in self.answers)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def log_probs(self, answer: Answer, start: int, end: int | None = None) -> dict[str, Any]:
        """Returns the log-probabilities of tokens, but for the one that ends an answer and is none of its text."""
        stops = set(self.processor.stop_token_ids)
        content = []
        for position in range(start, len(answer.tokens) if end is None else end):
            if answer.tokens[position] in stops:
                continue
            top = [self._token(*pair) for pair in answer.top_log_probs[position]]
            content.append({**self._token(answer.tokens[position], answer.log_probs[position]), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, log_prob: float) -> dict[str, Any]:
        text = self.processor.tokenizer.decode([token], skip_special_tokens=False)
        known = None if "\ufffd" in text else list(text.encode())
        return {"token": text, "logprob": max(log_prob, -9999.0), "bytes": known}


class _StreamedChoice:
    """What was sent of one of the answers to a request."""

    def __init__(self, completion: Completion, index: int, answer: Answer) -> None:
        self.completion, self.index, self.answer = completion, index, answer
        self.shown, self.seen, self.noted, self.ended = "", 0, 0, False

    @property
    def has_news(self) -> bool:
        return self.answer.finish_reason is not None or len(self.answer.tokens) > self.seen

    def events(self) -> list[str]:
        """Returns the events of the tokens that came since the last call."""
        if not self.has_news:
            return []
        completion, answer = self.completion, self.answer
        self.ended, self.seen = answer.finish_reason is not None, len(answer.tokens)
        if answer.error is not None or answer.finish_reason == "cancelled":
            logger.error("a streamed answer ended early: %s", answer.error or "cancelled")
            return [data_event(error_body(500, "the answer could not be completed; the log of the server says why"))]
        make = answer_text if self.ended else stable_text
        text = make(completion.processor, answer.tokens[: self.seen], completion.params.stop)
        added = text[len(self.shown) :] if text.startswith(self.shown) else ""
        events = []
        if added or (self.ended and completion.with_log_probs):
            log_probs = completion.log_probs(answer, self.noted, self.seen) if completion.with_log_probs else None
            events.append(completion.event(self.index, {"content": added}, log_probs=log_probs))
            self.shown, self.noted = self.shown + added, self.seen
        if self.ended:
            events.append(completion.event(self.index, {}, answer.finish_reason))
        return events


def _any_news(streams: Sequence[_StreamedChoice]) -> bool:
    return any(one.has_news for one in streams)


def all_ended(answers: Iterable[Answer]) -> bool:
    """Tells whether no answer is being written any more."""
    return all(answer.finish_reason is not None for answer in answers)


def raise_errors(answers: Iterable[Answer]) -> None:
    """Raises what ended one of the answers early."""
    for answer in answers:
        if answer.error is not None:
            raise answer.error
        if answer.finish_reason == "cancelled":
            raise RefusedError(503, "the server is closing", "closing")


def data_event(content: dict[str, Any]) -> str:
    """Returns one server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Returns an error as OpenAI writes it."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def error_response(status: int, message: str, code: str | None = None) -> JSONResponse:
    """Returns an error as a response."""
    headers = {"retry-after": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    if status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    return JSONResponse(error_body(status, message, code), status, headers)
