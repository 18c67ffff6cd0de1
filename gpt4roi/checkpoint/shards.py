"""Spreads tensors over safetensors files of bounded size and writes them, with the index that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from gpt4roi.checkpoint.safetensors_stream import PlannedTensor, write_file
from gpt4roi.checkpoint.staging import StagedFolder
from gpt4roi.checkpoint.streams import INDEX_SUFFIX

DEFAULT_SHARD_SIZE = "5GB"

_SINGLE = "model.safetensors"
_METADATA = {"format": "pt"}


def plan_shards(tensors: Sequence[PlannedTensor], max_bytes: int) -> dict[str, list[PlannedTensor]]:
    """Fills files in the tensors' order up to `max_bytes` each; a tensor larger than that gets a file of its own."""
    groups: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    if len(groups) == 1:
        return {_SINGLE: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def write_shards(staged: StagedFolder, shards: dict[str, list[PlannedTensor]], progress: Callable[[int], None]) -> None:
    """Writes the files that `staged` does not hold complete yet, then their index; `progress` hears of every byte.

    Files in a folder of their own (`clip/model.safetensors`) are no part of the model and not in its index.
    """
    for name, tensors in shards.items():
        path = staged.path / name
        if path.exists():  # a file gets this name when it is whole and on the disk
            progress(sum(tensor.nbytes for tensor in tensors))
            continue
        path.parent.mkdir(exist_ok=True)
        write_file(path, tensors, _METADATA, progress)
    model = {name: tensors for name, tensors in shards.items() if "/" not in name}
    if len(model) > 1:
        weight_map = {tensor.name: name for name, tensors in model.items() for tensor in tensors}
        total = sum(tensor.nbytes for tensors in model.values() for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        staged.write_bytes(_SINGLE + INDEX_SUFFIX, json.dumps(index, indent=2).encode() + b"\n")
