"""Digests (SHA-256, CRC-32) of files and weights, in full or of blocks sampled over what is large."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_FINGERPRINTED = (".json", ".model", ".jinja", ".txt", ".safetensors", ".bin")
_SAMPLED_BLOCKS = 64
_FINGERPRINT_BLOCK = 1 << 16
CRC_BLOCK = 1 << 20
"""Bytes of a block that `sampled_crc32` reads."""


def sha256_of(chunks: Iterable[bytes | memoryview]) -> str:
    """Returns the SHA-256 of consecutive chunks as hexadecimal digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def tensors_fingerprint(records: Iterable[tuple[str, str, tuple[int, ...], str]]) -> str:
    """Returns one fingerprint of (name, dtype, shape, digest) records, in whatever order and files they are stored."""
    lines = sorted(f"{name} {dtype} {list(shape)} {digest}\n" for name, dtype, shape, digest in records)
    return "sha256:" + sha256_of(line.encode() for line in lines)


def path_fingerprint(path: str | Path) -> dict[str, str]:
    """Returns what tells a model (or a wrapper file) from others: small files in full, of weights 64 sampled blocks.

    A file is read in full; what is no path, such as a hub name, stands for itself.
    """
    name, path = str(path), Path(path)
    if path.is_file():
        return {"sha256": sha256_of([path.read_bytes()])}
    if not path.is_dir():
        return {"name": name}
    files = (file for file in sorted(path.rglob("*")) if file.suffix in _FINGERPRINTED and file.is_file())
    return {"sha256": sha256_of(chunk for file in files for chunk in _named_blocks(path, file))}


def _named_blocks(folder: Path, file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    yield f"{file.relative_to(folder)} {size}\n".encode()
    with file.open("rb") as stream:
        if size <= _SAMPLED_BLOCKS * _FINGERPRINT_BLOCK:
            yield stream.read()
            return
        for number in range(_SAMPLED_BLOCKS):
            stream.seek(number * (size // _SAMPLED_BLOCKS))
            yield stream.read(_FINGERPRINT_BLOCK)


def sampled_crc32(path: Path) -> int:
    """Returns the CRC-32 of a file; of a file beyond 64 MiB, that of 64 blocks of 1 MiB spread over it."""
    size = path.stat().st_size
    total = 0
    with path.open("rb") as file:
        for start in range(0, size, max(CRC_BLOCK, size // _SAMPLED_BLOCKS)):
            file.seek(start)
            total = zlib.crc32(file.read(CRC_BLOCK), total)
        file.seek(max(0, size - CRC_BLOCK))
        return zlib.crc32(file.read(CRC_BLOCK), total)
