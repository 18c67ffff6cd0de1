"""Files of long jobs: written so that a full disk costs one readable line, and nothing of what was there before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gpt4roi.errors import InputError


@contextlib.contextmanager
def telling(path: Path, kept: str = "what is done is kept") -> Iterator[None]:
    """Turns a disk that is full or may not be written into one readable line.

    path: what is being written; kept: what is not lost. Only the writing belongs inside: any OSError is taken for it.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}; {kept}: make room, and run it again"
        ) from None


def append_lines(path: Path, lines: str, kept: str = "what is done is kept") -> None:
    """Appends whole lines to a file; after this call a kill no longer costs them.

    A line that a kill or a full disk tore is ended first, so that it spoils none of these. Raises InputError where the
    file cannot be written.
    """
    if not lines:
        return
    with telling(path, kept), path.open("ab") as file:
        torn = file.tell() and not _ends_whole(path)
        file.write((b"\n" if torn else b"") + lines.encode())


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
