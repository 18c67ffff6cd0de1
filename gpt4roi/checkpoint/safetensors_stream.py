"""safetensors files read by offset and written tensor by tensor, without ever holding one whole."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt4roi.checkpoint.stored import DTYPE_SIZES, StoredTensor
from gpt4roi.errors import InputError
from gpt4roi.io.sizes import readable_size

_LENGTH_BYTES = 8
_HEADER_LIMIT = 100_000_000


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor to be written: its place in the file follows from dtype and shape, its bytes come from `pieces`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]


def read_directory(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of one safetensors file by name; raises InputError when file and header disagree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(_HEADER_LIMIT, size - _LENGTH_BYTES):
            raise InputError(
                f"{path} is not a whole safetensors file: {size} bytes, header of {length} bytes; "
                "download or copy it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _entry(name, record, path, _LENGTH_BYTES + length) for name, record in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} has a damaged safetensors header ({error}); download or copy it again") from error
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=_LENGTH_BYTES + length)
    if end > size:
        raise InputError(
            f"{path} is cut off: {size} bytes ({readable_size(size)}), its header promises {end} "
            f"({readable_size(end)}); download or copy it again"
        )
    return tensors


def _entry(name: str, record: dict, path: Path, data_start: int) -> StoredTensor:
    if record["dtype"] not in DTYPE_SIZES:
        raise InputError(
            f"{path}: {name} has the type {record['dtype']}, which has no place here; expected one of "
            f"{', '.join(DTYPE_SIZES)}: take the folder with unquantised weights"
        )
    begin, end = record["data_offsets"]
    tensor = StoredTensor(name, record["dtype"], tuple(int(n) for n in record["shape"]), path, data_start + begin)
    if end - begin != tensor.nbytes or begin < 0:
        raise ValueError(f"{name} takes {end - begin} bytes, its shape {list(tensor.shape)} needs {tensor.nbytes}")
    return tensor


def write_file(
    path: Path, tensors: Sequence[PlannedTensor], metadata: dict[str, str], progress: Callable[[int], None]
) -> None:
    """Writes one safetensors file beside `path`, forces it to the disk and renames it: `path` is whole or absent."""
    part = path.with_name(path.name + ".part")
    with part.open("wb", buffering=0) as file:
        _write_all(file, _header(tensors, metadata))
        for tensor in tensors:
            written = 0
            for piece in tensor.pieces():
                _write_all(file, piece)
                written += len(piece)
                progress(len(piece))
            if written != tensor.nbytes:
                raise RuntimeError(f"{tensor.name}: {written} bytes were produced, {tensor.nbytes} planned")
        os.fsync(file.fileno())
    part.replace(path)


def _header(tensors: Iterable[PlannedTensor], metadata: dict[str, str]) -> bytes:
    header: dict = {"__metadata__": metadata}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # the format wants the data to start at a multiple of eight
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _write_all(file, piece: bytes | memoryview) -> None:
    view = memoryview(piece)
    while len(view):
        view = view[file.write(view) :]
