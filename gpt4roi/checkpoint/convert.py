"""Between our format and the original's: other names, the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gpt4roi.checkpoint import layout
from gpt4roi.checkpoint.folder_plan import FolderPlan, plan_folder
from gpt4roi.checkpoint.safetensors_stream import PlannedTensor
from gpt4roi.checkpoint.shards import DEFAULT_SHARD_SIZE
from gpt4roi.checkpoint.stored import StoredTensor, chunk_buffer
from gpt4roi.checkpoint.streams import WeightFolder, open_weights
from gpt4roi.checkpoint.tower import Tower, find_tower, tower_folder
from gpt4roi.errors import InputError


def plan_convert(
    source: str | Path,
    target: str | Path,
    to: str,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    vision_tower: str | None = None,
) -> FolderPlan:
    """Plans the folder `target` with the model of `source` in the format `to`, `hf` or `original`.

    Every tensor keeps its bytes and type; rotary buffers of old versions are left out of our format. The original's
    vision tower, found beside the source or named, goes into our format's weights, and out into a folder beside the
    original's. Raises InputError for a folder that is in that format already, or that the original has no form for.
    """
    weights = open_weights(source)
    config = layout.read_config(weights.path)
    if layout.layout_of(config) == to:
        raise InputError(f"{source} is in the format {to!r} already; use it as it is")
    sources = {"source": weights}
    if to == layout.ORIGINAL:
        tensors, files, beside = _to_original(config, weights)
        return plan_folder(Path(target), tensors, files, sources, max_shard_size, overwrite, beside)
    tower = find_tower(config, weights.path, vision_tower)
    tensors, files = _to_ours(config, weights, tower)
    plan = plan_folder(Path(target), tensors, files, sources | tower.sources, max_shard_size, overwrite)
    plan.notes += tower.notes
    return plan


def _to_ours(config: dict, weights: WeightFolder, tower: Tower) -> tuple[list[PlannedTensor], dict[str, bytes]]:
    dtype = layout.main_dtype(weights)
    named = [(layout.name_in(layout.OURS, name), stored) for name, stored in weights.tensors.items()]
    tensors = [copied(stored, name) for name, stored in named if name is not None]
    return tensors + tower.planned(dtype), our_files(config, weights, dtype, tower)


def _to_original(
    config: dict, weights: WeightFolder
) -> tuple[list[PlannedTensor], dict[str, bytes], dict[str, list[PlannedTensor]]]:
    original = layout.with_original_names(weights)
    tensors = [copied(stored, name) for name, stored in original.tensors.items()]
    files = original_files(config, original, layout.main_dtype(original))
    of_tower, tower_files, place = tower_folder(config, weights)
    if not of_tower:
        return tensors, files, {}
    files |= {f"{place}/{name}": content for name, content in tower_files.items()}
    return tensors, files, {f"{place}/model.safetensors": [copied(stored, stored.name) for stored in of_tower]}


def our_files(config: dict, weights: WeightFolder, dtype: str, tower: Tower) -> dict[str, bytes]:
    """Makes the small files of our format for weights that lie under the original's names."""
    files = layout.side_files(weights.path, layout.OURS)
    files["config.json"] = layout.our_config(config, weights, dtype, tower.config)
    of_tokenizer = files.get("tokenizer_config.json")
    files.setdefault(layout.PROCESSOR_FILE, layout.processor_config(config, tower.config, of_tokenizer))
    return files


def original_files(config: dict, weights: WeightFolder, dtype: str) -> dict[str, bytes]:
    """Makes the small files of the original's format for weights that lie under the original's names."""
    files = layout.side_files(weights.path, layout.ORIGINAL)
    files["config.json"] = layout.original_config(config, weights, dtype)
    return files


def copied(stored: StoredTensor, name: str) -> PlannedTensor:
    """Plans a tensor whose bytes are taken over as they are."""

    def pieces() -> Iterator[memoryview]:
        yield from stored.read(chunk_buffer(stored.itemsize))

    return PlannedTensor(name, stored.dtype, stored.shape, pieces)
