"""Tensors in safetensors and `.bin` files, located without reading them and streamed chunk by chunk (bounded memory).

Chunks are read with plain file reads, not through a memory map: mapped pages would count as this process's memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt4roi.errors import InputError
from gpt4roi.io.model_folders import ADAPTER, UNFINISHED, identify
from gpt4roi.io.sizes import readable_size
from gpt4roi.io.weight_files import damaged, find_weight_files, load_bin

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch dtypes by the names that safetensors has for them."""

CHUNK_ELEMENTS = 1 << 20
"""Elements read at once: 2 MiB of float16 stays in the cache of one core and keeps memory far below 64 MB."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_SAMPLE = 512
_LENGTH_BYTES, _MAX_HEADER = 8, 100_000_000


def dtype_name(dtype: str) -> str:
    """Returns torch's name of a dtype, as `float16` for `F16`."""
    return str(DTYPES[dtype]).removeprefix("torch.")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file: row-major, little-endian, `nbytes` consecutive bytes from `offset` on.

    Attributes:
        dtype: A key of DTYPES.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.itemsize

    def read(self, buffer: bytearray, start: int = 0, stop: int | None = None) -> Iterator[memoryview]:
        """Yields the elements [start, stop) as consecutive chunks of `buffer`, each overwritten by the next.

        Every chunk but the last holds CHUNK_ELEMENTS elements, so two tensors of equal shape are read in step. The
        buffer holds at least that many elements of this dtype.
        """
        stop = self.numel if stop is None else stop
        view = memoryview(buffer)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset + start * self.itemsize)
            for position in range(start, stop, CHUNK_ELEMENTS):
                chunk = view[: min(CHUNK_ELEMENTS, stop - position) * self.itemsize]
                self._fill(file, chunk)
                yield chunk

    def _fill(self, file: io.FileIO, chunk: memoryview) -> None:
        done = 0
        while done < len(chunk):
            count = file.readinto(chunk[done:])
            if not count:
                raise InputError(
                    f"{self.path} ended inside {self.name} while it was read; the file changed or its disk fails: "
                    "compare it with its source and run again"
                )
            done += count

    def read_half(
        self, buffer: bytearray, start: int = 0, stop: int | None = None, dtype: torch.dtype = torch.float16
    ) -> Iterator[torch.Tensor]:
        """Yields the elements [start, stop) in a dtype, as tensors [n], rounded if they are wider; as `read` does."""
        for chunk in self.read(buffer, start, stop):
            yield torch.frombuffer(chunk, dtype=DTYPES[self.dtype]).to(dtype)


def chunk_buffer(itemsize: int = 8) -> bytearray:
    """Makes a buffer that `StoredTensor.read` can use for elements of `itemsize` bytes or fewer."""
    return bytearray(CHUNK_ELEMENTS * itemsize)


def as_bytes(numbers: torch.Tensor) -> memoryview:
    """Returns the memory of a contiguous 1-D tensor, without a copy."""
    return memoryview(numbers.view(torch.uint8).numpy().data)


