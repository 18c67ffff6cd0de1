"""Deltas: what a model adds to its base, taken and put back tensor by tensor in the original's float16 arithmetic.

A delta holds target − base for the language model and the tensors that GPT4RoI adds as they are. Of the two embedding
tables only the base's rows are subtracted; rows of added tokens stay as they are. Everything is rounded to float16
before and after, so a delta put back differs from its target by float16 rounding, as it always did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gpt4roi.checkpoint import layout
from gpt4roi.checkpoint.convert import original_files, our_files
from gpt4roi.checkpoint.folder_plan import FolderPlan, plan_folder
from gpt4roi.checkpoint.numbers import as_bytes, half_pieces, sample_digest
from gpt4roi.checkpoint.pairing import Pair, check_vocabulary, is_rotary, pair_up
from gpt4roi.checkpoint.safetensors_stream import PlannedTensor
from gpt4roi.checkpoint.shards import DEFAULT_SHARD_SIZE
from gpt4roi.checkpoint.stored import StoredTensor, chunk_buffer
from gpt4roi.checkpoint.streams import WeightFolder, open_weights
from gpt4roi.checkpoint.tower import find_tower
from gpt4roi.errors import InputError
from gpt4roi.io.digests import sha256_of, tensors_fingerprint

RECORD = "delta.json"
"""Beside the weights of our deltas: digests of the base they were made from and of the model they give."""

_RECORD_VERSION = 1
_UNVERIFIED = "unverified, since the delta carries no fingerprint of the base it was made from"


class _Buffers:
    """Two pieces of memory that all tensors of a run share, and the digest that may follow the base's numbers."""

    def __init__(self) -> None:
        self.other = chunk_buffer()
        self.base = chunk_buffer()

    def pieces(self, pair: Pair, base_digest: Any = None) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yields float16[n] of the pair's other side with float16[n] of its base, None where the base has no row."""
        if pair.base is not None:
            halves = half_pieces(pair.other, self.other, 0, pair.shared), half_pieces(pair.base, self.base)
            for other, base in zip(*halves, strict=True):
                if base_digest is not None:
                    base_digest.update(as_bytes(base))
                yield other, base
        for other in half_pieces(pair.other, self.other, pair.shared):
            yield other, None


def _dtype(pair: Pair) -> str:
    """Saved rotary buffers are float32 numbers, though rounded to float16 on the way; everything else is float16."""
    return "F32" if is_rotary(pair.name) else "F16"


def plan_apply(
    base: str | Path,
    delta: str | Path,
    target: str | Path,
    output_format: str = layout.OURS,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    verify: bool = False,
    vision_tower: str | None = None,
) -> FolderPlan:
    """Checks that `delta` belongs to `base` and plans the folder base + delta; nothing is written before `.write`.

    output_format: `hf` for our own names, `original` for the original's.
    verify: reads the written weights once more and puts their fingerprint into the plan's summary.
    Raises InputError for a pair that does not fit, a folder that is not whole, a target that exists or has no room.
    """
    base_weights = open_weights(base, "base")
    delta_weights = layout.with_original_names(open_weights(delta, "delta"))
    pairs = pair_up(base_weights, delta_weights, "delta")
    check_vocabulary(base_weights, delta_weights)
    _check_is_delta(pairs, delta_weights)
    record = _read_record(delta_weights.path)
    if record is not None:
        _check_base(record, pairs, base_weights.path)
    tensors = _plan_sums(pairs, output_format, record)
    sources = {"base": base_weights, "delta": delta_weights}
    notes = [_UNVERIFIED if record is None else "the base is the one the delta was made from"]
    config = layout.read_config(delta_weights.path)
    if output_format == layout.ORIGINAL:
        files = original_files(config, delta_weights, "F16")
    else:
        tower = find_tower(config, delta_weights.path, vision_tower)
        files = our_files(config, delta_weights, "F16", tower)
        tensors += tower.planned("F16")
        sources |= tower.sources
        notes += tower.notes
    plan = plan_folder(Path(target), tensors, files, sources, max_shard_size, overwrite)
    plan.notes = notes
    if verify:
        plan.check = lambda folder: _check_result(folder, record)
    return plan


def _plan_sums(pairs: list[Pair], output_format: str, record: dict[str, Any] | None) -> list[PlannedTensor]:
    buffers = _Buffers()
    digests = record["base"] if record else {}
    tensors = []
    for pair in pairs:
        name = layout.name_in(output_format, pair.name)
        if name is not None:
            pieces = _added(pair, buffers, digests.get(pair.name, {}).get("sha256"))
            tensors.append(PlannedTensor(name, _dtype(pair), pair.other.shape, pieces))
    return tensors


def _added(pair: Pair, buffers: _Buffers, known_digest: str | None):
    def pieces() -> Iterator[memoryview]:
        digest = hashlib.sha256() if known_digest else None
        for delta, base in buffers.pieces(pair, digest):
            if is_rotary(pair.name):
                yield as_bytes(delta.float() + base.float())
            else:
                yield as_bytes(delta if base is None else delta.add_(base))
        if digest is not None and pair.base is not None and digest.hexdigest() != known_digest:
            raise InputError(
                f"{pair.base.path}: {pair.name} is not what the delta was made from (sha256 {digest.hexdigest()[:16]}, "
                f"expected {known_digest[:16]}); the file is damaged or another version: download the base again"
            )

    return pieces


