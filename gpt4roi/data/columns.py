"""Memory-mapped column file: named arrays that open in a moment, shared by all processes that read them."""

from __future__ import annotations

import itertools
import json
import mmap
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gpt4roi.io.atomic import replacing

_MAGIC = b"GPT4RoI columns 2\n"
_START = len(_MAGIC) + 24
"""Then follow, as little-endian numbers of 8 bytes: the header's size, the file's, the CRC-32 of all that follows."""
_ALIGN = 64


class ColumnsError(Exception):
    """The file is not one that `Columns.save` wrote to its end."""


class Columns(dict[str, np.ndarray]):
    """Arrays by name, and metadata; a column of texts is two arrays (UTF-8 bytes, and where each ends).

    Opened from a file, the arrays are read-only views of its pages; sent to another process, only the path is.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any], path: Path | None = None) -> None:
        super().__init__(arrays)
        self.metadata, self.path = dict(metadata), path

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is not None:
            return Columns.open, (self.path, False)
        return Columns, (dict(self), self.metadata)

    def text(self, name: str, index: int) -> str:
        """Returns one text of a column."""
        return self.texts(name, slice(index, index + 1))[0]

    def texts(self, name: str, rows: slice) -> list[str]:
        """Returns the texts of some rows of a column."""
        limits = self[f"{name}.limits"][rows.start : rows.stop + 1].tolist()
        first = limits[0]
        joined = self[f"{name}.utf8"][first : limits[-1]].tobytes()
        return [joined[a - first : b - first].decode() for a, b in itertools.pairwise(limits)]

    def all_texts(self, name: str) -> list[str]:
        """Returns a whole column of texts; none where there is no such column."""
        limits = self.get(f"{name}.limits")
        return [] if limits is None else self.texts(name, slice(0, len(limits) - 1))

    def rows(self, offsets: str, index: int) -> slice:
        """Returns which rows belong to an item; offsets: the column that `make_offsets` made."""
        first, end = self[offsets][index : index + 2].tolist()
        return slice(first, end)

    @classmethod
    def open(cls, path: Path, check: bool = True) -> Columns:
        """Maps a file; raises ColumnsError where it is not what was saved, OSError where it cannot be read.

        Args:
            path: The file.
            check: Read all of it, against its checksum.
        """
        with path.open("rb") as file:
            start = file.read(_START)
            size = os.fstat(file.fileno()).st_size
            if not start.startswith(_MAGIC) or len(start) < _START:
                raise ColumnsError(f"{path}: not a file of columns")
            header_size, total, checksum = np.frombuffer(start, "<u8", offset=len(_MAGIC)).tolist()
            if total != size or header_size > size - _START:
                raise ColumnsError(f"{path}: {size} bytes of {total}, {header_size} of them for the header")
            try:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                if check and _checksum(memoryview(pages)[_START:], header_size) != checksum:
                    raise ColumnsError(f"{path}: its checksum is another")
                header = json.loads(pages[_START : _START + header_size])
                arrays = {
                    name: np.frombuffer(pages, dtype, int(np.prod(shape)), offset).reshape(shape)
                    for name, (dtype, shape, offset) in header["arrays"].items()
                }
                return cls(arrays, header["facts"], path)
            except (ValueError, KeyError, TypeError, OverflowError) as error:
                raise ColumnsError(f"{path}: damaged: {error}") from None

    def save(self, path: Path) -> None:
        """Writes the file atomically; raises OSError and leaves nothing."""
        layout: dict[str, tuple[str, list[int], int]] = {}
        offset = 0
        for name, array in self.items():
            layout[name] = (array.dtype.str, list(array.shape), offset)
            offset += -(-array.nbytes // _ALIGN) * _ALIGN
        # The header's length shifts the offsets, whose digits change its length: leave room for both.
        room = len(json.dumps({"arrays": layout, "facts": self.metadata})) + 24 * len(layout) + _ALIGN
        start = -(-(_START + room) // _ALIGN) * _ALIGN
        layout = {name: (dtype, shape, place + start) for name, (dtype, shape, place) in layout.items()}
        header = json.dumps({"arrays": layout, "facts": self.metadata}).encode()
        header = header.ljust(start - _START)
        checksum = _checksum(header, len(header))
        with replacing(path) as beside, beside.open("wb") as file:
            file.write(bytes(_START) + header)
            for array in self.values():
                data = np.ascontiguousarray(array)
                for block in (data.data.cast("B") if data.size else b"", bytes(-data.nbytes % _ALIGN)):
                    file.write(block)
                    checksum = zlib.crc32(block, checksum)
            file.seek(0)
            file.write(_MAGIC + np.asarray([len(header), start + offset, checksum], "<u8").tobytes())


def _checksum(content: bytes | memoryview, header_size: int) -> int:
    return zlib.crc32(content, header_size & 0xFFFFFFFF)


def make_offsets(counts: Iterable[int]) -> np.ndarray:
    """Returns int64[N + 1]: where the rows of each of N items begin, and the end of all."""
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64))]).astype(np.int64)


def text_column(name: str, texts: Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the two arrays that hold a column of texts."""
    encoded = [text.encode() for text in texts]
    limits = make_offsets(map(len, encoded))
    return {f"{name}.utf8": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}.limits": limits}
