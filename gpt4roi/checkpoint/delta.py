"""Weight deltas (target − base): made, checked against their base, and applied tensor by tensor in float16.

A delta holds target − base for the language model and the tensors that GPT4RoI adds as they are. Of the two embedding
tables only the base's rows are subtracted; rows of added tokens stay as they are. Everything is rounded to float16
before and after, as the original did, so a delta that is applied differs from its target by float16 rounding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt4roi.checkpoint.clip_tower import open_clip_tower
from gpt4roi.checkpoint.convert import ORIGINAL, OURS, original_files, our_files, refuse_tower, with_original_names
from gpt4roi.checkpoint.tensor_files import (
    StoredTensor,
    WeightFolder,
    as_bytes,
    chunk_buffer,
    open_weights,
    sample_digest,
)
from gpt4roi.checkpoint.writer import DEFAULT_SHARD_SIZE, FolderPlan, PlannedTensor, plan_folder
from gpt4roi.errors import InputError
from gpt4roi.io.digests import sha256_of, tensors_fingerprint
from gpt4roi.io.json_files import read_json_object
from gpt4roi.io.model_folders import DELTA, DELTA_RECORD, identify
from gpt4roi.models.original_format import ADDED_TOKENS_FILE, EMBEDDINGS, ROTARY_BUFFER, read_model_config, to_ours

TABLES = (EMBEDDINGS, "lm_head.weight")
"""The two tables whose first rows are the base's; rows of added tokens follow."""

RECORD = DELTA_RECORD
"""Beside the weights of our deltas: digests of the base they were made from and of the model they give."""

_RECORD_VERSION = 1
_NEGATIVE, _INFINITE, _LARGEST = 0x8000, 0x7C00, torch.finfo(torch.float16).max
_ADDED_MODULES = ("spi_module", "region_encoder", "mm_projector", "vision_tower")
_FLOATS = ("F16", "BF16", "F32", "F64")
_MAKING = ("target - base", "share the complete weights instead of a delta")
_APPLYING = ("base + delta", "this is not the base, or a file is damaged: download both again")
_OF_BASE = "the base is the one the delta was made from"
_ROUNDED = "the base is a bfloat16 copy of the one the delta was made from, and the result differs by its rounding"
_UNVERIFIED = "unverified, since the delta carries no fingerprint of the base it was made from"


@dataclass(frozen=True)
class Pair:
    """A tensor of the fine-tuned side and, unless the fine-tuning added it, the base's tensor of that name.

    Attributes:
        other: Of the delta, or of the model that a delta is made of.
        base: None for a tensor that the fine-tuning added.
    """

    other: StoredTensor
    base: StoredTensor | None

    @property
    def name(self) -> str:
        """The original's name of the tensor."""
        return self.other.name

    @property
    def shared(self) -> int:
        """How many leading elements of `other` have a counterpart in the base."""
        return self.base.numel if self.base is not None else 0

    @property
    def dtype(self) -> str:
        """Of the result: saved rotary buffers are float32, though rounded to float16 on the way; the rest float16."""
        return "F32" if _is_rotary(self.name) else "F16"


