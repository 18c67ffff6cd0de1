"""Where the index of an annotation file is kept: made once, by one process, and mapped by all others.

An index is found by the content of its files and by the recipe it was made with (reader, version, options), so a file
that changes gets a new one and a copied or touched file does not. What a file held when it was last looked at is
remembered with its size and times in a stamp, so that an opening need not read the file; unless the file had changed
just before, and might change again within one tick of its file system's clock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt4roi.data.annotations import read_bytes
from gpt4roi.data.columns import Columns, ColumnsError, part_of

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised where the meaning of any index changes; a reader has a version of its own."""


@dataclass(frozen=True)
class Recipe:
    """What an index depends on beside its files. options: `name=value` of what changes the result."""

    reader: str
    version: int
    options: str = ""

    def __str__(self) -> str:
        return f"{self.reader}-{FORMAT}.{self.version}-{self.options}"


SMALL = 1_000_000
"""Files of fewer bytes than this are read anew each time, which takes no longer than to look for an index."""

SETTLED = 2 * 10**9
"""Nanoseconds that a file must have rested for its times to be trusted: clocks of file systems tick up to so slowly."""

Build = Callable[[list[bytes]], Columns]
"""Makes the index of the contents of the files."""


def open_index(files: Sequence[Path], recipe: Recipe, build: Build) -> Columns:
    """Opens the index of some annotation files, and makes it first where there is none.

    Small files have none, only what is made of them.
    Where no folder can keep it (read-only, full), it stays in the memory of this process, with a warning.
    Raises InputError where a file cannot be read or used.
    """
    made: list[Columns] = []

    def build_once(contents: list[bytes]) -> Columns:
        if not made:
            logger.info("Making the index of %s …", ", ".join(map(str, files)))
            made.append(build(contents))
        return made[0]

    states = _states(files)
    if states is None or sum(size for size, *_ in states) < SMALL:
        return build([read_bytes(path) for path in files])
    refused = []
    for folder in index_folders():
        try:
            return _open_in(folder, files, recipe, build_once)
        except (OSError, ColumnsError) as error:
            refused.append(f"{folder}: {error}")
    logger.warning("The index of %s stays in memory, as no folder can keep it: %s", files[0], "; ".join(refused))
    return build_once([] if made else [read_bytes(path) for path in files])


def index_folders() -> list[Path]:
    """Returns where indexes are kept: the user's cache, or else a folder of temporary files."""
    folders = [Path(tempfile.gettempdir()) / f"gpt4roi-{os.getuid()}" / "annotations"]
    with contextlib.suppress(RuntimeError):  # no home
        folders.insert(0, Path.home() / ".cache" / "gpt4roi" / "annotations")
    return folders


def _open_in(folder: Path, files: Sequence[Path], recipe: Recipe, build: Build) -> Columns:
    names = [str(path.absolute()) for path in files]
    place = hashlib.blake2b("\n".join([*names, str(recipe)]).encode(), digest_size=12).hexdigest()
    stamp = folder / f"{recipe.reader}-{place}.stamp"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise PermissionError("belongs to another user")
    known = _read_stamp(stamp)
    if known and known["files"] == _states(files):
        with contextlib.suppress(OSError, ColumnsError):
            return Columns.open(folder / known["index"])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(folder / f"{recipe.reader}-{place}.lock", files[0]):
        looked, states = time.time_ns(), _states(files)
        known = _read_stamp(stamp)
        if known and known["files"] == states:  # made while this process waited
            with contextlib.suppress(OSError, ColumnsError):
                return Columns.open(folder / known["index"])
        contents = [read_bytes(path) for path in files]
        index = folder / f"{recipe.reader}-{_digest(contents, recipe)}.columns"
        try:
            columns = Columns.open(index)
        except (OSError, ColumnsError):
            build(contents).save(index)
            columns = Columns.open(index)
        if known and known["index"] != index.name:
            (folder / known["index"]).unlink(missing_ok=True)
        rested = states and max(changed for *_, changed in states) + SETTLED <= looked
        _write_stamp(stamp, {"files": states if rested else [], "index": index.name})
        return columns


def _states(files: Sequence[Path]) -> list[list[int]] | None:
    """Returns size and times of the files; None, which equals no stamp, where one cannot be looked at."""
    try:
        return [[status.st_size, status.st_mtime_ns, status.st_ctime_ns] for status in map(os.stat, files)]
    except OSError:
        return None


def _digest(contents: Sequence[bytes], recipe: Recipe) -> str:
    digest = hashlib.blake2b(str(recipe).encode(), digest_size=16)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()


def _read_stamp(path: Path) -> dict | None:
    try:
        stamp = json.loads(path.read_bytes())
        return stamp if isinstance(stamp["files"], list) and Path(stamp["index"]).name == stamp["index"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_stamp(path: Path, stamp: dict) -> None:
    part = part_of(path)
    try:
        part.write_text(json.dumps(stamp), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(lock: Path, what: Path) -> Iterator[None]:
    """Keeps other processes of the machine out until the block ends, also where it ends by a crash."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Waiting for another process that makes the index of %s …", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
