"""Judge: a language model behind an OpenAI-compatible endpoint that gives verdicts on answers, each cached on disk.

A request is found again by its whole content (endpoint, model, messages, temperature, seed), so a repeated run asks
nothing and a killed one resumes. What a prompt says and how a reply is read belongs to a benchmark.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpt4roi.errors import InputError
from gpt4roi.io.digests import sha256_of
from gpt4roi.io.journal import Journal
from gpt4roi.io.json_files import as_json
from gpt4roi.io.progress import Progress

logger = logging.getLogger(__name__)

KEY_VARIABLE = "JUDGE_API_KEY"
JUDGE_FOLDER = "judge"
"""Where a run's folder holds its verdicts."""
SEED, RETRIES, TIMEOUT_SECONDS, CONCURRENCY = 0, 8, 300.0, 8
_REFUSED = (400, 413, 422)
"""Statuses by which an endpoint refuses one request, such as a filter of contents; others concern all requests."""


@dataclass(frozen=True)
class JudgePrompt:
    """What a judge is asked, and how its reply is read.

    Attributes:
        template: With `{name}` for each text of a request.
        parse: From the reply to the verdict; None where the reply is of another form.
        system: Message before it.
        max_tokens: Longest reply.
    """

    template: str
    parse: Callable[[str], Any]
    system: str = ""
    max_tokens: int = 300

    @property
    def digest(self) -> str:
        """Tells prompts apart: equal for equal texts and limits."""
        return sha256_of([as_json([self.system, self.template, self.max_tokens]).encode()])[:8]

    def messages(self, texts: Mapping[str, str], image: str | None) -> list[dict[str, Any]]:
        """Returns the messages of one request; image: a data URL of what the judge sees."""
        # Not str.format: a template from a file may hold braces of its own, as of JSON.
        content: Any = re.sub(r"\{(\w+)\}", lambda found: texts.get(found[1], found[0]), self.template)
        if image is not None:
            content = [{"type": "text", "text": content}, {"type": "image_url", "image_url": {"url": image}}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]


@dataclass(frozen=True)
class Verdicts:
    """What a judge said of some requests.

    Attributes:
        values: What the prompt's parse returned, in order; None where the reply could not be read.
        label: Judge and prompt, which belongs to every figure's name.
        details: For metrics.json.
        notes: What a reader of the figures must know.
    """

    values: list[Any]
    label: str
    details: dict[str, Any]
    notes: list[str]

    def named(self, figure: str) -> str:
        """Returns a figure's name with judge and prompt."""
        return f"{figure} ({self.label})"


