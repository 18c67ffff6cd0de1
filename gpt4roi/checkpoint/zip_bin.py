"""PyTorch's `.bin` files of today (a zip of raw storages and one pickle) read by offset, without torch.load.

The pickle is read by an unpickler that knows the records of a plain state dict and nothing else, so it runs no code
from the file; the storages are left where they are. Writing down file, offset and shape is all that opening costs.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt4roi.checkpoint.stored import DTYPE_SIZES, StoredTensor
from gpt4roi.errors import InputError
from gpt4roi.io.sizes import readable_size

_STORAGE_DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_PICKLE_LIMIT = 100_000_000
_LOCAL_HEADER_BYTES = 30
_DAMAGED = (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_unused: Any) -> _View:
    view = _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))
    if len(view.shape) != len(view.strides):
        raise ValueError(f"{len(view.strides)} strides for the shape {list(view.shape)}")
    return view


def _rebuild_parameter(view: _View, *_unused: Any) -> _View:
    return view


class _StateDictUnpickler(pickle.Unpickler):
    """Reads a state dict's pickle; any name that a plain state dict does not need is an InputError."""

    def __init__(self, raw: bytes, path: Path):
        super().__init__(io.BytesIO(raw))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _StorageType(_STORAGE_DTYPES[name])
        raise InputError(
            f"{self._path} asks for {module}.{name}, which a file of weights does not need; it may run foreign code "
            "and was not read: take the weights from their source, or as safetensors"
        )

    def persistent_load(self, record: Any) -> _Storage:
        _kind, storage_type, key, _device, _count = record
        return _Storage(storage_type.dtype, key)


def read_directory(path: Path) -> dict[str, StoredTensor]:
    """Lists the tensors of one `.bin` file by name; raises InputError for anything but a zip of plain tensors."""
    with path.open("rb") as file:
        start = file.read(4)
        if start != b"PK\x03\x04":
            raise _not_a_zip(path, start)
        try:
            with zipfile.ZipFile(file) as archive:
                return _list_tensors(path, file, archive)
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{path} is cut off or damaged ({readable_size(path.stat().st_size)}, {error}); "
                "download or copy it again"
            ) from error


def _not_a_zip(path: Path, start: bytes) -> InputError:
    size = path.stat().st_size
    if start[:1] != b"\x80":
        return InputError(f"{path} ({size} bytes) is not a file of PyTorch weights: it begins with {start!r}")
    return InputError(
        f"{path} is in PyTorch's old format (before 1.6), which can only be read whole and needs {readable_size(size)} "
        f"of memory; rewrite it once: python3 -c \"import torch; f = '{path.name}'; "
        f'torch.save(torch.load(f, weights_only=True), f)"'
    )


def _list_tensors(path: Path, file: Any, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    records = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
    if "data.pkl" not in records or records["data.pkl"].file_size > _PICKLE_LIMIT:
        raise InputError(f"{path} is a zip, but not one of PyTorch weights: it has no usable data.pkl")
    if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
        raise InputError(f"{path} was written on a big-endian machine; rewrite it as safetensors there")
    try:
        content = _StateDictUnpickler(archive.read(records["data.pkl"]), path).load()
    except _DAMAGED as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} has a damaged table of tensors ({error}); download or copy it again") from error
    if not isinstance(content, dict) or not all(isinstance(view, _View) for view in content.values()):
        kind = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path} holds more than tensors by name (it has: {kind}); save the model's state dict alone")
    offsets = {}
    for view in content.values():
        key = view.storage.key
        if key not in offsets:
            offsets[key] = _data_offset(path, file, records.get(f"data/{key}"), key)
    return {str(name): _stored(str(name), view, path, *offsets[view.storage.key]) for name, view in content.items()}


def _data_offset(path: Path, file: Any, info: zipfile.ZipInfo | None, key: str) -> tuple[int, int]:
    """Returns first byte and length of one storage; the local header's own lengths decide, not the directory's."""
    if info is None:
        raise InputError(f"{path} lacks the bytes of its storage {key}; download or copy it again")
    if info.compress_type != zipfile.ZIP_STORED:
        raise InputError(f"{path} is a compressed zip, which PyTorch does not write; rewrite it with torch.save")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return info.header_offset + _LOCAL_HEADER_BYTES + names, info.file_size


def _stored(name: str, view: _View, path: Path, start: int, length: int) -> StoredTensor:
    itemsize = DTYPE_SIZES[view.storage.dtype]
    tensor = StoredTensor(name, view.storage.dtype, view.shape, path, start + view.offset * itemsize)
    if not _is_row_major(view):
        raise InputError(
            f"{path}: {name} {list(view.shape)} is stored transposed (strides {list(view.strides)}); "
            "save the model again with every tensor made .contiguous()"
        )
    if view.offset < 0 or view.offset * itemsize + tensor.nbytes > length:
        raise InputError(f"{path}: {name} {list(view.shape)} needs more than the {length} bytes of its storage")
    return tensor


def _is_row_major(view: _View) -> bool:
    if math.prod(view.shape) == 0:
        return True
    step = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True