def sample_digest(tensor: StoredTensor, buffer: bytearray, dtype: torch.dtype = torch.float16) -> str:
    """Digests up to 3 × 512 numbers from the start, middle and end: quick, and different for other weights.

    dtype: That they are rounded to, so that a copy in it has the digest of what it was copied from.
    """
    count = tensor.numel
    digest = hashlib.sha256(repr(tensor.shape).encode())
    for start in sorted({0, max(0, count // 2 - _SAMPLE // 2), max(0, count - _SAMPLE)}):
        for numbers in tensor.read_half(buffer, start, min(start + _SAMPLE, count), dtype):
            digest.update(as_bytes(numbers))
    return digest.hexdigest()[:16]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch on this thread: for chunks of this size, waiting for a second one costs more than the sum itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class WeightFolder:
    """The weights of one folder: its tensors by name, in the order of the files and of the bytes in them."""

    path: Path
    tensors: dict[str, StoredTensor]
    files: tuple[Path, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def open_weights(path: str | Path, role: str = "model") -> WeightFolder:
    """Locates the tensors of a folder.

    Args:
        path: The folder.
        role: Names it in messages (`base`, `delta`, …).

    Raises:
        InputError: The folder has no weights or stores them quantized, holds an adapter or an unfinished training; a
            file is missing, cut off, a Git LFS pointer or of PyTorch's old format.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(_no_folder(folder, role))
    found = identify(folder).require_unquantized(f"used as the {role} here")
    if found.kind in (ADAPTER, UNFINISHED):
        found.require_own_model()
    files, weight_map = find_weight_files(folder, role)
    by_file = {file.name: list_tensors(file) for file in files}
    absent = [f"{tensor} in {name}" for tensor, name in weight_map.items() if tensor not in by_file[name]]
    if absent:
        raise InputError(
            f"the index of {folder} promises {len(absent)} tensors that their shards do not hold, first {absent[0]}; "
            "index and shards are from different models: download both again"
        )
    tensors = [by_file[name][tensor] for tensor, name in weight_map.items()] or list(by_file[files[0].name].values())
    if not tensors:
        raise InputError(f"the weights of {folder} hold no tensor; download them again")
    tensors.sort(key=lambda tensor: (tensor.path, tensor.offset))
    return WeightFolder(folder, {tensor.name: tensor for tensor in tensors}, files)


def _no_folder(folder: Path, role: str) -> str:
    if folder.exists():
        return f"the {role} {folder} is a file; give the folder that holds config.json and the weights"
    hint = f"`hf download {folder} --local-dir FOLDER`" if len(folder.parts) == 2 else "the folder that holds it"
    return f"there is no {role} folder {folder} (looked in {Path.cwd()}); download it first and give {hint}"


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """Locates the tensors of one safetensors or `.bin` file. Raises InputError as open_weights does."""
    return _list_safetensors(path) if path.suffix == ".safetensors" else _list_bin(path)


def _list_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Parses the header alone: safetensors' own reader maps the file, which fails beyond the machine's memory."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= min(_MAX_HEADER, size - _LENGTH_BYTES):
            raise damaged(path, f"header of {length} bytes")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _entry(name, record, path, _LENGTH_BYTES + length) for name, record in header.items()}
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"header: {error}") from None
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=0)
    if end > size:
        raise damaged(path, f"its header promises {end}")
    return tensors


def _entry(name: str, record: dict[str, Any], path: Path, data_start: int) -> StoredTensor:
    if record["dtype"] not in DTYPES:
        raise _unknown_dtype(path, name, record["dtype"])
    begin, end = record["data_offsets"]
    tensor = StoredTensor(name, record["dtype"], tuple(int(n) for n in record["shape"]), path, data_start + begin)
    if end - begin != tensor.nbytes or begin < 0:
        raise ValueError(f"{name} takes {end - begin} bytes, its shape {list(tensor.shape)} needs {tensor.nbytes}")
    return tensor


def _unknown_dtype(path: Path, name: str, dtype: object) -> InputError:
    return InputError(
        f"{path}: {name} has the dtype {dtype}, which is not supported here; expected one of {', '.join(DTYPES)}: "
        "take the folder with unquantised weights"
    )


def _list_bin(path: Path) -> dict[str, StoredTensor]:
    _check_zip(path)
    tensors = {}
    for name, tensor in load_bin(path, device="meta").items():
        shape = tuple(tensor.shape)
        if tensor.dtype not in _NAMES:
            raise _unknown_dtype(path, name, tensor.dtype)
        if not tensor.is_contiguous():
            raise InputError(
                f"{path}: {name} {list(shape)} is stored transposed (strides {list(tensor.stride())}); "
                "save the model again with every tensor made .contiguous()"
            )
        storage: Any = tensor.untyped_storage()  # its attribute, from torch 2.7 on, is not in the stubs
        offset = storage._checkpoint_offset + int(tensor.storage_offset()) * tensor.itemsize
        tensors[name] = StoredTensor(name, _NAMES[tensor.dtype], shape, path, offset)
    return tensors


def _check_zip(path: Path) -> None:
    """Raises InputError unless a `.bin` is the zip of uncompressed little-endian storages that PyTorch writes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        raise InputError(
            f"{path} is in PyTorch's old format (before 1.6), which can only be read at once and needs "
            f"{readable_size(size)} of memory; rewrite it once: python3 -c \"import torch; f = '{path.name}'; "
            f'torch.save(torch.load(f, weights_only=True), f)"'
        )
    if start != b"PK\x03\x04":
        raise InputError(f"{path} ({size} bytes) is not a file of PyTorch weights: it begins with {start!r}")
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(
                    f"{path} is a compressed zip, which PyTorch does not write; rewrite it with torch.save"
                )
            order = [entry for entry in archive.namelist() if entry.endswith("/byteorder")]
            if order and archive.read(order[0]) != b"little":
                raise InputError(f"{path} was written on a big-endian machine; rewrite it as safetensors there")
    except zipfile.BadZipFile as error:
        raise damaged(path, error) from None