class _Buffers:
    """Two chunks of memory that all tensors of a run share."""

    def __init__(self) -> None:
        self.other = chunk_buffer()
        self.base = chunk_buffer()

    def chunks(self, pair: Pair, base_digest: Any = None) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Yields float16[n] of the pair's other side with float16[n] of its base, None where the base has no row.

        The digest, if any, is updated with the base's numbers.
        """
        if pair.base is not None:
            halves = pair.other.read_half(self.other, 0, pair.shared), pair.base.read_half(self.base)
            for other, base in zip(*halves, strict=True):
                if base_digest is not None:
                    base_digest.update(as_bytes(base))
                yield other, base
        for other in pair.other.read_half(self.other, pair.shared):
            yield other, None


def plan_apply(
    base: str | Path,
    delta: str | Path,
    target: str | Path,
    output_format: str = OURS,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    verify: bool = False,
    vision_tower: str | None = None,
) -> FolderPlan:
    """Checks that `delta` belongs to `base` and plans the folder base + delta; nothing is written before `.write`.

    Args:
        base: Folder of the language model.
        delta: Folder of the delta, in either format.
        target: Folder of the result.
        output_format: `hf` for our own names, `original` for the original's.
        max_shard_size: As parse_size takes it.
        overwrite: Replace a target that exists.
        verify: Read the written weights once more and put their fingerprint into the plan's summary.
        vision_tower: Folder or hub name of the tower to put inside, in our format.

    Raises:
        InputError: The two do not belong together, a folder is not complete, or the target exists or has no room.
    """
    base_weights = open_weights(base, "base")
    delta_weights = with_original_names(open_weights(delta, "delta"))
    pairs = pair_up(base_weights, delta_weights, "delta")
    record = _read_record(delta_weights.path)
    if record is None:
        check_vocabulary(base_weights, delta_weights)
    _check_is_delta(pairs, delta_weights)
    notes = [_UNVERIFIED if record is None else _OF_BASE]
    if record is not None and _is_rounded_base(record, pairs, base_weights.path):
        record, notes = None, [_ROUNDED]
    tensors = _plan_sums(pairs, output_format, record)
    sources = {"base": base_weights, "delta": delta_weights}
    found = identify(delta_weights.path)
    config = found.config if found.kind == DELTA else found.require_own_model().config
    if output_format == ORIGINAL:
        refuse_tower(vision_tower)
        files = original_files(config, delta_weights, "F16")
    else:
        tower = open_clip_tower(config, delta_weights.path, vision_tower)
        files = our_files(config, delta_weights, "F16", tower)
        tensors += tower.plan_tensors("F16")
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
        name = pair.name if output_format == ORIGINAL else to_ours(pair.name)
        if name is not None:
            chunks = _added(pair, buffers, digests.get(pair.name, {}).get("sha256"))
            tensors.append(PlannedTensor(name, pair.dtype, pair.other.shape, chunks))
    return tensors


def _added(pair: Pair, buffers: _Buffers, known_digest: str | None) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        digest = hashlib.sha256() if known_digest else None
        for delta, base in buffers.chunks(pair, digest):
            if base is not None and _is_rotary(pair.name):
                yield as_bytes(delta.float() + base.float())
            else:
                yield as_bytes(_fitting(delta if base is None else delta.add_(base), pair, _APPLYING))
        if digest and known_digest and pair.base is not None and digest.hexdigest() != known_digest:
            raise InputError(
                f"{pair.base.path}: {pair.name} is not what the delta was made from (sha256 {digest.hexdigest()[:16]}, "
                f"expected {known_digest[:16]}); the file is damaged or another version: download the base again"
            )

    return chunks


def plan_make(
    base: str | Path,
    target: str | Path,
    delta: str | Path,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
) -> FolderPlan:
    """Plans the folder `delta` = target − base, with digests of the base and of what applying the delta will give."""
    base_weights = open_weights(base, "base")
    target_weights = with_original_names(open_weights(target, "target"))
    pairs = pair_up(base_weights, target_weights, "target")
    buffers = _Buffers()
    record: dict[str, Any] = {"version": _RECORD_VERSION, "base": {}, "results": {}}
    tensors = [
        PlannedTensor(pair.name, pair.dtype, pair.other.shape, _subtracted(pair, buffers, record)) for pair in pairs
    ]
    files = original_files(read_model_config(target_weights.path), target_weights, "F16")
    sources = {"base": base_weights, "target": target_weights}
    plan = plan_folder(Path(delta), tensors, files, sources, max_shard_size, overwrite, kind="delta")
    plan.identity = None  # the digests need every tensor to be read, so an interrupted run starts again
    plan.closing_files = lambda: {RECORD: json.dumps(_closing_record(record), indent=1).encode() + b"\n"}
    return plan


def _subtracted(pair: Pair, buffers: _Buffers, record: dict[str, Any]) -> Callable[[], Iterator[memoryview]]:
    def chunks() -> Iterator[memoryview]:
        of_base, of_result = hashlib.sha256(), hashlib.sha256()
        for target, base in buffers.chunks(pair, of_base):
            if base is not None and _is_rotary(pair.name):
                yield as_bytes(target.float() - base.float())
                continue
            delta = _fitting(target if base is None else target.sub_(base), pair, _MAKING)
            of_result.update(as_bytes(delta if base is None else delta + base))
            yield as_bytes(delta)
        name = to_ours(pair.name)
        if name is None:  # a rotary buffer
            return
        if pair.base is not None:
            record["base"][pair.name] = {
                "shape": list(pair.base.shape),
                "sample": sample_digest(pair.base, buffers.base),
                "sample_bfloat16": sample_digest(pair.base, buffers.base, torch.bfloat16),
                "sha256": of_base.hexdigest(),
            }
        record["results"][name] = (name, "F16", pair.other.shape, of_result.hexdigest())

    return chunks


def _fitting(numbers: torch.Tensor, pair: Pair, work: tuple[str, str]) -> torch.Tensor:
    """Returns float16 numbers; raises InputError with the tensor's name where one of them is infinite or NaN."""
    # By the largest bits of either sign, without a copy: a thirtieth of the time of torch.isfinite.
    bits = numbers.view(torch.int16).numpy()
    if bits.size and (bits.max() >= _INFINITE or bits.view(np.uint16).max() >= _NEGATIVE | _INFINITE):
        count = int((~torch.isfinite(numbers)).sum())
        raise InputError(
            f"{pair.other.path}: {pair.name} does not fit the float16 of deltas: {work[0]} has at least {count} "
            f"numbers that are NaN or beyond {_LARGEST:.0f}; {work[1]}"
        )
    return numbers