@dataclass(frozen=True)
class Judge:
    """An endpoint and a model, asked at temperature 0 with a seed.

    Attributes:
        url: As `http://localhost:8000/v1`.
        model: What the endpoint calls it.
        folder: Gets the cache, `0.jsonl`.
        api_key: Sent as a bearer token; never written anywhere.
        template: Takes the place of a benchmark's own.
        concurrency: Requests at once.
        also_cached: Other folders whose verdicts are used.
        offline: Takes cached verdicts alone.
    """

    url: str
    model: str
    folder: Path
    api_key: str = field(default="", repr=False)
    template: str | None = None
    concurrency: int = CONCURRENCY
    also_cached: tuple[Path, ...] = ()
    offline: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise InputError(f"--judge must be an endpoint such as http://localhost:8000/v1, got {self.url!r:.200}")
        if parts.username is not None or parts.password is not None:
            raise InputError(f"--judge: the address holds a password; give --judge-key-file FILE or set {KEY_VARIABLE}")

    def ask(
        self, prompt: JudgePrompt, requests: Sequence[Mapping[str, str]], images: Sequence[str] | None = None
    ) -> Verdicts:
        """Returns a verdict for each request.

        Args:
            prompt: What is asked.
            requests: The texts of each.
            images: A data URL for each, where the judge sees an image.

        Raises:
            InputError: The endpoint cannot be used, or answers as another model than before.
        """
        prompt = prompt if self.template is None else replace(prompt, template=self._checked(prompt, requests))
        shown: Sequence[str | None] = images or [None] * len(requests)
        messages = (prompt.messages(texts, image) for texts, image in zip(requests, shown, strict=True))
        bodies = [self._body(one, prompt.max_tokens) for one in messages]
        keys = [sha256_of([self.url.encode(), json.dumps(body, sort_keys=True).encode()]) for body in bodies]
        wanted = dict(zip(keys, bodies, strict=True))
        replies = {key: reply for key, reply in self._cached() if key in wanted}
        missing = {key: body for key, body in wanted.items() if key not in replies}
        replies |= self._request(missing, {str(one["answered_by"]) for one in replies.values()})
        values = [None if replies[key].get("refused") else prompt.parse(replies[key]["reply"]) for key in keys]
        return self._verdicts(prompt, values, [replies[key] for key in keys])

    def _checked(self, prompt: JudgePrompt, requests: Sequence[Mapping[str, str]]) -> str:
        template, names = self.template or "", sorted(requests[0]) if requests else []
        lacking = [
            f"{{{name}}}" for name in names if f"{{{name}}}" in prompt.template and f"{{{name}}}" not in template
        ]
        if lacking:
            raise InputError(f"--judge-prompt: has no {', '.join(lacking)}, which the texts of a request replace")
        return template

    def _body(self, messages: list[dict[str, Any]], max_tokens: int) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "seed": SEED,
            "max_tokens": max_tokens,
        }

    def _cached(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for folder in (*self.also_cached, self.folder):
            if folder.is_dir():
                records = (one for one in Journal(folder).records() if {"key", "reply", "answered_by"} <= one.keys())
                yield from ((record["key"], record) for record in records)

    def _request(self, bodies: Mapping[str, dict[str, Any]], served: set[str]) -> dict[str, dict[str, Any]]:
        """Returns the replies by key, each journaled as it comes; served: what cached replies came from."""
        if not bodies:
            return {}
        if self.offline:
            raise InputError(f"{len(bodies)} verdicts are not in {self.folder}; run that evaluation again")
        journal, progress = Journal(self.folder, kept="verdicts so far are kept"), Progress(len(bodies), "verdicts")
        replies: dict[str, dict[str, Any]] = {}
        client = self._client
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            futures = {pool.submit(self._complete, client, body): key for key, body in bodies.items()}
            for future in as_completed(futures):
                key, reply = futures[future], future.result()
                replies[key] = reply
                if not reply.get("refused"):  # a refused request is asked again by another run
                    served.add(reply["answered_by"])
                    self._refuse_mixture(served)
                    journal.append([{"key": key, **reply, "request": _without_images(bodies[key])}])
                progress.update(1)
        finally:
            pool.shutdown(cancel_futures=True)
        if not served:
            first = next(iter(replies.values()))["refused"]
            raise InputError(f"--judge {self.url}: refused all {len(bodies)} requests: {first}")
        return replies

    def _refuse_mixture(self, served: set[str]) -> None:
        if len(served) > 1:
            raise InputError(
                f"--judge-model {self.model}: replies come from {' and '.join(sorted(served))}, and verdicts of two "
                f"models are never mixed; name one of them, or remove {self.folder}"
            )

    @cached_property
    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise InputError("--judge needs the package openai; pip install 'gpt4roi[judge]'") from None
        # The client waits and asks again after 408, 409, 429, 5xx, time-outs and lost connections, as Retry-After says.
        # Without a key of its own it would take OPENAI_API_KEY and send it to any endpoint.
        return OpenAI(base_url=self.url, api_key=self.api_key or "none", max_retries=RETRIES, timeout=TIMEOUT_SECONDS)

    def _complete(self, client: Any, body: dict[str, Any]) -> dict[str, Any]:
        from openai import APIError, APIStatusError

        try:
            found = client.chat.completions.create(**body)
        except APIStatusError as error:
            what = f"{error.status_code}: {_shortened(error.message)}"
            if error.status_code in _REFUSED:
                return {"refused": what, "reply": "", "answered_by": self.model}
            raise InputError(f"--judge {self.url}: {what}; verdicts so far are kept: run it again") from None
        except APIError as error:  # no connection, or no complete reply in time, after all retries
            what = _shortened(str(error.__cause__ or error))
            raise InputError(f"--judge {self.url}: {what}; verdicts so far are kept: run it again") from None
        try:
            text = found.choices[0].message.content or ""
        except (AttributeError, IndexError, TypeError):
            raise InputError(f"--judge {self.url}: its reply is no chat completion: {found!r:.200}") from None
        return {"reply": text, "answered_by": str(found.model)}

    def _verdicts(self, prompt: JudgePrompt, values: list[Any], replies: list[dict[str, Any]]) -> Verdicts:
        label = f"judge {self.model}, prompt {prompt.digest}"
        refused = [one["refused"] for one in replies if one.get("refused")]
        unread = [one["reply"] for one, value in zip(replies, values, strict=True) if value is None]
        notes = []
        if unread:
            first = refused[0] if refused else f"{unread[0]!r:.120}"
            notes.append(f"{len(unread)} of {len(values)} verdicts could not be read and count as the worst: {first}")
        details = {
            "model": self.model,
            "url": self.url,
            "answered_by": sorted({one["answered_by"] for one in replies if not one.get("refused")}),
            "prompt": prompt.digest,
            "template": prompt.template,
            "temperature": 0,
            "seed": SEED,
            "verdicts": len(values),
            "unreadable": len(unread),
            "refused": len(refused),
        }
        return Verdicts(values, label, details, notes)


def read_key(path: str | Path | None) -> str:
    """Returns the judge's key: from a file, or from the environment variable JUDGE_API_KEY, or none."""
    if path is None:
        return os.environ.get(KEY_VARIABLE, "").strip()
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--judge-key-file {path}: cannot be read: {getattr(error, 'strerror', error)}") from None
    if not key or len(key.split()) > 1:
        raise InputError(f"--judge-key-file {path}: expected one key and nothing else")
    return key


def json_number(reply: str, name: str, low: float, high: float) -> float | None:
    """Returns a number of the first JSON object in a reply; None where there is none between low and high."""
    start = reply.find("{")
    try:
        value = json.JSONDecoder().raw_decode(reply, start)[0][name] if start >= 0 else None
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if low <= value <= high else None


def only_number(reply: str, low: float, high: float) -> float | None:
    """Returns the number that a reply consists of; None for any other reply."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\.?\s*", reply)
    value = float(found.group(1)) if found else None
    return value if value is not None and low <= value <= high else None


def yes_or_no(reply: str) -> bool | None:
    """Returns whether a reply that consists of one word says yes; None for any other reply."""
    return {"yes": True, "no": False}.get(reply.strip().rstrip(".").lower())


def _shortened(text: str) -> str:
    return " ".join(text.split())[:300]


def _without_images(body: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the messages as they are kept, with an image's digest in its place."""

    def kept(part: Any) -> Any:
        if not isinstance(part, dict) or "image_url" not in part:
            return part
        return {"type": "image", "sha256": hashlib.sha256(part["image_url"]["url"].encode()).hexdigest()}

    return [
        {**one, "content": [kept(part) for part in one["content"]]} if isinstance(one["content"], list) else one
        for one in body["messages"]
    ]
