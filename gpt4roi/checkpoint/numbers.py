"""Pieces of stored tensors as torch numbers and back, and the digests that tell one set of weights from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gpt4roi.checkpoint.stored import StoredTensor

TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_SAMPLE = 512


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch on this thread: for pieces of this size, waiting for a second one costs more than the sum itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def half_pieces(
    tensor: StoredTensor, buffer: bytearray, start: int = 0, stop: int | None = None
) -> Iterator[torch.Tensor]:
    """Yields the numbers [start, stop) as float16[n], rounded where they are stored wider; the next overwrites each."""
    for piece in tensor.read(buffer, start, stop):
        yield torch.frombuffer(piece, dtype=TORCH_DTYPES[tensor.dtype]).to(torch.float16)


def as_bytes(numbers: torch.Tensor) -> memoryview:
    """Returns the memory of a contiguous 1-D tensor, without a copy."""
    return memoryview(numbers.numpy()).cast("B")


def sample_digest(tensor: StoredTensor, buffer: bytearray) -> str:
    """Digests up to 3 × 512 float16 numbers from the start, middle and end: quick, and different for other weights."""
    count = tensor.numel
    digest = hashlib.sha256(repr(tensor.shape).encode())
    for start in sorted({0, max(0, count // 2 - _SAMPLE // 2), max(0, count - _SAMPLE)}):
        for numbers in half_pieces(tensor, buffer, start, min(start + _SAMPLE, count)):
            digest.update(as_bytes(numbers))
    return digest.hexdigest()[:16]
