"""Index of annotation files: built once, by one process, memory-mapped by all others; and the data set over it.

An index is found by the content of its files and by the recipe it was made with (reader, version, options), so a file
that changes gets a new one and a copied or touched file does not. What a file held when it was last read is
remembered with its size and times in a stamp, so that an opening need not read the file; unless the file had changed
just before, and might change again within one tick of its file system's clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.data.annotations import PATH_MARK, Drops
from gpt4roi.data.base import Drop, RegionDataset
from gpt4roi.data.columns import Columns, ColumnsError, text_column
from gpt4roi.errors import InputError
from gpt4roi.io.atomic import FileLock, replacing
from gpt4roi.io.images_on_disk import ImageFinder
from gpt4roi.io.json_files import read_bytes

logger = logging.getLogger(__name__)

FORMAT = 1
"""Bump when the meaning of any index changes; a reader has a version of its own."""

MIN_BYTES = 1_000_000
"""Files of fewer bytes than this are read anew each time, which takes no longer than to open an index."""

MIN_AGE = 2 * 10**9
"""Nanoseconds since a file's last change for its times to be trusted: clocks of file systems tick up to so slowly."""

Build = Callable[[list[bytes]], Columns]
"""Makes the index of the contents of the files."""


@dataclass(frozen=True)
class Recipe:
    """What an index depends on beside its files; options: `name=value` of what changes the result."""

    reader: str
    version: int
    options: str = ""

    def __str__(self) -> str:
        return f"{self.reader}-{FORMAT}.{self.version}-{self.options}"


class IndexedDataset(RegionDataset):
    """A reader whose annotations lie in a memory-mapped index.

    A subclass says in `version` when its index changes its meaning, and makes the index in `build`; `columns` then
    holds it. Column `position` is each item's place in section 0.
    """

    version = 1
    what = "image"
    """What an item is called in messages."""

    def __init__(self, files: Sequence[str | Path], img_prefix: str | Path, options: str = "") -> None:
        self.files = tuple(Path(file) for file in files)
        self.img_prefix = str(img_prefix)
        self.name = str(files[0])
        self.columns = open_index(self.files, Recipe(type(self).__name__, self.version, options), self.build)
        reasons, kinds = self.columns.metadata["drop_reasons"], self.columns["drops"][:, 2]
        counts = np.bincount(kinds, minlength=len(reasons)).tolist()
        self.dropped: Counter[str] = Counter(dict(zip(reasons, counts, strict=True)))
        if not len(self):
            first = next(self.drops(), None)
            at = f"; the first: {first.detail or first.where}" if first else ""
            counted = "; ".join(f"{reason}: {count}" for reason, count in self.dropped.most_common())
            lost = counted or "nothing was dropped"
            raise InputError(f"{self.name}: no {self.what} can be used; left out: {lost}{at}")

    def build(self, contents: list[bytes]) -> Columns:
        """Makes the index of what the files hold."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.columns["position"])

    def drops(self) -> Iterator[Drop]:
        """Lists what was dropped, in the order of the files."""
        metadata, details = self.columns.metadata, self.columns.all_texts("drop_detail")
        for number, (section, position, kind) in enumerate(self.columns["drops"].tolist()):
            reason, where = metadata["drop_reasons"][kind], self.location(position, section)
            detail = (details[number] if details else "") or reason
            path = str(self.files[metadata["drop_sections"][section][0]])
            detail = detail.replace(PATH_MARK, path) if detail.startswith(PATH_MARK) else f"{where}: {detail}"
            yield Drop(reason, where, detail if metadata["drop_faults"][kind] else "")

    def faults(self) -> tuple[int, int]:
        """Returns how many annotations were dropped because they are wrong in themselves, and how many there were."""
        rows, is_fault = self.columns["drops"], np.asarray(self.columns.metadata["drop_faults"], dtype=bool)
        wrong = int(is_fault[rows[:, 2]].sum()) if len(rows) else 0
        return wrong, len(self) + len(self.columns.get("boxes", ())) + len(rows)

    def location(self, position: int, section: int = 0) -> str:
        """Returns a place in a file: `file#section[position]`, or `file#position` in files of lines."""
        file, name = self.columns.metadata["drop_sections"][section]
        return f"{self.files[file]}#{name}[{position}]" if name else f"{self.files[file]}#{position}"

    def source(self, index: int) -> str:
        """Returns the place of an item, as `Drop.where`."""
        return self.location(int(self.columns["position"][index]))

    def image(self, index: int, column: str = "image") -> str:
        """Returns the path of an item's image."""
        return self.image_path(self.columns.text(column, index))

    def image_path(self, name: str) -> str:
        """Returns the path of an image: below img_prefix, or else where `ImageFinder` has it."""
        path = os.path.join(self.img_prefix, name)
        if not self.img_prefix or os.path.exists(path):
            return path
        return str(self._finder.find(name) or path)

    @cached_property
    def _finder(self) -> ImageFinder:
        return ImageFinder(Path(self.img_prefix))


