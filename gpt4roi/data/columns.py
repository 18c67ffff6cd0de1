"""Named arrays in one file, mapped into memory: opened in a moment, shared by all processes that read it."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_MAGIC = b"GPT4RoI columns 1\n"
_ALIGN = 64


class ColumnsError(Exception):
    """The file is not one that `Columns.save` wrote to its end."""


class Columns(Mapping[str, np.ndarray]):
    """Arrays by name, and a dictionary of facts; a column of texts is two arrays (UTF-8 bytes, and where each ends).

    Opened from a file, the arrays are read-only views of its pages; sent to another process, only the path is.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], path: Path | None = None) -> None:
        self._arrays, self.facts, self.path = dict(arrays), dict(facts), path

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self):
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self):
        if self.path is not None:
            return Columns.open, (self.path,)
        return Columns, (self._arrays, self.facts)

    def text(self, name: str, index: int) -> str:
        """Returns one text of a column."""
        return self.texts(name, index, index + 1)[0]

    def texts(self, name: str, start: int, stop: int) -> list[str]:
        """Returns the texts start to stop - 1 of a column."""
        limits = self._arrays[f"{name}.limits"][start : stop + 1].tolist()
        first = limits[0]
        joined = self._arrays[f"{name}.utf8"][first : limits[-1]].tobytes()
        return [joined[a - first : b - first].decode() for a, b in itertools.pairwise(limits)]

    @classmethod
    def open(cls, path: Path) -> Columns:
        """Maps a file; raises ColumnsError where it is not whole, OSError where it cannot be read."""
        with path.open("rb") as file:
            start = file.read(len(_MAGIC) + 16)
            size = os.fstat(file.fileno()).st_size
            if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + 16:
                raise ColumnsError(f"{path}: not a file of columns")
            header_size, total = np.frombuffer(start, "<u8", offset=len(_MAGIC)).tolist()
            if total != size:
                raise ColumnsError(f"{path}: {size} bytes of {total}")
            try:
                header = json.loads(file.read(header_size))
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                arrays = {
                    name: np.frombuffer(pages, dtype, int(np.prod(shape)), offset).reshape(shape)
                    for name, (dtype, shape, offset) in header["arrays"].items()
                }
                return cls(arrays, header["facts"], path)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise ColumnsError(f"{path}: damaged: {error}") from None

    def save(self, path: Path) -> None:
        """Writes the file beside its place and renames it when it is whole; raises OSError and leaves nothing."""
        layout, offset = {}, 0
        for name, array in self._arrays.items():
            layout[name] = (array.dtype.str, list(array.shape), offset)
            offset += -(-array.nbytes // _ALIGN) * _ALIGN
        # The header's length shifts the offsets, whose digits change its length: leave room for both.
        room = len(json.dumps({"arrays": layout, "facts": self.facts})) + 24 * len(layout) + _ALIGN
        start = -(-(len(_MAGIC) + 16 + room) // _ALIGN) * _ALIGN
        layout = {name: (dtype, shape, place + start) for name, (dtype, shape, place) in layout.items()}
        header = json.dumps({"arrays": layout, "facts": self.facts}).encode()
        header = header.ljust(start - len(_MAGIC) - 16)
        part = part_of(path)
        try:
            with part.open("wb") as file:
                file.write(_MAGIC + np.asarray([len(header), start + offset], "<u8").tobytes() + header)
                for array in self._arrays.values():
                    data = np.ascontiguousarray(array)
                    file.write(data.data.cast("B") if data.size else b"")
                    file.write(bytes(-data.nbytes % _ALIGN))
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Returns a name beside a file, to write it under until it is whole; no other process on any machine has it."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


def text_column(name: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the two arrays that hold a column of texts."""
    encoded = [text.encode() for text in texts]
    limits = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in encoded], out=limits[1:])
    return {f"{name}.utf8": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}.limits": limits}
