"""Annotation files with random damage, as disks, editors, exporters and downloads leave them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3.5, 10**30, -(10**30), 10**400, 1e308, float("nan"), float("inf"),
    "", "x", "12", "\x00", "ü😀", "\ud83d", [], [[]], [None], [1, 2], {}, {"x": 1},
    [[0, 0, 1, 1]], ["a", "b", "c", "d"],
)  # fmt: skip
"""Values that stand where another was expected."""
DEPTH = 3000
_BYTE_DAMAGE = ("cut", "bad UTF-8", "bytes", "deep", "nul", "doubled", "empty")


def mutated(content: Any, count: int, seed: int = 0, lines: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yields (what was done, the file's bytes) for `count` damaged copies of a file.

    content: what the file holds: one JSON value, or with `lines` a list of values, one a line.
    About two thirds have one to three values replaced, renamed, taken out or doubled; the others are damaged as text.
    """
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % 3 == 2:
            kind = _BYTE_DAMAGE[number // 3 % len(_BYTE_DAMAGE)]
            yield kind, _damaged(_written(content, lines), kind, rng)
        else:
            copy = json.loads(json.dumps(content))
            done = [_change(copy, rng) for _ in range(rng.integers(1, 4))]
            yield "; ".join(done), _written(copy, lines)


def _written(content: Any, lines: bool) -> bytes:
    if lines:
        return "".join(json.dumps(line) + "\n" for line in content).encode()
    return json.dumps(content).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) inside a value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(entries):
        yield value, key
        yield from _places(inner)


def _change(content: Any, rng: np.random.Generator) -> str:
    """Changes one place of a value in place, and says how."""
    places = list(_places(content))
    if not places:
        return "nothing to change"
    container, key = places[rng.integers(len(places))]
    kind = rng.choice(["replace", "replace", "replace", "remove", "rename", "double"])
    if kind == "remove":
        del container[key]
    elif kind == "rename" and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    elif kind == "double" and isinstance(container, list):
        container.append(container[key])
    else:
        kind = "replace"
        container[key] = copy.deepcopy(STRANGE[rng.integers(len(STRANGE))])
    return f"{kind} {key!r}"


def _damaged(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(1, len(data)))
    if kind == "cut":
        return data[:at]
    if kind == "bad UTF-8":
        return data[:at] + b"\xff\xc3\x28" + data[at:]
    if kind == "bytes":
        noisy = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            noisy[place] = rng.integers(256)
        return bytes(noisy)
    if kind == "deep":
        return data[:at] + b"[" * DEPTH + b"]" * DEPTH + data[at:]
    if kind == "nul":
        return data[:at] + b"\x00" * 16 + data[at:]
    return data + data[:at] if kind == "doubled" else b""
