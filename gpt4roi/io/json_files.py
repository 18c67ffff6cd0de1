"""JSON and JSON-lines files: one reader that names file and line, one writer whose texts stay readable."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.atomic import BEFORE_IS_KEPT, atomic_write_text


def read_bytes(path: str | Path, expected: str = "a JSON file") -> bytes:
    """Reads a file.

    Raises:
        InputError: There is none or it cannot be read; the message says what to give, which is `expected`.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give {expected}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give {expected} inside it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse_json(data: bytes, where: str | Path) -> Any:
    """Parses JSON in UTF-8, with or without a byte order mark; `where` names it, as `file` or `file#line`.

    Raises:
        InputError: It is not valid; with line and column, or the byte.
    """
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text at byte {error.start}; expected JSON") from None
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: nested too deeply, from the first byte on") from None
    except ValueError as error:  # JSONDecodeError, or a number of thousands of digits
        raise InputError(f"{where}: not valid JSON: {error}; is it complete?") from None


def parse_jsonl(data: bytes, path: str | Path) -> Iterator[tuple[int, Any]]:
    """Yields (line from 1, value) of one JSON value a line; for a line that is none, the InputError that says so."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, parse_json(line, f"{path}#{number}")
            except InputError as error:
                yield number, error


def read_json(path: str | Path, expected: str = "a JSON file") -> Any:
    """Reads a JSON file. Raises InputError as `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, expected), path)


def read_json_object(path: str | Path, expected: str = "a JSON file") -> dict[str, Any]:
    """Reads a JSON file that holds an object. Raises InputError as `read_json`, and for another value."""
    value = read_json(path, expected)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object, got {kind_of(value)}")
    return value


def read_jsonl(path: str | Path, expected: str = "a JSON-lines file") -> list[Any]:
    """Reads a file of one JSON value a line; empty lines are skipped. Raises InputError with file and line."""
    values = []
    for _, value in parse_jsonl(read_bytes(path, expected), path):
        if isinstance(value, InputError):
            raise value
        values.append(value)
    return values


def kind_of(value: Any) -> str:
    """Names a JSON value's kind for messages."""
    if value is None:
        return "nothing"
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return kinds.get(type(value), type(value).__name__)


def require_list(path: str | Path, value: Any, key: str, what: str) -> list:
    """Returns the list under a key of an object; raises InputError where there is none. what: the kind of file."""
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected an object with {key!r} ({what}), got {kind_of(value)}")
    if not isinstance(value.get(key), list):
        raise InputError(f"{path}: expected a list under {key!r} ({what}), got {kind_of(value.get(key))}")
    return value[key]


def as_json(value: Any, indent: int | None = None, encoding: str = "utf-8") -> str:
    """Returns JSON whose texts stay readable; with escapes, which mean the same, where the encoding cannot hold them.

    Names of files may hold bytes that are no text, and JSON halves of characters: no encoding has these.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


def write_json(path: Path, value: Any, indent: int | None = None, kept: str = BEFORE_IS_KEPT) -> None:
    """Writes a JSON file, with a newline at its end, completely or not at all. Raises InputError as `atomic_path`.

    NaN and infinity, which strict readers refuse, become null.
    """
    atomic_write_text(path, as_json(_finite(value), indent) + "\n", kept)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value