def make_columns(
    arrays: Mapping[str, np.ndarray], texts: Mapping[str, Sequence[str]], drops: Drops, **metadata: Any
) -> Columns:
    """Joins arrays, columns of texts and the drops to an index."""
    dropped, of_drops = drops.columns()
    joined = {**arrays}
    for name, column in texts.items():
        joined |= text_column(name, column)
    return Columns(joined | dropped, metadata | of_drops)


def open_index(files: Sequence[Path], recipe: Recipe, build: Build) -> Columns:
    """Opens the index of some annotation files, and makes it first where there is none.

    Small files have none, only what is made of them. Where no folder can keep it (read-only, full), it stays in the
    memory of this process, with a warning.

    Raises:
        InputError: A file cannot be read or used.
    """
    made: list[Columns] = []

    def build_once(contents: list[bytes]) -> Columns:
        if not made:
            logger.info("Making the index of %s …", ", ".join(map(str, files)))
            made.append(build(contents))
        return made[0]

    states = _states(files)
    if states is None or sum(size for size, *_ in states) < MIN_BYTES:
        return build(_contents(files))
    refused = []
    for folder in index_folders():
        try:
            return _open_in(folder, files, recipe, build_once)
        except (OSError, ColumnsError) as error:
            refused.append(f"{folder}: {error}")
    logger.warning("The index of %s stays in memory, as no folder can keep it: %s", files[0], "; ".join(refused))
    return build_once([] if made else _contents(files))


def index_folders() -> list[Path]:
    """Returns where indexes are cached: the user's cache, or else a folder of temporary files."""
    folders = [Path(tempfile.gettempdir()) / f"gpt4roi-{os.getuid()}" / "annotations"]
    with contextlib.suppress(RuntimeError):  # no home
        folders.insert(0, Path.home() / ".cache" / "gpt4roi" / "annotations")
    return folders


def _contents(files: Sequence[Path]) -> list[bytes]:
    return [read_bytes(path, "the annotation file of a data set") for path in files]


def _open_in(folder: Path, files: Sequence[Path], recipe: Recipe, build: Build) -> Columns:
    names = [str(path.absolute()) for path in files]
    key = hashlib.blake2b("\n".join([*names, str(recipe)]).encode(), digest_size=12).hexdigest()
    stamp = folder / f"{recipe.reader}-{key}.stamp"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise PermissionError("belongs to another user")
    known = _read_stamp(stamp)
    if known and known["files"] == _states(files):
        with contextlib.suppress(OSError, ColumnsError):
            return _open_known(folder, known)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    waiting = f"Waiting for another process that makes the index of {files[0]} …"
    with FileLock(folder / f"{recipe.reader}-{key}.lock", waiting=waiting):
        now, states = time.time_ns(), _states(files)
        known = _read_stamp(stamp)
        if known and known["files"] == states:  # made while this process waited
            with contextlib.suppress(OSError, ColumnsError):
                return _open_known(folder, known)
        contents = _contents(files)
        index = folder / f"{recipe.reader}-{_digest(contents, recipe)}.columns"
        try:
            columns = Columns.open(index)
        except (OSError, ColumnsError) as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning(
                    "The index of %s is damaged, or of another version, and is made anew: %s", files[0], error
                )
            build(contents).save(index)
            columns = Columns.open(index)
        if known and known["index"] != index.name:
            (folder / known["index"]).unlink(missing_ok=True)
        trusted = states and max(changed for *_, changed in states) + MIN_AGE <= now
        content = {"files": states if trusted else [], "index": index.name, "checked": _states([index])}
        with replacing(stamp) as beside:
            beside.write_text(json.dumps(content), encoding="utf-8")
        return columns


def _open_known(folder: Path, stamp: Mapping[str, Any]) -> Columns:
    """Opens the index of a stamp; reads all of it against its checksum where it has changed since it was written."""
    index = folder / stamp["index"]
    return Columns.open(index, check=stamp.get("checked") != _states([index]))


def _states(files: Sequence[Path]) -> list[list[int]] | None:
    """Returns size and times of the files; None, which equals no stamp, where one cannot be read."""
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


def _read_stamp(path: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads(path.read_bytes())
        return stamp if isinstance(stamp["files"], list) and Path(stamp["index"]).name == stamp["index"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
