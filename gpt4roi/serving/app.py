"""HTTP application: OpenAI's chat completions with regions, answers for many regions, models, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from gpt4roi.errors import InputError
from gpt4roi.generation.batching import Answer, BatchingWorker
from gpt4roi.generation.encoded_image import Prompt
from gpt4roi.generation.likelihood import Choice, check_labels, choose
from gpt4roi.generation.sampling import SamplingParams, answer_text, confidence
from gpt4roi.processing.user_input import groups_of_regions, one_region_question, pair_question, validate_regions
from gpt4roi.serving.images import ImageFetcher, ImageStore, OpenedImage
from gpt4roi.serving.requests import (
    ChatRequest,
    Conversation,
    RegionsRequest,
    conversation_of,
    encode_conversation,
    parse,
    questions_of,
)
from gpt4roi.serving.responses import (
    Completion,
    News,
    RefusedError,
    all_ended,
    error_body,
    error_response,
    raise_errors,
)
from gpt4roi.structures import Regions, Turn

logger = logging.getLogger(__name__)

WINDOW = 64
"""Questions of one request for regions that are in the worker's queue at once."""
IMAGES_AT_ONCE = 4
"""Images that are decoded at once: each may need the memory of its limit of pixels."""
BODY_SECONDS = 120
"""A request that is not whole by then is refused: who sends a byte a minute holds nothing."""
LABELS_AT_ONCE = 64
"""Labels that are scored between two tokens of everybody else's answers, about."""

Handler = Callable[[Request], Awaitable[Response]]


