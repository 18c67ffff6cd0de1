"""Sizes and numbers as text: `13.5 GB` and `1 sample` for messages, `5GB` or `500MiB` parsed from an option."""

from __future__ import annotations

import re

from gpt4roi.errors import InputError

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def readable_size(count: float) -> str:
    """Formats a number of bytes: `13.5 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def parse_size(text: str) -> int:
    """Parses a size such as `5GB`, `500MiB` or `1000000` into bytes; raises InputError where it is none."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise InputError(f"--max-shard-size {text!r} is not a size; write it as 5GB, 500MiB or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])


def counted(number: int, noun: str) -> str:
    """Returns a number and its noun, which takes an s (after x, es): `1 sample`, `1,200 boxes`."""
    ending = "" if number == 1 else "es" if noun.endswith("x") else "s"
    return f"{number:,} {noun}{ending}"
