"""peft adapters (LoRA): put onto the model that they were trained on, and merged into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt4roi.checkpoint.loading import load_model, load_processor
from gpt4roi.checkpoint.writer import DEFAULT_SHARD_SIZE, check_space, check_target, staged_folder
from gpt4roi.errors import InputError
from gpt4roi.io.sizes import parse_size

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")


def open_adapter(base: Any, folder: str | Path) -> Any:
    """Puts an adapter onto a model, as a peft model.

    Raises:
        InputError: The folder holds no adapter, or one whose tensors are not exactly those that the model has places
            for; peft alone would leave the others at random.
    """
    folder = Path(folder)
    _check_folder(folder)
    try:
        from peft import PeftModel
    except ImportError:
        raise InputError("adapters need peft; install it with pip install 'gpt4roi[train]'") from None
    from peft.utils import get_peft_model_state_dict, load_peft_weights

    try:
        model = PeftModel.from_pretrained(base, folder)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the adapter {folder} does not fit the base: {reason}; give the base it was made on"
        ) from None
    wanted, found = set(get_peft_model_state_dict(model)), set(load_peft_weights(str(folder), device="cpu"))
    if wanted != found:
        raise InputError(
            f"the adapter {folder} does not fit the base: {len(wanted - found)} tensors are missing "
            f"({', '.join(sorted(wanted - found)[:3]) or 'none'}) and {len(found - wanted)} have no place "
            f"({', '.join(sorted(found - wanted)[:3]) or 'none'}); give the base it was made on"
        )
    return model


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"there is no adapter folder {folder}; give the folder that peft's save_pretrained wrote")
    if not (folder / CONFIG).is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
        raise InputError(
            f"{folder} is not an adapter: expected {CONFIG} and {' or '.join(WEIGHTS)}, found {found}; "
            "give the folder that peft's save_pretrained wrote"
        )


def merge_adapter(
    base: str | Path,
    adapter: str | Path,
    target: str | Path,
    max_shard_size: str = DEFAULT_SHARD_SIZE,
    overwrite: bool = False,
    vision_tower: str | None = None,
) -> str:
    """Writes the folder `target`: the model `base` with an adapter's changes in its own weights, and its processor.

    Both are in memory, in the base's dtype.

    Returns:
        One line about what was written.

    Raises:
        InputError: A folder is not what it should be, or they do not fit.
    """
    target = Path(target)
    parse_size(max_shard_size)
    _check_folder(Path(adapter))
    inputs = {"base": Path(base), "adapter": Path(adapter)}
    check_target(target, {role: path for role, path in inputs.items() if path.is_dir()}, overwrite)
    model = load_model(base, vision_tower=vision_tower)
    processor = load_processor(base, vision_tower=vision_tower)
    merged = open_adapter(model, adapter).merge_and_unload()
    size = sum(value.numel() * value.element_size() for value in merged.state_dict().values())
    check_space(target, size)
    with staged_folder(target, None) as folder:
        merged.save_pretrained(folder, max_shard_size=max_shard_size)
        processor.save_pretrained(folder)
    return f"{size / 1e6:.1f} MB in {str(merged.dtype).removeprefix('torch.')}"
