"""Fifty clients at once on `gpt4roi serve`: own answers for everyone, level memory, and nothing that a stranger breaks?

    python benchmarks/serving_soak.py [--clients 50] [--minutes 10] [--model exp/quickstart/stage2] [--data …/data]

Serves the API in a process of its own, in float32. Every client asks about boxes of held-out scenes, by chat, by
streamed chat and by /v1/regions, and compares each answer with the one that RegionChat gives in this process. One
request in ten is cancelled after its first token, one in twenty is hostile: it must be refused in OpenAI's form, or its
connection end. Prints the server's resident memory as it goes; at the end the server must answer as at the beginning.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import random
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from common import machine, say
from page_load import SETTLING_SECONDS, watch_memory

QUESTION = "What is <region1>?"
CANCELLED, HOSTILE = 0.1, 0.05
MAX_TOKENS = 32
TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Known:
    """A box of an image, a data URL, and what the model says about it."""

    image: str
    box: list[float]
    answer: str

    @property
    def messages(self) -> list[dict]:
        """The question as OpenAI's API takes it."""
        image = {"type": "image_url", "image_url": {"url": self.image}}
        return [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}]

    @property
    def chat(self) -> dict[str, Any]:
        """The body of a chat request."""
        return {"messages": self.messages, "boxes": [self.box], "max_tokens": MAX_TOKENS}


@dataclass
class Seen:
    """What the clients saw: requests by kind and outcome, how long honest ones waited, and what must not be."""

    counts: Counter = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Api:
    """Requests to the API, each over a connection of its own."""

    def __init__(self, url: str, key: str = "") -> None:
        self._address = urlsplit(url)
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def post(self, path: str, body: dict | bytes) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Sends a request; the caller reads the response and closes the connection."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        connection.request("POST", f"{self._address.path}{path}", data, self._headers)
        return connection, connection.getresponse()

    def connect(self) -> http.client.HTTPConnection:
        """Opens a connection."""
        return http.client.HTTPConnection(self._address.hostname, self._address.port, timeout=TIMEOUT_SECONDS)

    def answer(self, known: Known, way: str) -> str:
        """Asks a question, by `chat`, `stream` or `regions`."""
        if way == "regions":
            body = {"image": known.image, "boxes": [known.box], "question": QUESTION, "max_tokens": MAX_TOKENS}
            return self._read("/regions", body)["regions"][0]["answers"][0]["answer"]
        if way == "chat":
            return self._read("/chat/completions", known.chat)["choices"][0]["message"]["content"]
        connection, response = self.post("/chat/completions", {**known.chat, "stream": True})
        events = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: ")]
        connection.close()
        if response.status != 200 or events[-1] != "[DONE]":
            raise ValueError(f"{response.status}: {events[-1:]}")
        return "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])

    def _read(self, path: str, body: dict) -> dict:
        connection, response = self.post(path, body)
        content = response.read()
        connection.close()
        if response.status != 200:
            raise ValueError(f"{response.status}: {content[:200]!r}")
        return json.loads(content)

    def cancel(self, known: Known) -> None:
        """Asks for a long answer, and goes away after its first event."""
        connection, response = self.post("/chat/completions", {**known.chat, "max_tokens": 1000, "stream": True})
        response.readline()
        response.close()
        connection.close()


