"""Chat route of `gpt4roi serve` in vLLM's server: its request fields, defaults and errors, and its texts.

vLLM adds routes of plugins only where it is started with `VLLM_PLUGINS=gpt4roi`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation
from vllm.exceptions import VLLMValidationError

from gpt4roi.errors import InputError
from gpt4roi.processing.uploads import Limits
from gpt4roi.serving.requests import ChatRequest, conversation_of, parse
from gpt4roi.serving.responses import data_event, error_response
from gpt4roi.serving.vllm import MODE

MAX_BODY = Limits.max_bytes * 4 // 3 + 2**18
"""Bytes of a request: base64 needs a third more than the image's file."""

PASSED_ON = ("messages", "n", "stream", "logprobs", "top_logprobs")


class Endpoint:
    """Replaces vLLM's chat route."""

    name = MODE
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the route."""
        app.add_api_route("/v1/chat/completions", _chat, methods=["POST"], response_model=None)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keeps nothing: vLLM's own handler answers."""


async def _chat(raw_request: Request) -> Response:
    try:
        length = raw_request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > MAX_BODY or len(body := await raw_request.body()) > MAX_BODY:
            return error_response(413, f"a request may have {MAX_BODY:,} bytes at most", "request_too_large")
        asked = parse(body, ChatRequest)
        conversation_of(asked)
        processor = raw_request.app.state.openai_serving_chat.renderer.get_mm_processor().info.processor
        fields = vllm_fields(asked, processor.stop_strings)
        return await _complete(ChatCompletionRequest(**fields), raw_request, processor)
    except VLLMValidationError as error:  # the renderer's carries ours
        return error_response(400, error.args[0], getattr(error.__cause__, "code", None))
    except InputError as error:
        return error_response(400, str(error), error.code)


@with_cancellation
@load_aware_call
async def _complete(request: ChatCompletionRequest, raw_request: Request, processor: Any) -> Response:
    found = await raw_request.app.state.openai_serving_chat.create_chat_completion(request, raw_request)
    if isinstance(found, ErrorResponse):
        return error_response(int(found.error.code), found.error.message)
    if isinstance(found, ChatCompletionResponse):
        for choice in found.choices:
            choice.message.content = processor.answer_in(choice.message.content or "")
        return JSONResponse(found.model_dump())
    return StreamingResponse(tidy_events(found, processor), media_type="text/event-stream")


def vllm_fields(asked: ChatRequest, stop_strings: Sequence[str]) -> dict[str, Any]:
    """Returns a request in vLLM's fields, with our defaults and the stop strings of the prompt format."""
    params = asked.sampling()
    asked.num_top  # noqa: B018 (checks the fields of log-probabilities)
    given = asked.model_dump(include={*PASSED_ON, *["stream_options"] * bool(asked.stream)}, exclude_none=True)
    template = asked.chat_template_kwargs
    boxes = asked.boxes if template is None or template.boxes is None else template.boxes
    return given | {
        "model": asked.model or None,
        "max_completion_tokens": params.max_new_tokens,
        "temperature": params.temperature or 0.0,
        "top_p": params.top_p,
        "seed": params.seed,
        "stop": [*params.stop, *stop_strings],
        "chat_template_kwargs": {"boxes": boxes},
    }


async def tidy_events(events: AsyncIterator[str], processor: Any) -> AsyncIterator[str]:
    """Changes the texts of a stream so that what it shows is the answer alone, and never taken back."""
    texts: dict[int, str] = {}
    shown: dict[int, str] = {}
    async for event in events:
        try:
            content = json.loads(event.removeprefix("data: "))
        except ValueError:  # the last one
            yield event
            continue
        for choice in content.get("choices", ()):
            index, delta = choice["index"], choice["delta"]
            if delta.get("content"):
                texts[index] = texts.get(index, "") + delta["content"]
                text, before = processor.answer_in(texts[index]), shown.get(index, "")
                may_be_name = choice.get("finish_reason") is None and processor.answer_prefix.startswith(text)
                delta["content"] = "" if may_be_name else text[len(before) :]
                shown[index] = before + delta["content"]
        yield data_event(content)