def _closing_record(record: dict[str, Any]) -> dict[str, Any]:
    result = tensors_fingerprint(record["results"].values())
    return {"version": record["version"], "result": result, "base": record["base"]}


def _read_record(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    if not path.exists():
        return None
    record = read_json_object(path)
    if record.get("version") != _RECORD_VERSION:
        raise InputError(f"{path} has version {record.get('version')}, this program knows {_RECORD_VERSION}: update it")
    try:
        return {"base": dict(record["base"]), "result": str(record["result"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); download it again") from error


def _is_rounded_base(record: dict[str, Any], pairs: list[Pair], base: Path) -> bool:
    """Compares a sample of every tensor of the base with what the delta was made from, before anything is written.

    Returns whether some are equal only after rounding, as in a bfloat16 copy. Raises InputError where one is not.
    """
    buffer = chunk_buffer()
    in_base = {pair.name: pair.base for pair in pairs if pair.base is not None and not _is_rotary(pair.name)}
    known = {name: record["base"].get(name, {}) for name in in_base}
    rounded = [name for name, tensor in in_base.items() if known[name].get("sample") != sample_digest(tensor, buffer)]
    different = [
        name
        for name in rounded
        if in_base[name].dtype != "BF16"
        or known[name].get("sample_bfloat16") != sample_digest(in_base[name], buffer, torch.bfloat16)
    ]
    if different:
        raise InputError(
            f"the base {base} is not the one that the delta was made from: {len(different)} of {len(in_base)} tensors "
            f"have other numbers, first {different[0]}; find the base that the delta's page names"
        )
    return bool(rounded)


def _check_is_delta(pairs: list[Pair], delta: WeightFolder) -> None:
    """Refuses a complete model: its normalisation weights are close to the base's, a delta's are close to zero."""
    buffer = chunk_buffer()
    norms = [(pair.other, pair.base) for pair in pairs if pair.base is not None and pair.name.endswith("norm.weight")]
    close = [other.name for other, base in norms if _is_close(other, base, buffer)]
    if norms and len(close) * 2 > len(norms):
        raise InputError(
            f"the delta {delta.path} is a complete model, not a delta: {len(close)} of its {len(norms)} normalisation "
            f"weights are nearly the base's own, first {close[0]}; use it as it is, or give the delta"
        )


def _is_close(tensor: StoredTensor, base: StoredTensor, buffer: bytearray) -> bool:
    left = torch.cat([chunk.float() for chunk in tensor.read_half(buffer)])
    right = torch.cat([chunk.float() for chunk in base.read_half(buffer)])
    return bool((left - right).norm() < 0.5 * right.norm())


def model_fingerprint(folder: str | Path) -> str:
    """Returns the fingerprint of a model's numbers; names in either format, shards and file format do not matter."""
    buffer = chunk_buffer()
    tensors = with_original_names(open_weights(folder)).tensors.values()
    return tensors_fingerprint(
        (name, tensor.dtype, tensor.shape, sha256_of(tensor.read(buffer)))
        for tensor in tensors
        if (name := to_ours(tensor.name)) is not None
    )


def _check_result(folder: Path, record: dict[str, Any] | None) -> str:
    found = model_fingerprint(folder)
    if record is not None and found != record["result"]:
        raise InputError(
            f"the result has the fingerprint {found}, the delta promises {record['result']}; "
            "its files are damaged: download base and delta again"
        )
    return f"fingerprint {found}{', as the delta promises' if record else ''}"


def _is_rotary(name: str) -> bool:
    """True for the saved rotary buffers of old versions."""
    return ROTARY_BUFFER.search(name) is not None


def _is_added(name: str) -> bool:
    """True for what GPT4RoI adds to a language model: these tensors are in a delta as they are."""
    return any(part in _ADDED_MODULES for part in name.split("."))


def pair_up(base: WeightFolder, other: WeightFolder, role: str) -> list[Pair]:
    """Pairs the tensors of `other` (its `role`: `delta` or `target`) with the base's, in the order of other's files.

    Raises InputError with names and numbers when the two are not a language model and what was made of it.
    """
    _check_kinds(base, other, role)
    _check_names(base, other, role)
    _check_shapes(base, other, role)
    for tensor in (*base.tensors.values(), *other.tensors.values()):
        if tensor.dtype not in _FLOATS:
            raise InputError(
                f"{tensor.path}: {tensor.name} {list(tensor.shape)} {tensor.dtype} is no floating-point weight; "
                "take the unquantised weights"
            )
    # A rotary buffer that only one side saved says nothing: newer versions do not save it.
    pairs = [Pair(tensor, base.tensors.get(tensor.name)) for tensor in other.tensors.values()]
    return [pair for pair in pairs if pair.base is not None or not _is_rotary(pair.name)]


def _check_kinds(base: WeightFolder, other: WeightFolder, role: str) -> None:
    added = [name for name in base.tensors if _is_added(name)]
    if added:
        raise InputError(
            f"the base {base.path} is not a bare language model: it has {len(added)} tensors such as "
            f"{added[0]}; give the LLaMA folder as base"
        )
    if not any("spi_module" in name or "region_encoder" in name for name in other.tensors):
        raise InputError(
            f"the {role} {other.path} has no region encoder among its {len(other.tensors)} tensors (expected names "
            f"with spi_module, found {next(iter(other.tensors))}, …); this is not a GPT4RoI checkpoint; choose another "
            "folder"
        )


def _check_names(base: WeightFolder, other: WeightFolder, role: str) -> None:
    of_base = {name for name in base.tensors if not _is_rotary(name)}
    of_other = {name for name in other.tensors if not _is_rotary(name) and not _is_added(name)}
    unknown = [name for name in other.tensors if name in of_other - of_base]
    if unknown:
        raise InputError(
            f"the {role} {other.path} has {len(unknown)} tensors that the base {base.path} lacks, first {unknown[0]}; "
            f"the base has {_layers(of_base)} layers, the {role} {_layers(of_other)}: give the base it was made from"
        )
    left = [name for name in base.tensors if name in of_base - of_other]
    if left:
        raise InputError(
            f"the base {base.path} has {len(left)} tensors that the {role} {other.path} lacks, first {left[0]}; "
            f"the base has {_layers(of_base)} layers, the {role} {_layers(of_other)}: give the base it was made from"
        )


def _layers(names: set[str]) -> int:
    return len({name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name})


def _check_shapes(base: WeightFolder, other: WeightFolder, role: str) -> None:
    wrong = []
    for name, tensor in other.tensors.items():
        reference = base.tensors.get(name)
        if reference is None or reference.shape == tensor.shape:
            continue
        same_width = reference.shape[1:] == tensor.shape[1:]
        if not (name in TABLES and same_width and reference.shape[0] <= tensor.shape[0]):  # rows may be appended
            wrong.append(f"{name} {list(reference.shape)} in the base and {list(tensor.shape)} in the {role}")
    if wrong:
        raise InputError(
            f"base {base.path} and {role} {other.path} do not fit: {len(wrong)} tensors differ in shape, first "
            f"{wrong[0]}; give the base it was made from"
        )


def check_vocabulary(base: WeightFolder, delta: WeightFolder) -> None:
    """Raises InputError when the delta's added_tokens.json says that its base had another number of rows.

    Where both tables have as many rows, the added tokens took spare rows of the base's and the file says nothing.
    """
    path = delta.path / ADDED_TOKENS_FILE
    if not path.exists():
        return
    try:
        first = min(map(int, read_json_object(path).values()), default=None)
    except InputError:
        raise
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a table of token ids ({error}); download it again") from error
    for name in TABLES:
        tensor = base.tensors.get(name)
        if first is None or tensor is None or tensor.shape == delta.tensors[name].shape:
            continue
        if tensor.shape[0] != first:
            raise InputError(
                f"the base {base.path} has {tensor.shape[0]} rows in {name}, the delta was made from {first} (the "
                f"first token it adds is number {first} in {path}); give the base it was made from"
            )
