"""HTTP middleware: limits body size, refuses bodies that name files, and blocks routes that open paths or URLs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

BLOCKED_ROUTES = (
    "upload", "upload_progress", "file=", "file/", "proxy=", "stream/", "component_server", "process_recording",
    "deep_link", "vibe-", "undo-vibe-", "dev/", "run-history", "runs", "custom_component", "profiling",
)  # fmt: skip
"""Gradio's routes that write files, open paths or fetch URLs; the page uses none of them."""

PREFIX = "/gradio_api/"
MAX_DEPTH = 40

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class RefusedError(Exception):
    """A request that is answered with a status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status, self.line = status, line


class RequestFilter:
    """ASGI middleware in front of Gradio's application."""

    def __init__(self, app: Any, max_body: int) -> None:
        self.app, self.max_body = app, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request to Gradio, or refuses it."""
        if scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            _check_route(scope)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = await self._checked_body(scope, receive)
        except RefusedError as refusal:
            await _answer(send, refusal)
            return
        await self.app(scope, receive, send)

    async def _checked_body(self, scope: Scope, receive: Receive) -> Receive:
        """Reads the complete body, checks it, and returns a `receive` that replays it."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body:
            raise RefusedError(413, f"a request may have {self.max_body:,} bytes at most")
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(400, "the request ended early")
            body += message.get("body", b"")
            if len(body) > self.max_body:
                raise RefusedError(413, f"a request may have {self.max_body:,} bytes at most")
            if not message.get("more_body", False):
                break
        if scope["path"].startswith(PREFIX):
            check_json(bytes(body))
        pending: bytes | None = bytes(body)

        async def replay() -> dict[str, Any]:
            nonlocal pending
            if pending is None:
                return await receive()
            message = {"type": "http.request", "body": pending, "more_body": False}
            pending = None
            return message

        return replay


def check_json(body: bytes) -> None:
    """Raises RefusedError where a body is not plain JSON, is nested too deep, or names a file for Gradio to open."""
    try:
        value = json.loads(body, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the body is not JSON") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        if any(isinstance(one, dict) and "path" in one and "meta" in one for one in level):
            raise RefusedError(400, "files are not taken by path or address; send an image as base64 text")
        level = [inner for one in level for inner in _children(one)]
        if not level:
            return
    raise RefusedError(400, f"the body is nested deeper than {MAX_DEPTH} levels")


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _check_route(scope: Scope) -> None:
    path = scope["path"]
    # Gradio also answers under the root for some of these.
    below = path.removeprefix(PREFIX.rstrip("/")).lstrip("/")
    if below.startswith(BLOCKED_ROUTES):
        raise RefusedError(404, "there is nothing here")
    if "deep_link" in parse_qs(scope.get("query_string", b"").decode("latin-1")):
        raise RefusedError(404, "there are no deep links here")


async def _answer(send: Send, refusal: RefusedError) -> None:
    body = json.dumps({"detail": refusal.line}).encode()
    # The rest of the body is not read, so the connection cannot be reused.
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
