"""What the command line writes, and where: answers to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from gpt4roi.errors import InputError
from gpt4roi.io.json_files import as_json


def line(text: str) -> None:
    """Writes one answer line to stdout, at once, so that a pipe sees it."""
    piece(text + "\n")


def piece(text: str) -> None:
    """Writes a part of an answer to stdout, at once; what a terminal's encoding cannot hold as an escape."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def note(text: str) -> None:
    """Writes messages for the user to stderr, beside the answers."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def record(value: Any, indent: int | None = 2) -> None:
    """Writes one JSON value to stdout; text stays readable in any language."""
    line(as_json(value, indent, sys.stdout.encoding or "utf-8"))


def error(command: str, message: str) -> None:
    """Writes one line `COMMAND: error: MESSAGE` to stderr."""
    sys.stderr.write(f"{command}: error: {' '.join(message.split())}\n")
    sys.stderr.flush()


def target_file(flag: str, path: str, example: str) -> Path:
    """Returns where a file will be written; example: a name for it. Raises InputError where none can be."""
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{flag} {path}: is a folder; give a file name such as {target / example}")
    if target.exists() and not target.is_file():
        raise InputError(f"{flag} {path} is no file; give a file name such as {example}")
    if not target.parent.is_dir():
        raise InputError(f"{flag} {path}: the folder {target.parent} does not exist; make it first")
    return target


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the moment; a later command in the same process replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")
        sys.stderr.flush()


def log_to_stderr(level: int = logging.INFO) -> None:
    """Sends the log to stderr: this package's from `level` on, the libraries' from warnings on."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Stderr)]:
        root.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    root.addHandler(handler)
    logging.getLogger("gpt4roi").setLevel(level)
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what it finds wrong with a file is an InputError of ours


def silence_stdout() -> None:
    """Points stdout at nothing, so that the interpreter's last flush does not complain about a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
