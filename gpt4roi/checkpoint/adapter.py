"""`merge_adapter`: a folder with an adapter's changes in the weights of the model that it was trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from gpt4roi.checkpoint.compare import Observation, differences, observe
from gpt4roi.checkpoint.loading import load_model, load_processor, saved_settings, with_settings
from gpt4roi.checkpoint.lora import check_adapter_folder, check_base, merge, open_adapter
from gpt4roi.checkpoint.writer import DEFAULT_SHARD_SIZE, check_space, check_target, staged_folder
from gpt4roi.errors import InputError
from gpt4roi.io.hub import local_folder
from gpt4roi.io.model_folders import identify
from gpt4roi.io.sizes import parse_size

LARGEST_DIFFERENCE = (0.1, 1e-3)
"""Of the merged model's outputs, relative to the largest: in 16 bits, where merging rounds, and in float32."""


def merge_adapter(
    base: str | Path,
    adapter: str | Path,
    target: str | Path,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    vision_tower: str | None = None,
) -> str:
    """Writes the folder `target`: the model `base` with an adapter's changes in its own weights, and its processor.

    Both are in memory, in the base's dtype. What was written is opened again and must compute what they did.

    Returns:
        One line about what was written.

    Raises:
        InputError: A folder is not what it should be, or they do not fit.
    """
    target = Path(target)
    parse_size(max_shard_size)
    inputs = {"base": Path(base), "adapter": Path(adapter)}
    check_target(target, {role: path for role, path in inputs.items() if path.is_dir()}, overwrite)
    identify(local_folder(base, weights=False)).require_model().require_unquantized("merged with an adapter")
    check_adapter_folder(Path(adapter))
    check_base(adapter, base)
    model = load_model(base, vision_tower=vision_tower)
    processor = with_settings(load_processor(base, vision_tower=vision_tower), **saved_settings(Path(adapter)))
    adapted = open_adapter(model, adapter)
    expected = observe(adapted, processor)
    merged = merge(adapted)
    size = sum(value.numel() * value.element_size() for value in merged.state_dict().values())
    check_space(target, size)
    with staged_folder(target, None) as folder:
        merged.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
        dtype = merged.dtype
        del model, adapted, merged  # before the written folder takes as much memory
        _check_merged(expected, folder, dtype, vision_tower)
    return f"{size / 1e6:.1f} MB in {str(dtype).removeprefix('torch.')}; it answers as base and adapter do"


def _check_merged(expected: Observation, folder: Path, dtype: torch.dtype, vision_tower: str | None) -> None:
    """Raises InputError where a folder does not compute what its base and adapter did."""
    model = load_model(folder, vision_tower=vision_tower)
    found = differences(expected, observe(model, load_processor(folder, vision_tower=vision_tower)))
    worst, bound = max(found.values()), LARGEST_DIFFERENCE[dtype.itemsize > 2]
    if not worst <= bound:
        raise InputError(
            f"the merged model differs from base and adapter by {worst:.2g} of the largest output, expected at most "
            f"{bound:g}; nothing was written: use the two together, as they are"
        )