@dataclass
class ServingApp:
    """What the routes share; `asgi` makes the application.

    Attributes:
        worker: Decodes the answers.
        images: Opens and encodes images; it sets the limits of a request.
        model_name: The one model that requests may name.
        fetcher: Fetches images by https.
        api_keys: Without any, nobody is asked for one.
        default_question: Asked about a region where no question is given.
    """

    worker: BatchingWorker
    images: ImageStore
    model_name: str
    fetcher: ImageFetcher
    api_keys: Sequence[str] = ()
    default_question: str = "What is <region1>?"

    def __post_init__(self) -> None:
        self.started = int(time.time())
        self.processor = self.worker.processor
        self.max_body = self.images.limits.max_bytes * 4 // 3 + 2**18  # base64 needs a third more than the file
        self._opening = asyncio.Semaphore(IMAGES_AT_ONCE)
        self._keys = [hashlib.sha256(key.encode()).digest() for key in self.api_keys]
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "gpt4roi_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self._seconds = Histogram("gpt4roi_request_seconds", "Seconds to an answer", ["path"], registry=self.registry)
        for name in ("num_running", "num_waiting", "num_tokens"):
            gauge = Gauge(f"gpt4roi_{name}", f"The worker's {name}", registry=self.registry)
            gauge.set_function(partial(getattr, self.worker, name))
        for name in self.worker.counts:
            gauge = Gauge(f"gpt4roi_{name}", f"{name} since the start", registry=self.registry)
            gauge.set_function(partial(self.worker.counts.__getitem__, name))

    def asgi(self) -> Starlette:
        """Returns the ASGI application."""
        table: list[tuple[str, str, Handler]] = [
            ("/v1/chat/completions", "POST", self._chat),
            ("/v1/regions", "POST", self._regions),
            ("/v1/models", "GET", self._models),
            ("/v1/models/{name:path}", "GET", self._model),
            ("/health", "GET", self._health),
            ("/metrics", "GET", self._metrics),
        ]
        routes = [Route(path, self._guarded(path, handler), methods=[method]) for path, method, handler in table]
        return Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route})

    def _guarded(self, path: str, handler: Handler) -> Handler:
        """Turns faults of a request into answers of OpenAI's form, asks for a key, and counts."""

        async def handle(request: Request) -> Response:
            begun = time.monotonic()
            try:
                if path.startswith("/v1/"):
                    self._check_key(request)
                response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception as error:
                response = error_response(*_fault(error))
            self._requests.labels(path, str(response.status_code)).inc()
            self._seconds.labels(path).observe(time.monotonic() - begun)
            return response

        return handle

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        known = [hmac.compare_digest(digest, one) for one in self._keys]
        if scheme.lower() != "bearer" or not any(known):
            raise RefusedError(401, "this server asks for an API key: Authorization: Bearer KEY", "invalid_api_key")

    async def _body(self, request: Request) -> bytes:
        try:
            return await asyncio.wait_for(self._read(request), BODY_SECONDS)
        except asyncio.TimeoutError:
            message = f"the request did not arrive within {BODY_SECONDS} s"
            raise RefusedError(408, message, "request_timeout") from None

    async def _read(self, request: Request) -> bytes:
        length = request.headers.get("content-length", "0")
        body = bytearray()
        if length.isdigit() and int(length) <= self.max_body:
            async for part in request.stream():
                body += part
                if len(body) > self.max_body:
                    break
            else:
                return bytes(body)
        raise RefusedError(413, f"a request may have {self.max_body:,} bytes at most", "request_too_large")

    def _check_model(self, name: str) -> None:
        if name and name != self.model_name:
            raise RefusedError(404, f"there is no model {name!r:.80}; it is {self.model_name!r}", "model_not_found")

    async def _open(self, url: str) -> OpenedImage:
        data = await run_in_threadpool(self.fetcher.data_of, url)
        async with self._opening:
            return await run_in_threadpool(self.images.open, data)

    def _submit(self, make_prompt: Callable[[], Prompt], params: SamplingParams, news: News, **options: Any) -> Answer:
        return self.worker.submit(make_prompt, params, notify=news, **options)

    async def _make_prompt(
        self, conversation: Conversation, image: OpenedImage | None
    ) -> tuple[Callable[[], Prompt], dict[str, Any]]:
        """Returns what makes the prompt in the worker's thread, once its text and boxes have been checked here."""
        size = None if image is None else image.size
        encoded = await run_in_threadpool(encode_conversation, self.processor, conversation, size)
        if image is None:
            return lambda: Prompt(encoded["input_ids"]), encoded
        return lambda: self.images.encode(image).prompt(encoded), encoded

    async def _chat(self, request: Request) -> Response:
        asked = parse(await self._body(request), ChatRequest)
        self._check_model(asked.model)
        params, conversation = asked.sampling(), conversation_of(asked)
        image = None if conversation.image_url is None else await self._open(conversation.image_url)
        make_prompt, _ = await self._make_prompt(conversation, image)
        news = News()
        answers: list[Answer] = []
        try:
            for number in range(asked.n or 1):
                answers.append(self._submit(make_prompt, params, news, number=number, num_top=asked.num_top))
            completion = Completion(self.processor, self.model_name, answers, params, asked.num_top is not None)
            if not asked.stream:
                await news.wait_for(lambda: all_ended(answers), request)
                raise_errors(answers)
                return JSONResponse(completion.whole())
            await news.wait_for(lambda: all_ended(answers) or any(one.tokens for one in answers), request)
            raise_errors(answers)
            usage = bool(asked.stream_options and asked.stream_options.include_usage)
            stream, answers = completion.events(news, usage), []  # the stream's from here on
            return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})
        finally:
            for answer in answers:
                answer.cancel()

    async def _regions(self, request: Request) -> Response:
        asked = parse(await self._body(request), RegionsRequest)
        self._check_model(asked.model)
        params, check = asked.sampling(), one_region_question if asked.pairs is None else pair_question
        questions = [check(question) for question in questions_of(asked, self.default_question)]
        labels = None if asked.choices is None else check_labels(asked.choices)
        image = await self._open(asked.image)
        shape = self.processor.region_shape
        regions = await run_in_threadpool(validate_regions, asked.boxes, image.size, region_shape=shape)
        groups = groups_of_regions(len(regions), asked.pairs)
        if not groups:
            raise InputError("pairs: there is none", code="invalid_field")
        tasks = [_Task(number, regions.take(group), one) for number, group in enumerate(groups) for one in questions]
        found = self._free_answers(tasks, image, params) if labels is None else self._choices(tasks, image, labels)
        first = await anext(found)  # what is wrong with all of them shows before the response begins
        height, width = image.size
        head = {"object": "regions", "model": self.model_name, "image": {"width": width, "height": height}}
        about = [_shown(group, regions.boxes_px) for group in groups]
        if asked.stream:
            return StreamingResponse(_lines(about, first, found), media_type="application/x-ndjson")
        answered: list[dict[str, Any]] = [{**one, "answers": []} for one in about]
        usage = {"prompt_tokens": 0, "completion_tokens": 0}
        async with contextlib.aclosing(found):
            latest: tuple[int, dict[str, Any]] | None = first
            while latest is not None:
                if await request.is_disconnected():
                    raise ClientDisconnect
                number, record = latest
                used = record.pop("usage")
                usage = {name: usage[name] + used[name] for name in usage}
                answered[number]["answers"].append(record)
                latest = await anext(found, None)
        usage["total_tokens"] = sum(usage.values())
        return JSONResponse({**head, "regions" if asked.pairs is None else "pairs": answered, "usage": usage})

    async def _free_answers(
        self, tasks: list[_Task], image: OpenedImage, params: SamplingParams
    ) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
        """Yields a record for each task, in their order, with its number; those behind are in the batch meanwhile."""
        news, pending = News(), list[Answer]()
        submitted = 0
        try:
            for task in tasks:
                while submitted < len(tasks) and len(pending) < WINDOW:
                    turns = (Turn("user", tasks[submitted].question),)
                    conversation = Conversation(turns, boxes=tasks[submitted].regions)
                    make_prompt, _ = await self._make_prompt(conversation, image)
                    try:
                        pending.append(self._submit(make_prompt, params, news, num_top=0))
                    except InputError as error:
                        if error.code != "overloaded" or not pending:
                            raise
                        break
                    submitted += 1
                answer = pending.pop(0)
                try:
                    await news.wait_for(partial(all_ended, [answer]))
                    raise_errors([answer])
                finally:
                    answer.cancel()
                yield (
                    task.number,
                    {
                        "question": task.question,
                        "answer": answer_text(self.processor, answer.tokens, params.stop),
                        "confidence": round(confidence(answer.log_probs), 4),
                        "finish_reason": answer.finish_reason,
                        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": len(answer.tokens)},
                    },
                )
        finally:
            for answer in pending:
                answer.cancel()

    async def _choices(
        self, tasks: list[_Task], image: OpenedImage, labels: tuple[str, ...]
    ) -> AsyncGenerator[tuple[int, dict[str, Any]], None]:
        """Yields a record for each task with the probability of every label; nothing is generated for it."""
        step = max(1, LABELS_AT_ONCE // len(labels))
        for start in range(0, len(tasks), step):
            some = tasks[start : start + step]

            def work(some: list[_Task] = some) -> list[Choice]:
                encoded, asked = self.images.encode(image), [(task.regions, task.question) for task in some]
                return choose(self.worker.model, self.processor, encoded, asked, labels, LABELS_AT_ONCE)

            found = await asyncio.wrap_future(self.worker.call(work))
            for task, (shares, num_tokens) in zip(some, found, strict=True):
                yield (
                    task.number,
                    {
                        "question": task.question,
                        "answer": max(shares, key=shares.__getitem__),
                        "choices": [{"choice": label, "probability": round(shares[label], 6)} for label in labels],
                        "usage": {"prompt_tokens": num_tokens, "completion_tokens": 0},
                    },
                )

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def _model(self, request: Request) -> Response:
        self._check_model(request.path_params["name"])
        return JSONResponse(self._card())

    def _card(self) -> dict[str, Any]:
        return {"id": self.model_name, "object": "model", "created": self.started, "owned_by": "gpt4roi"}

    async def _health(self, _request: Request) -> Response:
        alive = self.worker.is_alive
        return JSONResponse({"status": "ok" if alive else "the worker has ended"}, 200 if alive else 503)

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4")


class _Task(NamedTuple):
    """A question about one region or a pair of them; number: of that in the response."""

    number: int
    regions: Regions
    question: str


def _shown(group: list[int], boxes: Any) -> dict[str, Any]:
    """Returns a region or a pair as responses name it; boxes: float[N, 4], of all regions."""
    numbers, found = [row + 1 for row in group], boxes[group].tolist()
    return {"region": numbers[0], "box": found[0]} if len(group) == 1 else {"pair": numbers, "boxes": found}


async def _lines(about: list[dict[str, Any]], first: tuple[int, dict[str, Any]], rest: Any) -> AsyncIterator[str]:
    def line(number: int, record: dict[str, Any]) -> str:
        return json.dumps({**about[number], **record}) + "\n"

    async with contextlib.aclosing(rest):
        yield line(*first)
        try:
            async for number, record in rest:
                yield line(number, record)
        except Exception as error:  # the status is sent already
            yield json.dumps(error_body(*_fault(error))) + "\n"


def _fault(error: Exception) -> tuple[int, str, str | None]:
    """Returns status, message and code of what ended a request."""
    if isinstance(error, RefusedError):
        return error.status, str(error), error.code
    if isinstance(error, InputError):
        return 429 if error.code == "overloaded" else 400, str(error), error.code
    logger.error("a request could not be answered", exc_info=error)
    return 500, "something went wrong; the log of the server says what", None


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return error_response(status, f"there is nothing at {request.method} {request.url.path:.80}")
