"""Results in files: a full disk costs one readable line, and a kill nothing of what was there before."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@contextlib.contextmanager
def whole(path: Path, kept: str = "what was there before is kept") -> Iterator[Path]:
    """Gives a path beside this one to write to; that file takes its place when all went well, else nothing is left.

    A link is followed. Makes the folder. Raises InputError where the path is something else than a file, which would
    be replaced, and where the file cannot be written.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file that could be replaced; give another name")
    beside = path.with_name(f".{path.name}.part")
    with telling(path, kept):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield beside
            sync(beside)
            beside.replace(path)
            sync(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str, kept: str = "what was there before is kept") -> None:
    """Writes a text file whole or not at all. Raises InputError where it cannot be written."""
    with whole(path, kept) as beside:
        beside.write_text(text, encoding="utf-8")


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


def sync(path: Path) -> None:
    """Forces a file, or the names in a folder, to the disk, so that they outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def share(path: Path) -> None:
    """Lets everyone read a file who may list its folder: safetensors leaves what it writes to its owner alone.

    Where the file system has no such permissions, nothing happens.
    """
    with contextlib.suppress(OSError):
        path.chmod(path.stat().st_mode | path.parent.stat().st_mode & 0o444)


def remove_folder(folder: Path, aside: Path | None = None) -> None:
    """Deletes a folder, if it is there; a kill on the way leaves no half of it under its name.

    aside: the name that it has while it goes, `.<folder>.removed` by default. What a killed call left there goes too.
    Of a link to a folder, the link goes and the folder stays.
    """
    if folder.is_symlink():
        folder.unlink()
        return
    aside = aside or folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.replace(aside)
        shutil.rmtree(aside)


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
