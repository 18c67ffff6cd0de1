"""Where the bytes of a tensor lie in a file, whatever the file's format, and how to read them piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpt4roi.errors import InputError

DTYPE_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one number, by the names that safetensors uses."""

CHUNK_ELEMENTS = 1 << 20
"""Numbers read at once: 2 MiB of float16 stays in the cache of one core and keeps memory far below 64 MB."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: row-major, little-endian, in one piece of `nbytes` bytes from `offset` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPE_SIZES[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.numel * self.itemsize

    def read(self, buffer: bytearray, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yields the elements [start, stop) as consecutive pieces of `buffer`, each overwritten by the next.

        Every piece but the last holds CHUNK_ELEMENTS numbers, so two tensors of equal shape are read in step. The
        buffer holds at least that many numbers of this dtype.
        """
        stop = self.numel if stop is None else stop
        view = memoryview(buffer)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.itemsize)
            for position in range(start, stop, CHUNK_ELEMENTS):
                piece = view[: min(CHUNK_ELEMENTS, stop - position) * self.itemsize]
                _fill(file, piece, self)
                yield piece


def chunk_buffer(itemsize: int = 8) -> bytearray:
    """Makes a buffer that `StoredTensor.read` can use for numbers of `itemsize` bytes or fewer."""
    return bytearray(CHUNK_ELEMENTS * itemsize)


def _fill(file, piece: memoryview, tensor: StoredTensor) -> None:
    done = 0
    while done < len(piece):
        count = file.readinto(piece[done:])
        if not count:
            raise InputError(
                f"{tensor.path} ended inside {tensor.name} while it was read; the file changed or its disk fails: "
                "compare it with its source and run again"
            )
        done += count


def describe(tensor: StoredTensor) -> str:
    """Says a tensor's name, numbers and kind in a few words, for messages."""
    return f"{tensor.name} {list(tensor.shape)} {tensor.dtype}"
