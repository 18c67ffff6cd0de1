"""A judge on this machine that speaks OpenAI's protocol, remembers what it was asked, and fails when told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict], Any]
"""From the body of a request to a text, to (status, headers), or to any JSON value."""


class StubJudge:
    """Serves until it is closed; `bodies` and `keys` are what came in."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.served_as = reply, "stub-2026"
        self.bodies: list[dict] = []
        self.keys: list[str | None] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.bodies.append(body)
                stub.keys.append(self.headers.get("Authorization"))
                found = stub.reply(body)
                status, headers = found if isinstance(found, tuple) else (200, {})
                if isinstance(found, str):
                    message = {"role": "assistant", "content": found}
                    found = {"id": "1", "object": "chat.completion", "created": 1, "model": stub.served_as}
                    found["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
                elif status != 200:
                    found = {"error": {"message": f"no: {status}", "type": "stub", "code": None}}
                data = json.dumps(found).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Type": "application/json"}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words: object) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def texts(self) -> list[str]:
        """Returns the last message of every request."""
        return [text_of(body) for body in self.bodies]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def text_of(body: dict) -> str:
    """Returns the last message of a request, without its image."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]