def bomb() -> str:
    """A PNG of some bytes that promises 10^10 pixels, as a data URL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def hostile(known: Known) -> Iterator[tuple[str, dict | bytes]]:
    """Yields paths and bodies that a server must refuse."""
    chat, regions = "/chat/completions", "/regions"
    asked = {"image": known.image, "boxes": [known.box]}
    yield chat, b"\xff\xfe\x00"
    yield chat, b"[" * 100_000
    yield chat, b'{"messages": NaN}'
    yield chat, b"9" * 10_000
    yield chat, b"{}"
    for address in ("file:///etc/passwd", "/etc/passwd", "http://169.254.169.254/latest", "https://localhost/a.png"):
        yield regions, {**asked, "image": address}
    for image in ("", "data:image/png;base64,!!!!", "data:image/svg+xml;base64,PHN2Zy8+", bomb(), known.image[:-400]):
        yield regions, {**asked, "image": image}
    for boxes in (
        [],
        [[1, 2, 3]],
        [[9, 9, 2, 2]],
        [["one", 2, 3, 4]],
        [[0, 0, 1e308, 1e308]],
        [known.box] * 5000,
        [[[]]],
    ):
        yield regions, {**asked, "boxes": boxes}
    yield regions, {**asked, "boxes": [{"counts": "0" * 1000, "size": [10**6, 10**6]}]}
    yield regions, {**asked, "question": "What is <region" + "9" * 5000 + ">?"}
    yield regions, {**asked, "question": "x" * 200_000}
    yield regions, {**asked, "choices": ["a"] * 300}
    changes: list[dict[str, Any]] = [
        {"n": 10**6}, {"max_tokens": -1}, {"temperature": 1e400}, {"temperature": "hot"}, {"top_p": 2},
        {"stop": [""] * 99}, {"seed": 1.5}, {"logprobs": True, "top_logprobs": 999}, {"model": "another"},
        {"tools": [{}]}, {"boxes": None},
        {"messages": []}, {"messages": [{"role": "system", "content": "obey"}]}, {"messages": known.messages * 2},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}]},
        {"messages": [{"role": "user", "content": "<box>1,2,3</box>"}]},
        {"chat_template_kwargs": {"chat_template": "{{1}}"}},
        {"messages": [{"role": "user", "content": "word " * 15_000}], "boxes": None},
    ]  # fmt: skip
    for change in changes:
        yield chat, {**known.chat, **change}
    yield "/completions", known.chat
    yield chat, {"padding": "x" * 2**25}


def insult(api: Api, known: Known, rng: random.Random) -> str:
    """Sends something hostile, or half a request; returns what came of it."""
    if rng.random() < 0.1:
        connection = api.connect()
        connection.connect()
        connection.sock.sendall(
            rng.choice([b"POST /v1/regions HTTP/1.1\r\ncontent-length: 99\r\n\r\n{", b"\x16\x03\x01" * 50])
        )
        connection.close()
        return "half a request"
    path, body = rng.choice(list(hostile(known)))
    try:
        connection, response = api.post(path, body)
        said = response.read()
        connection.close()
    except OSError:  # the server need not read a body that is too large to its end
        return "connection ended"
    shown = body if isinstance(body, bytes) else json.dumps(body).encode()
    if not 400 <= response.status < 500:
        raise ValueError(f"{response.status} for {path} {shown[-150:]!r}: {said[:200]!r}")
    json.loads(said)["error"]["message"]
    return f"refused, {response.status}"


def talk(number: int, api: Api, known: list[Known], deadline: float, seen: Seen) -> None:
    """Is one client until the deadline."""
    rng = random.Random(number)
    while time.monotonic() < deadline:
        one, share = rng.choice(known), rng.random()
        try:
            if share < HOSTILE:
                seen.counts[f"hostile: {insult(api, one, rng)}"] += 1
            elif share < HOSTILE + CANCELLED:
                api.cancel(one)
                seen.counts["cancelled"] += 1
            else:
                way = rng.choice(["chat", "stream", "regions"])
                begun = time.monotonic()
                answer = api.answer(one, way)
                seen.waits.append(time.monotonic() - begun)
                seen.counts[way] += 1
                if answer != one.answer:
                    seen.wrong.append(f"{way}: {answer!r} in place of {one.answer!r}")
        except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
            seen.wrong.append(f"{type(error).__name__}: {error}")


def crowd(api: Api, known: list[Known], clients: int, deadline: float) -> tuple[Seen, list[threading.Thread]]:
    """Starts the clients."""
    seen = Seen()
    threads = [threading.Thread(target=talk, args=(n, api, known, deadline, seen)) for n in range(clients)]
    for thread in threads:
        thread.start()
    return seen, threads


def learn(model: Path, data: Path, images: int = 12, boxes_each: int = 3) -> list[Known]:
    """Returns boxes of held-out scenes with the answers that RegionChat gives."""
    from gpt4roi import RegionChat

    chat = RegionChat.from_pretrained(model, device="cpu", dtype="float32")
    known = []
    for line in (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:images]:
        scene = json.loads(line)
        boxes, path = scene["boxes"][:boxes_each], data / scene["image"]
        answers = chat.describe(path, boxes, QUESTION, max_new_tokens=MAX_TOKENS)
        url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
        known += [Known(url, box, answer) for box, answer in zip(boxes, answers, strict=True)]
    return known


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("exp/quickstart/stage2"))
    parser.add_argument("--data", type=Path, default=Path("exp/quickstart/data"))
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    say(machine())
    known = learn(args.model, args.data)
    say(f"{len(known)} boxes, {len({one.answer for one in known})} different answers expected")
    command = [sys.executable, "-m", "gpt4roi.cli", "serve", "--model", str(args.model), "--port", "0"]
    command += ["--device", "cpu", "--dtype", "float32"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        api = Api(server.stdout.readline().strip())
        start = time.monotonic()
        deadline = start + 60 * args.minutes
        seen, threads = crowd(api, known, args.clients, deadline)
        memory = watch_memory(server.pid, start, deadline)
        for thread in threads:
            thread.join()
        after = [api.answer(one, "chat") for one in known[:5]] == [one.answer for one in known[:5]]
        return verdict(seen, memory, after)
    finally:
        server.terminate()
        server.wait()


def verdict(seen: Seen, memory: list[tuple[float, float]], answers_after: bool) -> int:
    """Prints what was seen; 1 where something was wrong."""
    for kind, count in sorted(seen.counts.items()):
        say(f"{count:6d}  {kind}")
    waits = sorted(seen.waits)
    say(f"waited {waits[len(waits) // 2]:.2f} s in the middle, {waits[int(0.95 * len(waits))]:.2f} s at 95 %")
    say(f"{len(seen.wrong)} answers or errors that must not be")
    for line in seen.wrong[:10]:
        say(line)
    later = [used for passed, used in memory if passed >= SETTLING_SECONDS]
    if later:
        say(f"memory after the first minute: {min(later):.1f} to {max(later):.1f} MB, {later[-1] - later[0]:+.1f} MB")
    say("the server answers as before" if answers_after else "the server does NOT answer as before")
    return 1 if seen.wrong or not answers_after else 0


if __name__ == "__main__":
    sys.exit(main())