def plan_make(
    base: str | Path,
    target: str | Path,
    delta: str | Path,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
) -> FolderPlan:
    """Plans the folder `delta` = target − base, with digests of the base and of what applying the delta will give."""
    base_weights = open_weights(base, "base")
    target_weights = layout.with_original_names(open_weights(target, "target"))
    pairs = pair_up(base_weights, target_weights, "target")
    buffers = _Buffers()
    record: dict[str, Any] = {"version": _RECORD_VERSION, "base": {}, "results": {}}
    tensors = [
        PlannedTensor(pair.name, _dtype(pair), pair.other.shape, _subtracted(pair, buffers, record)) for pair in pairs
    ]
    files = original_files(layout.read_config(target_weights.path), target_weights, "F16")
    sources = {"base": base_weights, "target": target_weights}
    plan = plan_folder(Path(delta), tensors, files, sources, max_shard_size, overwrite)
    plan.identity = None  # the digests need every tensor to be read, so an interrupted run starts again
    plan.closing_files = lambda: {RECORD: _closing_record(record)}
    return plan


def _subtracted(pair: Pair, buffers: _Buffers, record: dict[str, Any]):
    def pieces() -> Iterator[memoryview]:
        of_base, of_result = hashlib.sha256(), hashlib.sha256()
        for target, base in buffers.pieces(pair, of_base):
            if is_rotary(pair.name):
                yield as_bytes(target.float() - base.float())
                continue
            delta = target if base is None else target.sub_(base)
            of_result.update(as_bytes(delta if base is None else delta + base))
            yield as_bytes(delta)
        if is_rotary(pair.name):
            return
        if pair.base is not None:
            sample = sample_digest(pair.base, buffers.base)
            record["base"][pair.name] = {
                "shape": list(pair.base.shape),
                "sample": sample,
                "sha256": of_base.hexdigest(),
            }
        name = layout.name_in(layout.OURS, pair.name)
        record["results"][name] = (name, "F16", pair.other.shape, of_result.hexdigest())

    return pieces


def _closing_record(record: dict[str, Any]) -> bytes:
    content = {
        "version": record["version"],
        "result": tensors_fingerprint(record["results"].values()),
        "base": record["base"],
    }
    return json.dumps(content, indent=1).encode() + b"\n"


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] != _RECORD_VERSION:
            raise InputError(f"{path} has version {record['version']}, this program knows {_RECORD_VERSION}: update it")
        return {"base": dict(record["base"]), "result": str(record["result"])}
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is damaged ({error!r}); download it again") from error


def _check_base(record: dict[str, Any], pairs: list[Pair], base: Path) -> None:
    """Compares a sample of every tensor of the base with what the delta was made from, before anything is written."""
    buffer = chunk_buffer()
    in_base = {pair.name: pair.base for pair in pairs if pair.base is not None and not is_rotary(pair.name)}
    different = [
        name
        for name, tensor in in_base.items()
        if record["base"].get(name, {}).get("sample") != sample_digest(tensor, buffer)
    ]
    if different:
        raise InputError(
            f"the base {base} is not the one that the delta was made from: {len(different)} of {len(in_base)} tensors "
            f"have other numbers, first {different[0]}; find the base that the delta's page names"
        )


def _check_is_delta(pairs: list[Pair], delta: WeightFolder) -> None:
    """Refuses a whole model: its normalisation weights are close to the base's, a delta's are close to zero."""
    norms = [pair for pair in pairs if pair.base is not None and pair.name.endswith("norm.weight")]
    buffer = chunk_buffer()
    whole = [pair.name for pair in norms if _is_close(pair.other, pair.base, buffer)]
    if norms and len(whole) * 2 > len(norms):
        raise InputError(
            f"the delta {delta.path} is a whole model, not a delta: {len(whole)} of its {len(norms)} normalisation "
            f"weights are nearly the base's own, first {whole[0]}; use it as it is, or give the delta"
        )


def _is_close(tensor: StoredTensor, base: StoredTensor, buffer: bytearray) -> bool:
    left = torch.cat([piece.float() for piece in half_pieces(tensor, buffer)])
    right = torch.cat([piece.float() for piece in half_pieces(base, buffer)])
    return bool((left - right).norm() < 0.5 * right.norm())


def model_fingerprint(folder: str | Path) -> str:
    """Returns the fingerprint of a model's numbers; names in either format, shards and file format do not matter."""
    buffer = chunk_buffer()
    tensors = layout.with_original_names(open_weights(folder)).tensors.values()
    return tensors_fingerprint(
        (layout.name_in(layout.OURS, tensor.name), tensor.dtype, tensor.shape, sha256_of(tensor.read(buffer)))
        for tensor in tensors
        if not is_rotary(tensor.name)
    )


def _check_result(folder: Path, record: dict[str, Any] | None) -> str:
    found = model_fingerprint(folder)
    if record is not None and found != record["result"]:
        raise InputError(
            f"the result has the fingerprint {found}, the delta promises {record['result']}; "
            "its files are damaged: download base and delta again"
        )
    return f"fingerprint {found}{', as the delta promises' if record else ''}"
